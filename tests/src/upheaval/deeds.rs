//! What is done to a cluster while calls go on, at random but the same for the same seed.

use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tether_proto::{common::WorkerPhase, worker::NodeState};
use tether_tests::{
    clerk::{dice::Dice, now},
    kill,
};
use tokio::time::{Instant, sleep};

use crate::{
    place::{Outsider, Place, SECOND_NODE},
    rows::say,
    verdict::{Kill, NOTICED, Whom},
};

/// Workers of the pool that calls are reckoned for.
pub(crate) const SIZE: u32 = 6;

/// Outsiders; one at least stays registered.
pub(crate) const OUTSIDERS: usize = 3;

/// On average, between two deeds.
const BETWEEN: f64 = 0.5;

/// Something that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    KillWorker,
    KillOutsider,
    Churn,
    Scale,
    Roll,
    DrainNode,
    StopGateway,
    KillGateway,
}

/// How often each is done beside the others.
const DEEDS: [(Deed, usize); 8] = [
    (Deed::KillWorker, 4),
    (Deed::KillOutsider, 2),
    (Deed::Churn, 3),
    (Deed::Scale, 2),
    (Deed::Roll, 1),
    (Deed::DrainNode, 1),
    (Deed::StopGateway, 1),
    (Deed::KillGateway, 1),
];

/// Whoever does it.
pub(crate) struct Upheaval {
    dice: Dice,
    pub(crate) kills: Vec<Kill>,
    pub(crate) done: usize,
    size: u32,
    edition: u32,
}

impl Upheaval {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            dice: Dice::new(seed),
            kills: Vec::new(),
            done: 0,
            size: SIZE,
            edition: 0,
        }
    }

    /// Goes on for this long, and leaves all as it was. In the last third the first gateway is left alone, as something
    /// has to live for its growth to be seen.
    pub(crate) async fn rage(
        &mut self,
        place: &mut Place,
        outsiders: &mut [Outsider],
        span: Duration,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        while start.elapsed() < span {
            let spared = start.elapsed() > span * 2 / 3;
            let deed = self.next();
            say(&format!(
                "{:>6.1} s {deed:?}",
                start.elapsed().as_secs_f64()
            ));
            let did = self.carry_out(deed, place, outsiders, spared).await;
            did.with_context(|| format!("{deed:?}"))?;
            self.done += 1;
            let pause = self.dice.exponential(BETWEEN);
            sleep(Duration::from_secs_f64(pause)).await;
        }
        self.size = SIZE;
        place.apply(self.size, self.edition).await?;
        place.settled(self.size, |_| true).await
    }

    fn next(&mut self) -> Deed {
        let all: Vec<_> = DEEDS
            .iter()
            .flat_map(|(deed, times)| std::iter::repeat_n(*deed, *times))
            .collect();
        all[self.dice.below(all.len())]
    }

    async fn carry_out(
        &mut self,
        deed: Deed,
        place: &mut Place,
        outsiders: &mut [Outsider],
        spared: bool,
    ) -> anyhow::Result<()> {
        let outsider = &mut outsiders[self.dice.below(OUTSIDERS)];
        let number = if spared { 1 } else { self.dice.below(2) };
        match deed {
            Deed::KillWorker => self.kill_worker(place).await,
            Deed::KillOutsider => {
                let Some((name, pid)) = outsider.worker() else {
                    return Ok(());
                };
                self.kill(Whom::Worker(name), pid);
                place.revive(outsider).await
            }
            Deed::Churn => {
                outsider.deregister().await?;
                sleep(Duration::from_secs_f64(self.dice.exponential(BETWEEN))).await;
                place.register(outsider).await
            }
            Deed::Scale => {
                self.size = SIZE - 1 + u32::try_from(self.dice.below(4))?;
                place.apply(self.size, self.edition).await?;
                place.settled(self.size, |_| true).await
            }
            Deed::Roll => {
                let before = place.workers().await.context("no workers")?;
                self.edition += 1;
                place.apply(self.size, self.edition).await?;
                let is_new = |one: &tether_proto::worker::Worker| {
                    before.iter().all(|other| other.worker != one.worker)
                };
                place.settled(self.size, is_new).await
            }
            Deed::DrainNode => {
                place.set_second_node(NodeState::Drained).await?;
                place
                    .settled(self.size, |worker| worker.node != SECOND_NODE)
                    .await?;
                place.set_second_node(NodeState::Open).await
            }
            Deed::StopGateway => {
                place.replace_gateway(number, Signal::TERM).await?;
                Ok(())
            }
            Deed::KillGateway => {
                let at = now();
                let until = place.replace_gateway(number, Signal::KILL).await?;
                self.kills.push(Kill {
                    at,
                    until,
                    whom: Whom::Gateway(number),
                });
                Ok(())
            }
        }
    }

    async fn kill_worker(&mut self, place: &Place) -> anyhow::Result<()> {
        let mut workers = place.workers().await.context("no workers")?;
        workers.retain(|worker| worker.phase() == WorkerPhase::Ready && worker.pid > 0);
        let victim = &workers[self.dice.below(workers.len())];
        let reference = victim.worker.clone().context("it has no name")?;
        let id = format!(
            "{}/{}.{}",
            reference.pool, reference.slot, reference.incarnation
        );
        self.kill(Whom::Worker(id), victim.pid);
        let is_other =
            |worker: &tether_proto::worker::Worker| worker.worker.as_ref() != Some(&reference);
        place.settled(self.size, is_other).await
    }

    fn kill(&mut self, whom: Whom, pid: u32) {
        let at = now();
        self.kills.push(Kill {
            at,
            until: at + NOTICED,
            whom,
        });
        kill(pid, Signal::KILL);
    }
}
