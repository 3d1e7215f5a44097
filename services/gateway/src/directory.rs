//! What the gateway knows of workers, shared by the calls of all lanes: the endpoint set, and who waits for one of them.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tether_breaker::{Outcome, RetryTerms};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_endpoints::{
    Ages, Ask, Claim, Endpoints, Gone, Pick, Refusal, Target, Ticket, Update, Why,
};
use tether_types::{Address, Death, PoolName, WorkerId};
use tokio::sync::{Notify, watch};

use crate::{
    config::Config,
    explain::Refused,
    fates::Agents,
    links::Links,
    waiters::{Place, Waiters, Word},
};

/// The least time between two looks of one who waits.
const SOON: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub(crate) struct Directory {
    known: Mutex<Known>,
    /// Whether discovery has told anything, for calls, which all ask.
    is_informed: AtomicBool,
    /// Counts what discovery has told; zero while it has told nothing.
    told: watch::Sender<u64>,
    /// A call that somebody wants to know of is over, or somebody wants to know of more workers.
    counted: Notify,
    /// Counts what happens to workers and calls while somebody watches.
    pub(crate) moves: watch::Sender<u64>,
    /// Counts orders that were given.
    pub(crate) ordered: watch::Sender<u64>,
    links: Vec<Arc<Links>>,
    pub(crate) agents: Agents,
}

#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) endpoints: Endpoints,
    pub(crate) waiters: Waiters,
}

/// A worker for a call.
#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) ticket: Ticket,
    pub(crate) address: Arc<Address>,
    pub(crate) tls: bool,
}

/// Whether a call may go on.
enum Turn {
    Now(Chosen),
    Waits(Place),
}

/// How discovery's word is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Snapshot,
    Change,
}

impl Directory {
    /// A directory that knows nothing yet, of lanes with these connections.
    pub(crate) fn new(config: &Config, links: Vec<Arc<Links>>) -> Self {
        Self {
            known: Mutex::new(Known {
                endpoints: Endpoints::new(config.outlook(), config.queue.max_calls)
                    .with(config.pools.adaptive()),
                waiters: Waiters::default(),
            }),
            is_informed: AtomicBool::new(false),
            told: watch::Sender::new(0),
            counted: Notify::new(),
            moves: watch::Sender::new(0),
            ordered: watch::Sender::new(0),
            links,
            agents: Agents::default(),
        }
    }

    /// Takes in what discovery told.
    pub(crate) fn apply(&self, extent: Extent, update: Update, ages: Ages) {
        let counts = update.upserts.iter().any(|endpoint| endpoint.counted);
        {
            let mut known = self.lock();
            known.endpoints.on_heard(ages, BootClock.now());
            let gone = match extent {
                Extent::Snapshot => known.endpoints.apply_snapshot(update),
                Extent::Change => known.endpoints.apply_change(update),
            };
            for Gone { worker, died } in gone {
                // Calls under way on a worker that left alive may still end well.
                for links in &self.links {
                    links.remove(&worker, died);
                }
            }
            known.settle_all();
        }
        self.is_informed.store(true, Ordering::Release);
        self.told();
        self.moved();
        if counts {
            self.counted.notify_one();
        }
    }

    /// Workers of this pool are on the way, and may take so long.
    pub(crate) fn expect(&self, pool: &PoolName, within: Duration) {
        self.lock().endpoints.expect(pool, BootClock.now() + within);
    }

    /// Discovery is away.
    pub(crate) fn on_silence(&self) {
        self.lock().endpoints.on_silence();
    }

    /// Wakes who waits for a death or for another worker.
    pub(crate) fn told(&self) {
        self.told.send_modify(|count| *count += 1);
    }

    pub(crate) fn links(&self) -> &[Arc<Links>] {
        &self.links
    }

    /// Whether discovery has told anything.
    pub(crate) fn is_informed(&self) -> bool {
        self.is_informed.load(Ordering::Acquire)
    }

    /// How long calls of a pool wait, where that is ordered.
    fn ordered_wait(&self, pool: &PoolName) -> Option<Duration> {
        self.lock().endpoints.ordered_wait(pool)
    }

    /// Whether somebody is there of a pool who does not go.
    pub(crate) fn has_staying(&self, pool: &PoolName) -> bool {
        self.lock().endpoints.has_staying(pool)
    }

    /// Waits for discovery's first word.
    pub(crate) async fn informed(&self, within: Duration) -> bool {
        let mut told = self.told.subscribe();
        let first = told.wait_for(|count| *count > 0);
        tokio::time::timeout(within, first).await.is_ok()
    }

