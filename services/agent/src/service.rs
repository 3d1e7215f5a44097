//! Workers that a supervisor has: what a keeper is told of them, and how their end is told.

use std::{io, path::Path};

use tether_proto::{common, node::StartWorker, node::WorkerReport, pool::Template};
use tether_shim_protocol::{Cause, Dead, Launch};
use tether_types::{Address, Death, WorkerId};

use crate::{
    keeper::{
        self, Errand,
        last_word::{End, How},
    },
    launch,
};

/// The service that a worker is; none where it is a program.
///
/// # Errors
/// When its template names none for this place.
pub(crate) fn errand(
    id: &WorkerId,
    order: &StartWorker,
    way: &str,
) -> io::Result<Option<(Errand, Address)>> {
    let Some(template) = &order.template else {
        return Ok(None);
    };
    let Some(service) = &template.service else {
        return Ok(None);
    };
    let (name, address) = tether_settings::service_of(service, id.slot).map_err(launch::refused)?;
    let limits = template.tree_limits.unwrap_or_default();
    let errand = Errand {
        launcher: order.launcher.clone(),
        name,
        connect_only: service.connect_only,
        patience_ms: order.lease_grace_ms.min(launch::grace_ms(template)),
        at: way.to_owned(),
        memory_bytes: limits.memory_bytes,
        cpu_millis: limits.cpu_millis,
        tasks: limits.pids,
    };
    Ok(Some((errand, address)))
}

/// Has a shim start the keeper of a service.
///
/// # Errors
/// When this program cannot be named.
pub(crate) fn be_kept(launch: &mut Launch, errand: &Errand) -> io::Result<()> {
    let (argv, (name, told)) = keeper::command(errand)?;
    launch.argv = argv.into_iter().map(String::into_bytes).collect();
    // Where the bus of a user is.
    let buses = [
        "XDG_RUNTIME_DIR",
        "DBUS_SESSION_BUS_ADDRESS",
        "DBUS_SYSTEM_BUS_ADDRESS",
    ];
    let buses = buses
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    let told = buses.chain([(name, told)]);
    launch
        .env
        .extend(told.map(|(name, value)| (name.into_bytes(), value.into_bytes())));
    // SIGTERM is what a keeper knows.
    launch.stop_signal = 0;
    Ok(())
}

/// Whether the worker of this template is a service.
pub(crate) fn is_one(template: Option<&Template>) -> bool {
    template.is_some_and(|template| template.service.is_some())
}

/// Whether the service may still run, although its keeper is gone.
pub(crate) fn may_run(dir: &Path, exit_code: Option<i32>) -> bool {
    !keeper::is_over(dir) && exit_code != Some(0)
}

/// What its supervisor said of a service's end counts for more than how its keeper ended, where that was by itself.
pub(crate) fn complete(report: &mut WorkerReport, dead: &Dead, dir: &Path) {
    if !matches!(dead.cause, Cause::Exited | Cause::Signaled) {
        return;
    }
    let (Some(told), Some(end)) = (&mut report.death, End::read(dir)) else {
        return;
    };
    let (exit_code, signal) = match end.how {
        How::Exited(code) => (Some(code), None),
        How::Signaled(signal) => (None, Some(signal)),
        _ => (None, None),
    };
    let death = Death {
        cause: end.how.cause(),
        exit_code,
        signal,
        detail: end.said,
        ..Death::from(&*told)
    };
    *told = common::Death::from(&death);
}

#[cfg(test)]
mod tests {
    use tether_shim_protocol::Proof;
    use tether_types::DeathCause;

    use super::*;
    use crate::report;

    #[test]
    fn the_supervisors_word_counts_unless_somebody_ordered_the_end() {
        let id: WorkerId = "digits/0.7".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let template = Template::default();
        let told = |cause| {
            let dead = Dead {
                cause,
                exit_code: Some(1),
                signal: None,
                core: false,
                spawn_failure: None,
                reaped: 0,
                survivors: 0,
                unix_ms: 0,
                max_rss_kib: 0,
                cpu_ms: 0,
                peak_memory_bytes: 0,
                proof: Proof::Tree,
                log_lost_bytes: 0,
                stderr_tail: Vec::new(),
            };
            let mut report = report::dead(&id, &dead, &template, None);
            complete(&mut report, &dead, dir.path());
            let death = report.death.as_ref().map(Death::from).unwrap();
            (death.cause, death.detail)
        };

        assert!(may_run(dir.path(), Some(1)) && !may_run(dir.path(), Some(0)));
        assert_eq!(told(Cause::Exited).0, DeathCause::Exited(1));
        let said = "systemd: Result=oom-kill, signal 9";
        End::new(How::OutOfMemory, said).write(dir.path()).unwrap();

        keeper::mark_over(dir.path());

        assert!(!may_run(dir.path(), Some(1)));
        assert_eq!(
            told(Cause::Exited),
            (DeathCause::OutOfMemory, said.to_owned())
        );
        assert_eq!(told(Cause::LeaseExpired).0, DeathCause::LeaseExpired);
    }
}
