//! What would become of a call now, and what speaks against each worker: by the same decisions that calls go through.

use tether_clock::Tick;
use tether_types::{PoolName, WorkerId};

use crate::{Ask, Endpoints, Refusal, View, Why, pool::Pool, waiting::Place};

/// How a worker stands with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It could have it.
    Eligible,
    /// It has refused it already.
    Tried,
    /// The call is for another one.
    NotMeant,
    /// It takes none now.
    Refused(Why),
}

/// What would become of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Would {
    /// This one would have it.
    Go(WorkerId),
    /// It would wait.
    Wait,
}

/// A decision with its reasons.
#[derive(Debug)]
pub struct Explained {
    /// What would become of the call, or why nothing would.
    pub would: Result<Would, Refusal>,
    /// Every worker of the pool, in order of their slots.
    pub workers: Vec<(View, Verdict)>,
}

impl Endpoints {
    /// What `pick` would answer a call, and `wait` where it is to wait (E12).
    pub fn explain(&self, pool: &PoolName, ask: &Ask, random: u64, now: Tick) -> Explained {
        let Some(known) = self.pools.get(pool) else {
            return Explained {
                would: Err(Refusal::NoPool),
                workers: Vec::new(),
            };
        };
        let mut seen = Vec::new();
        let decided = known.decide(&ask.target, &ask.tried, random, now, |slot, verdict| {
            seen.push((slot, verdict));
        });
        let would = match decided {
            Ok(slot) => {
                let mut living = known.living(pool);
                let chosen = living.find(|worker| worker.slot == slot);
                chosen
                    .map(Would::Go)
                    .ok_or(Refusal::NoWorker(Why::NoneReady))
            }
            Err(Why::Busy) => {
                let most = self.most_waiting(pool);
                known.may_wait(ask, most, now).map(|_| Would::Wait)
            }
            Err(why) => Err(Refusal::NoWorker(why)),
        };
        let workers = known.lives().map(|live| {
            let slot = live.endpoint.worker.slot;
            let seen = seen.iter().find(|(of, _)| *of == slot);
            let verdict = seen.map_or(Verdict::NotMeant, |(_, verdict)| *verdict);
            (live.view(known, now), verdict)
        });
        Explained {
            would,
            workers: workers.collect(),
        }
    }
}

impl Pool {
    /// Where a call may wait that nobody can take at once.
    pub(crate) fn may_wait(&self, ask: &Ask, most: usize, now: Tick) -> Result<Place, Refusal> {
        if !ask.target.waits() {
            return Err(Refusal::NoWorker(Why::Busy));
        }
        let slot = self.home(&ask.target, now);
        self.waiting
            .may_wait(ask, slot, most, now)
            .map_err(Refusal::Overloaded)
    }
}