    /// Chooses a worker and counts a call on it, once one is free; `wait` is the longest that may take.
    pub(crate) async fn choose(
        self: &Arc<Self>,
        pool: &PoolName,
        ask: &Ask,
        wait: Duration,
    ) -> Word {
        let turn = self.choose_or_wait(pool, ask);
        self.moved();
        match turn? {
            Turn::Now(chosen) => Ok(chosen),
            Turn::Waits(mut place) => {
                let wait = self.ordered_wait(pool).unwrap_or(wait);
                let told = Box::pin(tokio::time::timeout(wait, self.turn(pool, &mut place)));
                told.await.unwrap_or_else(|_| {
                    let endpoints = &mut self.lock().endpoints;
                    // As whoever comes now: those who wait are before it, or nobody has come.
                    let (random, now) = (fastrand::u64(..), BootClock.now());
                    match endpoints.pick(pool, &ask.target, &ask.tried, random, now) {
                        Ok(pick) => Ok(pick.into()),
                        Err(refusal) => Err(refused(endpoints, pool, &ask.target, refusal)),
                    }
                })
            }
        }
    }

    /// Waits for the turn of a call. A worker that was left alone may be tried again without anything else happening,
    /// so those who wait look when that time has come: the first of them for all.
    async fn turn(&self, pool: &PoolName, place: &mut Place) -> Word {
        loop {
            let due = self.lock().look(pool);
            let pause = due.map(|at| at.since(BootClock.now()));
            tokio::select! {
                biased;
                // The sender is kept until it has told something.
                Ok(word) = &mut place.turn => return word,
                () = tokio::time::sleep(pause.unwrap_or_default().max(SOON)) => {}
            }
        }
    }

    fn choose_or_wait(self: &Arc<Self>, pool: &PoolName, ask: &Ask) -> Result<Turn, Box<Refused>> {
        let mut known = self.lock();
        let Known { endpoints, waiters } = &mut *known;
        let now = BootClock.now();
        let random = fastrand::u64(..);
        let refusal = match endpoints.pick(pool, &ask.target, &ask.tried, random, now) {
            Ok(pick) => return Ok(Turn::Now(pick.into())),
            Err(refusal) => refusal,
        };
        let asked = match refusal {
            Refusal::NoWorker(Why::Busy) => endpoints.wait(pool, ask.clone(), now),
            refusal => Err(refusal),
        };
        let number = asked.map_err(|refusal| refused(endpoints, pool, &ask.target, refusal))?;
        let turn = waiters.add(pool, number, ask.target.clone());
        // One that matters more may have taken another's place, and a breaker's time may be over.
        waiters.settle(pool, endpoints);
        Ok(Turn::Waits(Place {
            directory: Arc::clone(self),
            pool: pool.clone(),
            number,
            turn,
        }))
    }

    /// Chooses a worker as soon as what discovery tells leaves one to choose.
    pub(crate) async fn another(
        self: &Arc<Self>,
        pool: &PoolName,
        ask: &Ask,
        wait: Duration,
    ) -> Chosen {
        let mut told = self.told.subscribe();
        loop {
            told.borrow_and_update();
            if let Ok(chosen) = self.choose(pool, ask, wait).await {
                return chosen;
            }
            // Fails only without a directory, and that is borrowed here.
            let _ = told.changed().await;
        }
    }

    /// The answer of a call has begun; `counts` says whether its worker has worked for it.
    pub(crate) fn on_answered(&self, ticket: &mut Ticket, counts: bool) {
        let now = BootClock.now();
        if !ticket.is_limited() {
            return ticket.on_answered(now);
        }
        let mut known = self.lock();
        known.endpoints.on_answered(ticket, counts, now);
        known.settle(&ticket.worker().pool);
    }

    /// A call was answered with this gRPC code.
    pub(crate) fn on_code(&self, ticket: &mut Ticket, code: u32) {
        let mut known = self.lock();
        known.endpoints.on_code(ticket, code, BootClock.now());
        known.settle(&ticket.worker().pool);
        drop(known);
        self.moved();
    }

    /// A call is over that was answered with this gRPC code.
    pub(crate) fn over(&self, mut ticket: Ticket, code: u32) {
        self.end(|endpoints, now| {
            endpoints.on_code(&mut ticket, code, now);
            ticket
        });
    }

    /// It is known what a call says about its worker.
    pub(crate) fn on_outcome(&self, ticket: &mut Ticket, outcome: Outcome) {
        let mut known = self.lock();
        known.endpoints.on_outcome(ticket, outcome, BootClock.now());
        known.settle(&ticket.worker().pool);
        drop(known);
        self.moved();
    }

    /// A worker has not begun with a call and will not.
    pub(crate) fn on_refused(&self, ticket: &mut Ticket) {
        let mut known = self.lock();
        known.endpoints.on_refused(ticket, BootClock.now());
        known.settle(&ticket.worker().pool);
        drop(known);
        self.moved();
    }

