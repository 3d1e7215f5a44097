//! The calls that wait for a worker, and how each is told that its turn has come.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tether_clock::{BootClock, Clock as _, Tick};
use tether_endpoints::{Endpoints, Pick, Refusal, Target};
use tether_types::PoolName;
use tokio::sync::oneshot;

use crate::{
    directory::{Chosen, Directory, refused},
    explain::Refused,
};

/// What a waiting call is told.
pub(crate) type Word = Result<Chosen, Box<Refused>>;

/// How often those who wait are looked after where nothing tells when.
const SELDOM: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Waiters(HashMap<PoolName, OfPool>);

#[derive(Debug, Default)]
struct OfPool {
    waiters: HashMap<u64, Waiter>,
    /// When time alone may have something to say to them.
    due: Tick,
}

#[derive(Debug)]
struct Waiter {
    target: Target,
    turn: oneshot::Sender<Word>,
}

impl Waiters {
    /// Whoever listens is told when the turn of call `number` has come.
    pub(crate) fn add(
        &mut self,
        pool: &PoolName,
        number: u64,
        target: Target,
    ) -> oneshot::Receiver<Word> {
        let (turn, listens) = oneshot::channel();
        let waiting = self.0.entry(pool.clone()).or_default();
        waiting.waiters.insert(number, Waiter { target, turn });
        listens
    }

    /// Tells every call of which there is something to say.
    pub(crate) fn settle_all(&mut self, endpoints: &mut Endpoints) {
        let pools: Vec<PoolName> = self.0.keys().cloned().collect();
        for pool in pools {
            self.settle(&pool, endpoints);
        }
    }

    /// Tells every call of a pool of which there is something to say.
    pub(crate) fn settle(&mut self, pool: &PoolName, endpoints: &mut Endpoints) {
        let Some(OfPool {
            waiters: waiting,
            due,
        }) = self.0.get_mut(pool)
        else {
            return;
        };
        let now = BootClock.now();
        while let Some((number, said)) = endpoints.next(pool, fastrand::u64(..), now) {
            match waiting.remove(&number) {
                Some(waiter) => waiter.tell(pool, said, endpoints),
                None => give_back(said, endpoints),
            }
        }
        // With its pool the calls that waited are forgotten.
        if !endpoints.knows(pool) {
            for (_, waiter) in waiting.drain() {
                waiter.tell(pool, Err(Refusal::NoPool), endpoints);
            }
        }
        *due = now + SELDOM;
        if waiting.is_empty() {
            self.0.remove(pool);
        } else if let Some(trial) = endpoints.next_trial(pool, now) {
            *due = trial.min(*due);
        }
    }

    /// Tells every call of a pool what time has brought, where it is due; answers when that is next.
    pub(crate) fn look(&mut self, pool: &PoolName, endpoints: &mut Endpoints) -> Option<Tick> {
        if self.0.get(pool)?.due <= BootClock.now() {
            self.settle(pool, endpoints);
        }
        Some(self.0.get(pool)?.due)
    }

    fn remove(&mut self, pool: &PoolName, number: u64) {
        if let Some(waiting) = self.0.get_mut(pool) {
            waiting.waiters.remove(&number);
        }
    }
}

impl Waiter {
    fn tell(self, pool: &PoolName, said: Result<Pick, Refusal>, endpoints: &mut Endpoints) {
        let word = match said {
            Ok(pick) => Ok(pick.into()),
            Err(refusal) => Err(refused(endpoints, pool, &self.target, refusal)),
        };
        // Its caller left in this moment.
        if let Err(Ok(chosen)) = self.turn.send(word) {
            endpoints.release(chosen.ticket, BootClock.now());
        }
    }
}

fn give_back(said: Result<Pick, Refusal>, endpoints: &mut Endpoints) {
    if let Ok(pick) = said {
        endpoints.release(pick.ticket, BootClock.now());
    }
}

/// A call's place in the queue, which it leaves when this is dropped.
pub(crate) struct Place {
    pub(crate) directory: Arc<Directory>,
    pub(crate) pool: PoolName,
    pub(crate) number: u64,
    pub(crate) turn: oneshot::Receiver<Word>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.turn.close();
        match self.turn.try_recv() {
            // It was given a worker that it will not use.
            Ok(Ok(chosen)) => self.directory.release(chosen.ticket),
            Ok(Err(_)) => {}
            Err(_) => self.directory.leave(&self.pool, self.number),
        }
    }
}

impl Directory {
    fn leave(&self, pool: &PoolName, number: u64) {
        let mut known = self.lock();
        known.endpoints.forget(pool, number);
        known.waiters.remove(pool, number);
    }
}
