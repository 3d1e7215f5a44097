//! How a worker's end is known and told: by its shim, by the record of it, or by its shim's silence.

use std::{fs, pin::pin, time::Duration};

use rustix::process::{Signal, pidfd_send_signal};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{
    common::{self as wire, WorkerPhase},
    fate::Fate,
    node::WorkerReport,
};
use tether_shim_protocol::{DEATH_FILE, Dead, Message};
use tether_sys::Exit;
use tether_systemd::Ending;
use tether_types::{Death, DeathCause};
use tokio::time::timeout;

use super::{Order, Task};
use crate::{
    journal, keeper, launch, link::ToShim, metrics::How, remains, report, service, sockets,
};

/// Longest time from a shim's end until it is reaped.
const SHIM_REAPED: Duration = Duration::from_millis(500);

/// Within this time all dies that can be killed, as for a shim.
const SAY_UNKILLABLE: Duration = Duration::from_secs(10);

impl Task {
    pub(super) fn death(&self, dead: &Dead) -> WorkerReport {
        let template = self.order.template.clone().unwrap_or_default();
        let mut report = report::dead(&self.id, dead, &template, self.signalled);
        if self.is_service() {
            service::complete(&mut report, dead, &self.dir);
        }
        report
    }

    pub(super) fn recorded_death(&self) -> WorkerReport {
        let record = fs::read(self.dir.join(DEATH_FILE)).ok();
        if let Some(Message::Dead(dead)) =
            record.and_then(|frame| tether_shim_protocol::decode(&frame).ok())
        {
            return self.death(&dead);
        }
        match &self.unit_end {
            Some((ending, said)) => report::lost(
                &self.id,
                keeper::systemd::how(*ending).cause(),
                format!("its unit ended without a word of its shim; systemd: {said}"),
            ),
            None => report::lost(
                &self.id,
                DeathCause::Unknown,
                "its shim is gone and left no record: it was killed together with the agent, or the machine was restarted",
            ),
        }
    }

    /// The link broke without a word of death: the shim was killed, and its worker with it; or it had not
    /// even come so far as to have one.
    pub(super) async fn shim_lost(&mut self) -> WorkerReport {
        self.end_unit().await;
        if self.dir.join(DEATH_FILE).exists() {
            return self.recorded_death();
        }
        // Its main process went with the shim; what it daemonised may not have.
        self.end_remains().await;
        if let Some((Ending::OutOfMemory, said)) = &self.unit_end {
            let text = format!("systemd: {said}, as its unit had no memory left");
            return report::lost(&self.id, DeathCause::OutOfMemory, text);
        }
        if let Some(failure) = &self.failure {
            self.on_spawn_failure(failure);
            let template = self.order.template.clone().unwrap_or_default();
            let (text, permanent) = if template.forked_from.is_some() {
                launch::explain_unforked(*failure, b"")
            } else {
                launch::explain(failure.stage, failure.errno, &template)
            };
            return WorkerReport {
                permanent,
                ..report::lost(&self.id, DeathCause::SpawnFailed, text)
            };
        }
        if let Some(cause) = self.deaf {
            let text = "its shim was killed, as it did not hear of that: its program could not be reached, or the shim was stopped";
            return report::lost(&self.id, report::cause(cause, None, None), text);
        }
        let exit = self.shim_exit().await;
        if exit == Some(Exit::Signal(Signal::KILL.as_raw()))
            && let Some(cause) = self.expired()
        {
            let text =
                "its shim could not act on the end of its permission, and the kernel ended both";
            return report::lost(&self.id, cause, text);
        }
        match exit {
            Some(Exit::Signal(signal)) => report::lost(
                &self.id,
                DeathCause::Signaled(signal),
                format!(
                    "its shim was killed by signal {signal} from outside, and the worker with it"
                ),
            ),
            Some(Exit::Code(_)) | None => report::lost(
                &self.id,
                DeathCause::Unknown,
                "its shim went away without a record",
            ),
        }
    }

    /// Ends a worker whose shim does not hear that it is to end, by ending both.
    pub(super) fn end_deaf_shim(&mut self) {
        if let Some((cause, _)) = self.unheard.take()
            && let Some(shim) = &self.shim
            && pidfd_send_signal(shim, Signal::KILL).is_ok()
        {
            self.deaf = Some(cause);
            tracing::warn!(worker = %self.id, ?cause, "Shim does not hear that its worker is to end, and was killed");
        }
    }