    /// Of two workers that had a call, this one's answer came first.
    pub(crate) fn on_won(&self, claim: &Claim) {
        let mut known = self.lock();
        known.endpoints.on_won(claim, BootClock.now());
        known.settle(claim.pool());
    }

    /// Nobody waits any more for the answer to a call.
    pub(crate) fn on_late(&self, ticket: &mut Ticket) {
        let mut known = self.lock();
        known.endpoints.on_late(ticket, BootClock.now());
        known.settle(&ticket.worker().pool);
    }

    /// A call of a pool is made that may be made again.
    pub(crate) fn on_repeatable(&self, pool: &PoolName) {
        if let Some(retries) = self.lock().endpoints.retries(pool) {
            retries.on_call(BootClock.now());
        }
    }

    /// Whether one of those may be made again.
    pub(crate) fn may_repeat(&self, pool: &PoolName, terms: RetryTerms) -> bool {
        let mut known = self.lock();
        let retries = known.endpoints.retries(pool);
        retries.is_some_and(|retries| retries.draw(terms, BootClock.now()))
    }

    /// Chooses a worker for a call to be made once more, where one is free and that may be.
    pub(crate) fn spare(&self, pool: &PoolName, ask: &Ask, terms: RetryTerms) -> Option<Chosen> {
        let mut known = self.lock();
        let endpoints = &mut known.endpoints;
        let now = BootClock.now();
        let random = fastrand::u64(..);
        let picked = endpoints.pick(pool, &ask.target, &ask.tried, random, now);
        let pick = picked.ok()?;
        let granted = endpoints
            .retries(pool)
            .is_some_and(|retries| retries.draw(terms, now));
        if !granted {
            endpoints.release(pick.ticket, now);
            return None;
        }
        Some(pick.into())
    }

    /// A call is over.
    pub(crate) fn release(&self, ticket: Ticket) {
        self.end(|_, _| ticket);
    }

    /// A call is over, of which `last` says what there is to say.
    fn end(&self, last: impl FnOnce(&mut Endpoints, Tick) -> Ticket) {
        let counted = {
            let mut known = self.lock();
            let now = BootClock.now();
            let ticket = last(&mut known.endpoints, now);
            let pool = ticket.worker().pool.clone();
            let counted = known.endpoints.release(ticket, now);
            known.settle(&pool);
            counted
        };
        self.moved();
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

    /// Whether this incarnation lives, as far as discovery has said.
    pub(crate) fn is_alive(&self, worker: &WorkerId) -> bool {
        self.lock().endpoints.is_alive(worker)
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

    /// Something happened that whoever watches may want to see. Costs next to nothing while nobody does.
    pub(crate) fn moved(&self) {
        if self.moves.receiver_count() > 0 {
            self.moves.send_modify(|count| *count += 1);
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Something is known of all pools.
    pub(crate) fn settle_all(&mut self) {
        let Self { endpoints, waiters } = self;
        waiters.settle_all(endpoints);
    }

    /// A call of this pool is over, or something is known of a worker.
    fn settle(&mut self, pool: &PoolName) {
        let Self { endpoints, waiters } = self;
        waiters.settle(pool, endpoints);
    }

    /// Looks whether time alone has something to say to those who wait; answers when to look again.
    fn look(&mut self, pool: &PoolName) -> Option<Tick> {
        let Self { endpoints, waiters } = self;
        waiters.look(pool, endpoints)
    }
}

impl From<Pick> for Chosen {
    fn from(pick: Pick) -> Self {
        Self {
            ticket: pick.ticket,
            address: pick.address,
            tls: pick.tls,
        }
    }
}

/// What is known of a pool that cannot take a call.
pub(crate) fn refused(
    endpoints: &Endpoints,
    pool: &PoolName,
    target: &Target,
    refusal: Refusal,
) -> Box<Refused> {
    let home = match (target, &refusal) {
        (Target::Worker { slot, .. }, _)
        | (Target::Affinity { .. }, Refusal::NoWorker(Why::SessionGone { slot, .. })) => Some(slot),
        (Target::Any | Target::Affinity { .. }, _) => None,
    };
    let death = match home {
        Some(slot) => {
            let last = endpoints.last_death(pool, *slot);
            last.map(|(incarnation, death)| {
                let worker = WorkerId {
                    pool: pool.clone(),
                    slot: *slot,
                    incarnation,
                };
                (worker, death)
            })
        }
        None => endpoints.latest_death(pool),
    };
    Box::new(Refused {
        refusal,
        pools: endpoints.pools().cloned().collect(),
        waiting: endpoints.waiting(pool),
        age: endpoints.age_of(pool, BootClock.now()),
        death: death.map(|(worker, death)| (worker, death.clone())),
    })
}
