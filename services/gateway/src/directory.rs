//! What the gateway knows of workers, shared by every call: the endpoint set, and a connection for
//! each endpoint.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tether_breaker::Outcome;
use tether_clock::{BootClock, Clock as _};
use tether_endpoints::{Endpoints, Gone, Target, Ticket, Update};
use tether_types::{Death, PoolName, WorkerId};
use tokio::sync::{Notify, watch};

use crate::{config::Config, explain::Refused, upstream::Upstream};

#[derive(Debug)]
pub(crate) struct Directory {
    known: Mutex<Known>,
    /// Counts what discovery has told; zero while it has told nothing.
    told: watch::Sender<u64>,
    /// A call that somebody wants to know of is over, or somebody wants to know of more workers.
    counted: Notify,
    connect_timeout: Duration,
}

#[derive(Debug)]
struct Known {
    endpoints: Endpoints,
    upstreams: HashMap<WorkerId, Arc<Upstream>>,
}

/// How discovery's word is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Snapshot,
    Change,
}

impl Directory {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            known: Mutex::new(Known {
                endpoints: Endpoints::new(config.breaker.terms(), config.breaker.codes()),
                upstreams: HashMap::new(),
            }),
            told: watch::Sender::new(0),
            counted: Notify::new(),
            connect_timeout: config.connect_timeout,
        }
    }

    /// Takes in what discovery told.
    pub(crate) fn apply(&self, extent: Extent, update: Update, source_age: Duration) {
        let counts = update.upserts.iter().any(|endpoint| endpoint.counted);
        {
            let mut known = self.lock();
            known.endpoints.on_heard(source_age, BootClock.now());
            let gone = match extent {
                Extent::Snapshot => known.endpoints.apply_snapshot(update),
                Extent::Change => known.endpoints.apply_change(update),
            };
            for Gone { worker, died } in gone {
                // Calls under way on a worker that left alive may still end well.
                if let Some(upstream) = known.upstreams.remove(&worker)
                    && died
                {
                    upstream.sever();
                }
            }
        }
        self.told.send_modify(|count| *count += 1);
        if counts {
            self.counted.notify_one();
        }
    }

    /// How old the knowledge is; `None` while discovery has told nothing.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.lock().endpoints.age(BootClock.now())
    }

    /// Waits for discovery's first word.
    pub(crate) async fn informed(&self, within: Duration) -> bool {
        let mut told = self.told.subscribe();
        let first = told.wait_for(|count| *count > 0);
        tokio::time::timeout(within, first).await.is_ok()
    }

    /// Chooses a worker and counts a call on it.
    pub(crate) fn pick(
        &self,
        pool: &PoolName,
        target: &Target,
        tried: &[WorkerId],
    ) -> Result<(Ticket, Arc<Upstream>), Box<Refused>> {
        let mut known = self.lock();
        let Known {
            endpoints,
            upstreams,
        } = &mut *known;
        let pick = endpoints
            .pick(pool, target, tried, fastrand::u64(..), BootClock.now())
            .map_err(|refusal| {
                let death = match target {
                    Target::Worker { slot, .. } => {
                        endpoints
                            .last_death(pool, *slot)
                            .map(|(incarnation, death)| {
                                let worker = WorkerId {
                                    pool: pool.clone(),
                                    slot: *slot,
                                    incarnation,
                                };
                                (worker, death)
                            })
                    }
                    Target::Any | Target::Affinity(_) => endpoints.latest_death(pool),
                };
                Box::new(Refused {
                    refusal,
                    pools: endpoints.pools().cloned().collect(),
                    death: death.map(|(worker, death)| (worker, death.clone())),
                })
            })?;
        let worker = pick.ticket.worker();
        let known = upstreams
            .get(worker)
            .filter(|upstream| *upstream.address() == pick.address);
        let upstream = known.cloned().unwrap_or_else(|| {
            let upstream = Arc::new(Upstream::new(pick.address, self.connect_timeout));
            upstreams.insert(worker.clone(), Arc::clone(&upstream));
            upstream
        });
        Ok((pick.ticket, upstream))
    }

    /// Chooses a worker as soon as what discovery tells leaves one to choose.
    pub(crate) async fn another(
        &self,
        pool: &PoolName,
        target: &Target,
        tried: &[WorkerId],
    ) -> (Ticket, Arc<Upstream>) {
        let mut told = self.told.subscribe();
        loop {
            told.borrow_and_update();
            if let Ok(pick) = self.pick(pool, target, tried) {
                return pick;
            }
            // Fails only without a directory, and that is borrowed here.
            let _ = told.changed().await;
        }
    }

    /// A call was answered with this gRPC code.
    pub(crate) fn on_code(&self, ticket: &mut Ticket, code: u32) {
        self.lock().endpoints.on_code(ticket, code, BootClock.now());
    }

    /// It is known what a call says about its worker.
    pub(crate) fn on_outcome(&self, ticket: &mut Ticket, outcome: Outcome) {
        self.lock()
            .endpoints
            .on_outcome(ticket, outcome, BootClock.now());
    }

    /// A call is over.
    pub(crate) fn release(&self, ticket: Ticket) {
        let counted = self.lock().endpoints.release(ticket, BootClock.now());
        if counted {
            self.counted.notify_one();
        }
    }

    /// Calls that workers have served, where somebody wants to know.
    pub(crate) fn counts(&self) -> Vec<(WorkerId, u64)> {
        self.lock().endpoints.counted().collect()
    }

    /// Waits until the counts may be others than at the last wait. For one caller alone.
    pub(crate) async fn counted(&self) {
        self.counted.notified().await;
    }

    /// Whether a worker is gone or about to go.
    pub(crate) fn is_leaving(&self, worker: &WorkerId) -> bool {
        let known = self.lock();
        !known.endpoints.is_alive(worker) || known.endpoints.is_draining(worker)
    }

    /// Waits to be told how a worker died; `None` when nobody says so in time.
    pub(crate) async fn death(&self, worker: &WorkerId, within: Duration) -> Option<Death> {
        let mut told = self.told.subscribe();
        let word = async {
            loop {
                told.borrow_and_update();
                if let Some(death) = self.lock().endpoints.death_of(worker) {
                    return Some(death.clone());
                }
                told.changed().await.ok()?;
            }
        };
        tokio::time::timeout(within, word).await.ok().flatten()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