    /// What of its permission has ended.
    fn expired(&self) -> Option<DeathCause> {
        let never_started = self.started == Tick::ZERO;
        let reads = !never_started && self.reads_page();
        if let Some(seat) = self.seat.as_ref().filter(|_| reads) {
            return seat.over(BootClock.now());
        }
        let told = if never_started {
            self.launched
        } else {
            self.told
        };
        let (told, now) = (told?, BootClock.now());
        if now >= told.node {
            Some(DeathCause::LeaseExpired)
        } else if now >= told.owner {
            Some(DeathCause::OwnerGone)
        } else {
            None
        }
    }

    /// Ends what no shim answers for any more. Where that takes long, whoever waits for its place is told why.
    pub(super) async fn end_remains(&mut self) {
        let dir = self.dir.clone();
        let mut ending = pin!(remains::end(&dir));
        let ended = match timeout(SAY_UNKILLABLE, &mut ending).await {
            Ok(ended) => ended,
            Err(_) => {
                self.status = report::unkillable(remains::count(&dir));
                self.report(WorkerPhase::Stopping);
                ending.await
            }
        };
        let orphans = &self.ties.ground.metrics.orphans;
        orphans.of(How::Cgroup).inc_by(ended.in_cgroup);
        orphans.of(How::Search).inc_by(ended.found);
    }

    /// Ends what a supervisor has of a worker whose shim is gone.
    pub(super) async fn end_unit(&mut self) {
        self.end_service().await;
        let units = &self.ties.ground.units;
        if let Some(unit) = units.of(&self.id, &self.order) {
            self.unit_end = units.end(&unit).await;
        }
    }

    /// Ends a service whose keeper is gone. Where that takes long, whoever waits for its place is told why.
    pub(super) async fn end_service(&mut self) {
        let way = self.ties.ground.way_to(&self.order.launcher);
        let Ok(Some((errand, _))) = service::errand(&self.id, &self.order, &way) else {
            return;
        };
        if service::may_run(&self.dir, None) {
            "its keeper is gone, and its service is being stopped".clone_into(&mut self.status);
            self.report(WorkerPhase::Stopping);
        }
        while service::may_run(&self.dir, None)
            && let Err(error) = keeper::end(&errand, &self.dir).await
        {
            tracing::error!(worker = %self.id, service = errand.name, %error, "Service of a dead worker cannot be stopped; its place stays empty until it is");
            let status = format!("its service `{}` cannot be stopped: {error}", errand.name);
            if self.status != status {
                self.status = status;
                self.report(WorkerPhase::Stopping);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        keeper::mark_over(&self.dir);
    }

    /// How the shim ended, once its zygote, or whoever came after that, has reaped it.
    async fn shim_exit(&self) -> Option<Exit> {
        let shim = self.shim.as_ref()?;
        let deadline = BootClock.now() + SHIM_REAPED;
        loop {
            match tether_sys::exit_of(shim) {
                Some(exit) => return Some(exit),
                None if BootClock.now() >= deadline => return None,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    /// Reports the death until somebody has recorded it, then lets the shim go and marks the
    /// directory as history.
    pub(super) async fn bury(mut self: Box<Self>, report: WorkerReport, to: Option<ToShim>) {
        if let Some(seat) = self.seat.take() {
            seat.leave();
        }
        let death = report.death.as_ref().map(Death::from);
        self.ties
            .ground
            .fates
            .tell(&self.id, Fate::Dead, death.as_ref());
        let template = self.order.template.as_ref();
        if let Some(template) = template.filter(|it| !it.sockets.is_empty()) {
            let cause = report.death.as_ref().map(|death| death.cause());
            // Nobody comes after one that its pool or its owner has no more use for.
            let linger = match cause {
                Some(wire::DeathCause::OrderedByScale | wire::DeathCause::OrderedByOwner) => None,
                _ => Some(sockets::linger(template)),
            };
            let sockets = &self.ties.ground.sockets;
            sockets.on_death(&self.id.pool, self.id.slot, linger);
        }
        if template.is_some_and(|template| template.forked_from.is_some()) {
            self.ties.forkservers.done(&self.id, &report);
        }
        let _ = self.ties.reports.send(report);
        while let Some(order) = self.ties.orders.recv().await {
            if matches!(order, Order::Forget) {
                journal::close(&self.dir);
                if let Some(mut to) = to {
                    to.send(&Message::Acknowledge).await;
                }
                return;
            }
        }
    }
}
