//! What the puppet orders of its agent, and hears of it.

use std::time::Duration;

use anyhow::Context as _;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{
    common::{self, DeathCause, ProcessIdentity, WorkerPhase},
    node::{ForgetWorker, Order, StartWorker, StopWorker, WorkerReport, order},
    pool::{
        Listen, ListeningSocket, Readiness, ReadinessKind, Restart, RestartMode, Stop, Template,
    },
};

use super::{Node, PATIENCE, Pool, WORKER, pools};
use crate::witness::Witness;

/// What became of a start.
#[derive(Debug)]
pub(crate) enum Outcome {
    Ready(WorkerReport),
    Dead(WorkerReport),
}

impl Node {
    /// Orders a worker with this habit; its number.
    pub(crate) fn order_start(&mut self, habit: &str, pool: Pool) -> u64 {
        let template = template(
            WORKER,
            self.words(habit, "{socket}"),
            ReadinessKind::Connect,
        );
        self.order_template(template, pool)
    }

    /// Orders any program as a worker.
    pub(crate) fn order_program(
        &mut self,
        command: &str,
        args: Vec<String>,
        ready: ReadinessKind,
    ) -> u64 {
        self.order_template(template(command, args, ready), Pool::Free)
    }

    /// Orders a worker that is started once somebody connects to [`Self::callers`].
    pub(crate) fn order_on_demand(&mut self) -> u64 {
        let own = self.path(&format!("own-{}.sock", self.next));
        let args = self.words("called", &own.display().to_string());
        let template = Template {
            sockets: vec![ListeningSocket {
                name: "callers".to_owned(),
                address: format!("unix:{}", self.callers().display()),
                on_demand: true,
            }],
            ..template(WORKER, args, ReadinessKind::Started)
        };
        self.order_template(template, Pool::Free)
    }

    /// Where workers on demand are called.
    pub(crate) fn callers(&self) -> std::path::PathBuf {
        self.path("callers.sock")
    }

    /// What a worker of the kill matrix is started with.
    fn words(&self, habit: &str, address: &str) -> Vec<String> {
        let witness = self.path("witness").display().to_string();
        let words = ["worker", habit, &witness, "{incarnation}", address, ""];
        words.map(str::to_owned).to_vec()
    }

    fn order_template(&mut self, template: Template, pool: Pool) -> u64 {
        let number = self.next;
        self.next += 1;
        if pool != Pool::Free {
            self.elsewhere.insert(number, pool);
        }
        let grace_ms = u64::try_from(pool.grace().as_millis()).ok();
        let start = StartWorker {
            worker: Some(self.worker(number)),
            template: Some(Template {
                stop: Some(Stop {
                    grace_ms,
                    signal: 0,
                }),
                ..template
            }),
            owner: pool.owner().to_owned(),
            kill_on_owner_exit: pool.ends_with_owner(),
            kill_on_agent_loss: pool.ends_with_agent(),
            ..StartWorker::default()
        };
        self.order(order::Order::Start(start));
        number
    }

    /// Orders the end of a worker.
    pub(crate) fn order_stop(&self, number: u64) {
        self.order(order::Order::Stop(StopWorker {
            worker: Some(self.worker(number)),
            cause: DeathCause::OrderedByOperator.into(),
            grace_ms: 0,
        }));
    }

    /// Says that a death is recorded.
    pub(crate) fn forget(&mut self, number: u64) {
        self.order(order::Order::Forget(ForgetWorker {
            worker: Some(self.worker(number)),
        }));
        self.mail.retain(|report| !is_of(report, number));
        self.elsewhere.remove(&number);
    }

    /// Lets all workers live, whatever was said before.
    pub(crate) fn permit(&self) {
        self.puppet.grant(pools::grant(None));
    }

    /// Names the process of the coupled workers' owner.
    pub(crate) fn own(&self, process: ProcessIdentity) {
        self.puppet.grant(pools::grant(Some(process)));
        self.puppet.order(Vec::new());
    }

    /// Says no more of the coupled workers, as of those whose owner is not heard of.
    pub(crate) fn disown(&self) {
        self.puppet.grant(pools::grant_without_coupled());
    }

