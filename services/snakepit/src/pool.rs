//! A worker as a pool of one: what the arbiter is asked for.

use std::{ffi::OsString, io, path::Path, time::Duration};

use rustix::process::{getgid, getuid};
use tether_proto::pool::{
    Listen, OnChange, Placement, PolicyOverrides, PoolSpec, Readiness, ReadinessKind, Restart,
    RestartMode, Rollout, Stop, Template,
};

use crate::{
    BESIDE,
    berth::Berth,
    request::{Mode, Request},
};

/// Snakepit has a time of its own for a worker to be ready, and ends what takes longer.
const READY_TIMEOUT_MS: u64 = 3600 * 1000;

/// How often a program beats, or asks its BEAM whether it is there, in the time that its worker waits for them.
const BEATS: u32 = 6;

/// Between SIGTERM and SIGKILL.
pub(crate) const GRACE_MS: u64 = 10_000;

/// The name of the pool of a berth, and of its owner.
pub(crate) fn name(berth: &Berth) -> String {
    format!("snakepit-{}", berth.name())
}

/// How often to ask the BEAM whether it is there.
pub(crate) fn pulse(request: &Request) -> Duration {
    request.timeout / BEATS
}

/// The pool of this berth. It says nothing of what is started there, which may be secret: that is in the berth.
///
/// # Errors
/// When this program cannot be named to an agent.
pub(crate) fn spec(berth: &Berth, request: &Request) -> io::Result<PoolSpec> {
    let text = |path: &Path| {
        let text = OsString::from(path).into_string();
        text.map_err(|path| io::Error::other(format!("`{}` is not UTF-8", path.display())))
    };
    let mode = match request.mode {
        Mode::Coupled => "coupled",
        Mode::Independent => "independent",
    };
    let millis = |timeout: Duration| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let args = [BESIDE, &text(berth.dir())?, "{dir}", "{socket}"].map(str::to_owned);
    Ok(PoolSpec {
        name: name(berth),
        mode: mode.to_owned(),
        size: 1,
        template: Some(Template {
            command: text(&std::env::current_exe()?)?,
            args: args.into(),
            listen: Listen::Unix.into(),
            readiness: Some(Readiness {
                kind: ReadinessKind::File.into(),
                timeout_ms: READY_TIMEOUT_MS,
                what: format!("{{dir}}/{}", crate::beside::READY),
            }),
            stop: Some(Stop {
                grace_ms: Some(GRACE_MS),
                signal: 0,
            }),
            // Whether another follows is Snakepit's to say.
            restart: Some(Restart {
                mode: RestartMode::Never.into(),
                ..Restart::default()
            }),
            user: getuid().as_raw().to_string(),
            group: getgid().as_raw().to_string(),
            ..Template::default()
        }),
        policy: Some(PolicyOverrides {
            heartbeat_interval_ms: Some(millis(pulse(request))),
            heartbeat_timeout_ms: Some(millis(request.timeout)),
            ..PolicyOverrides::default()
        }),
        placement: Some(Placement {
            labels: request.labels.clone().into_iter().collect(),
            ..Placement::default()
        }),
        rollout: Some(Rollout {
            // A worker that waits to be adopted is not replaced because another `tether-python` comes to adopt it.
            on_change: OnChange::NextStart.into(),
            ..Rollout::default()
        }),
        ..PoolSpec::default()
    })
}
