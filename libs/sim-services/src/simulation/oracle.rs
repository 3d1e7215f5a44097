//! Judges a world by true time, and by who is really alive.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use tether_types::{DeathCause, WorkerId};

use super::{
    census::Said,
    clocks::Host,
    software::{NODE_TTL, OWNER_TIMEOUT, POOLS},
    tap::Burial,
};

/// Between two looks, and on its way.
const LOOK: Duration = Duration::from_millis(60);

/// What is true of a node in one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node {
    pub(crate) host: Host,
    /// Whether its agent runs and can have a word with an arbiter, both ways.
    pub(crate) heard: bool,
}

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    /// When a node could last have had word from an arbiter.
    heard: BTreeMap<Host, Duration>,
    /// When owner and leader were last there for workers' ends to be counted from.
    owner: Duration,
    alive: BTreeSet<(Host, String)>,
    /// With why, in truth.
    seen_dead: BTreeMap<(Host, String), DeathCause>,
    /// Deaths as recorded: by which record, and why.
    buried: BTreeMap<String, (String, DeathCause)>,
    /// Whether nothing that goes wrong lasts long enough to end a worker.
    pub(crate) gentle: bool,
    pub(crate) births: u64,
    pub(crate) deaths: u64,
    /// What happened, line by line.
    pub(crate) trace: String,
}

impl Oracle {
    /// Something happened.
    pub(crate) fn tell(&mut self, now: Duration, what: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.trace, "{:>9.3} {what}", now.as_secs_f64());
    }

    /// Owner and leader are there, or a leader has come that takes all for there for a term.
    pub(crate) fn on_owner(&mut self, now: Duration) {
        self.owner = now;
    }

    /// Looks at one node's processes.
    pub(crate) fn on_node(
        &mut self,
        now: Duration,
        node: Node,
        all: &[(WorkerId, Option<DeathCause>)],
    ) -> Result<(), String> {
        if node.heard {
            self.heard.insert(node.host, now);
        }
        for (id, death) in all {
            let key = (node.host, id.to_string());
            match death {
                None => {
                    if self.alive.insert(key) {
                        self.births += 1;
                        self.tell(now, &format!("{id} is alive on {}", node.host));
                    }
                    self.permitted(now, node.host, id)?;
                }
                Some(cause) => {
                    self.alive.remove(&key);
                    if self.seen_dead.insert(key, *cause).is_none() {
                        self.deaths += 1;
                        self.tell(now, &format!("{id} on {} died: {cause:?}", node.host));
                        if self.gentle {
                            return Err(format!(
                                "P3: {id} ended by {cause:?} though nothing lasted long enough"
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// A death was recorded. P2: of a worker that is dead, as its place is filled again from here on. P4: once.
    pub(crate) fn on_burial(&mut self, now: Duration, burial: Burial) -> Result<(), String> {
        let Burial {
            record,
            worker,
            cause,
        } = burial;
        let id = worker.to_string();
        self.tell(now, &format!("{id} is recorded as dead: {cause:?}"));
        if let Some((host, _)) = self.alive.iter().find(|(_, alive)| *alive == id) {
            return Err(format!(
                "P2: {id} is recorded as dead ({cause:?}), and lives on {host}"
            ));
        }
        match self.buried.insert(id.clone(), (record.clone(), cause)) {
            Some((earlier, _)) if earlier != record => Err(format!(
                "P4: the death of {id} is recorded in {earlier} and in {record}"
            )),
            _ => Ok(()),
        }
    }

    /// P4: each death is recorded by now, with its cause.
    fn told(&self) -> Result<(), String> {
        for ((host, id), truth) in &self.seen_dead {
            let recorded = self.buried.get(id).map(|(_, cause)| *cause);
            if !recorded.is_some_and(|cause| tells(cause, *truth)) {
                return Err(format!(
                    "P4: {id} died on {host} by {truth:?}, and recorded is {recorded:?}"
                ));
            }
        }
        Ok(())
    }

    /// P1: what a worker was granted was granted in answer to a beat that could be answered.
    fn permitted(&self, now: Duration, host: Host, id: &WorkerId) -> Result<(), String> {
        let of_pool = |(name, _, _): &&(&str, u32, Duration)| *name == id.pool.as_str();
        let grace = POOLS.iter().find(of_pool).map(|(_, _, grace)| *grace);
        let heard = self.heard.get(&host).copied().unwrap_or_default();
        let end = heard + NODE_TTL + grace.unwrap_or_default() + LOOK;
        if now > end {
            return Err(format!(
                "P1: {id} lives on {host}, which was last heard at {heard:?} and had until {end:?}"
            ));
        }
        // What it has of its owner was counted from an earlier word of the arbiter.
        let end = self.owner + OWNER_TIMEOUT * 102 / 100 + Duration::from_secs(1);
        if now > end {
            return Err(format!(
                "P1: {id} lives, and its owner was last there at {:?}",
                self.owner
            ));
        }
        Ok(())
    }

    /// P2: one incarnation of a slot.
    pub(crate) fn single(&self) -> Result<(), String> {
        let mut slots: BTreeMap<&str, &(Host, String)> = BTreeMap::new();
        for worker in &self.alive {
            let slot = worker
                .1
                .rsplit_once('.')
                .map_or(worker.1.as_str(), |it| it.0);
            if let Some(other) = slots.insert(slot, worker) {
                return Err(format!("P2: {other:?} and {worker:?} are alive"));
            }
        }
        Ok(())
    }

    /// P5: after all is healed, who is there is who the ledger says is there, and nobody is missing.
    pub(crate) fn settled(&self, said: Option<&Said>) -> Result<(), String> {
        self.told()?;
        let said = said.ok_or("P5: the ledger does not say who is there")?;
        let alive: BTreeSet<_> = self.alive.iter().map(|(_, id)| id.clone()).collect();
        let wanted: u32 = POOLS.iter().map(|(_, size, _)| size).sum();
        if said.ready != alive || !said.other.is_empty() || alive.len() != wanted as usize {
            return Err(format!(
                "P5: alive are {alive:?}, {wanted} are wanted, and the ledger says {said:?}"
            ));
        }
        Ok(())
    }
}

/// Whether a record tells the truth: of a node that was lost the ledger knows only that its lease is over.
fn tells(recorded: DeathCause, truth: DeathCause) -> bool {
    recorded == truth || recorded == DeathCause::LeaseExpired
}