    fn order(&self, order: order::Order) {
        self.puppet.order(vec![Order { order: Some(order) }]);
    }

    /// Starts a worker and waits for what comes of it.
    pub(crate) async fn begin(&mut self, habit: &str) -> anyhow::Result<(u64, Outcome)> {
        let number = self.order_start(habit, Pool::Free);
        let outcome = self.outcome(number).await;
        Ok((number, outcome.context("a start without an outcome")?))
    }

    /// Waits until a worker is ready, or dead and forgotten.
    pub(crate) async fn outcome(&mut self, number: u64) -> anyhow::Result<Outcome> {
        loop {
            let report = self.report(number).await?;
            match report.phase() {
                WorkerPhase::Ready => return Ok(Outcome::Ready(report)),
                WorkerPhase::Dead => {
                    self.forget(number);
                    return Ok(Outcome::Dead(report));
                }
                _ => {}
            }
        }
    }

    /// Waits for the death of a worker, and forgets it.
    pub(crate) async fn death(&mut self, number: u64) -> anyhow::Result<WorkerReport> {
        loop {
            let report = self.report(number).await.context("a lost death")?;
            if report.phase() == WorkerPhase::Dead {
                self.forget(number);
                return Ok(report);
            }
        }
    }

    /// The next report about a worker; those about others are kept.
    pub(crate) async fn report(&mut self, number: u64) -> anyhow::Result<WorkerReport> {
        let kept = self.mail.iter().position(|report| is_of(report, number));
        if let Some(at) = kept {
            return Ok(self.mail.remove(at));
        }
        loop {
            let (_, report) = self.puppet.report(PATIENCE).await?;
            if is_of(&report, number) {
                return Ok(report);
            }
            self.mail.push(report);
        }
    }

    /// Whether anything of this worker was seen to live and not to end.
    pub(crate) fn lives(&self, number: u64) -> bool {
        let label = number.to_string();
        let seen = self.witness.of(&label);
        seen.get(&label).is_some_and(|seen| seen.gone.is_none())
    }

    /// Waits until a worker has taken up its habit; tells whether it did, and not that it was heard to be dead.
    pub(crate) async fn serves(&mut self, number: u64, within: Duration) -> bool {
        let label = number.to_string();
        let is_ready = |witness: &Witness| {
            let seen = witness.of(&label);
            seen.get(&label).is_some_and(|seen| seen.ready)
        };
        let Self {
            witness,
            puppet,
            mail,
            ..
        } = self;
        let heard_dead = async {
            while let Ok((_, report)) = puppet.report(within).await {
                let is_dead = report.phase() == WorkerPhase::Dead && is_of(&report, number);
                mail.push(report);
                if is_dead {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            ready = witness.until(within, is_ready) => ready,
            () = heard_dead => false,
        }
    }

    /// Waits for the end of all that lives of a worker; tells whether it came by then.
    pub(crate) async fn is_gone_by(&self, number: u64, at: Tick) -> bool {
        let left = at.since(BootClock.now());
        self.witness.until(left, |_| !self.lives(number)).await
    }

    /// A worker by its number: each has a place of its own.
    fn worker(&self, number: u64) -> common::WorkerRef {
        let pool = self.elsewhere.get(&number).copied();
        common::WorkerRef {
            pool: pool.unwrap_or(Pool::Free).name().to_owned(),
            slot: u32::try_from(number).unwrap_or(u32::MAX),
            incarnation: number,
        }
    }
}

fn is_of(report: &WorkerReport, number: u64) -> bool {
    let worker = report.worker.as_ref();
    worker.is_some_and(|worker| worker.incarnation == number)
}

fn template(command: &str, args: Vec<String>, ready: ReadinessKind) -> Template {
    Template {
        command: command.to_owned(),
        args,
        listen: Listen::Unix.into(),
        readiness: Some(Readiness {
            kind: ready.into(),
            timeout_ms: 30_000,
            what: String::new(),
        }),
        restart: Some(Restart {
            mode: RestartMode::Never.into(),
            ..Restart::default()
        }),
        ..Template::default()
    }
}
