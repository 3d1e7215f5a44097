//! Calls that come whatever becomes of those before, and what became of each.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tether_tests::clerk::{
    caller::{Caller, Told},
    order::Order,
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::calls::client::POOL;

/// Connections that calls are spread over.
const CONNECTIONS: usize = 4;

/// A call that is to come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Coming {
    /// After the first.
    pub(super) after: Duration,
    pub(super) work: Duration,
}

/// Calls that go on at a steady pace until they are ended.
pub(super) struct Steady {
    callers: Callers,
    go_on: watch::Sender<bool>,
    calling: JoinHandle<JoinSet<()>>,
}

impl Steady {
    /// So many a second, to whatever listens at this port.
    pub(super) fn start(port: u16, rate: u32, deadline: Duration) -> Self {
        let (go_on, mut ended) = watch::channel(true);
        let callers = Callers::new(port, deadline);
        let mut all = callers.clone();
        let calling = tokio::spawn(async move {
            let mut calls = JoinSet::new();
            let mut pace = interval(Duration::from_secs(1) / rate);
            pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
            loop {
                tokio::select! {
                    _ = pace.tick() => all.make(&mut calls, Duration::ZERO),
                    _ = ended.changed() => return calls,
                }
            }
        });
        Self {
            callers,
            go_on,
            calling,
        }
    }

    /// What became of all of them.
    pub(super) async fn end(self) -> anyhow::Result<Vec<Told>> {
        drop(self.go_on);
        Ok(self.callers.all(self.calling.await?).await)
    }
}

/// Carries these out, and tells what became of each.
pub(super) async fn play(port: u16, coming: &[Coming], deadline: Duration) -> Vec<Told> {
    let mut callers = Callers::new(port, deadline);
    let mut calls = JoinSet::new();
    let start = Instant::now();
    for one in coming {
        sleep_until(start + one.after).await;
        callers.make(&mut calls, one.work);
    }
    callers.all(calls).await
}

#[derive(Clone)]
struct Callers {
    callers: Vec<Caller>,
    deadline: Duration,
    told: Arc<Mutex<Vec<Told>>>,
    made: u64,
}

impl Callers {
    fn new(port: u16, deadline: Duration) -> Self {
        let callers = (0..CONNECTIONS).map(|_| Caller::new(port, POOL));
        Self {
            callers: callers.collect(),
            deadline,
            told: Arc::default(),
            made: 0,
        }
    }

    fn make(&mut self, calls: &mut JoinSet<()>, work: Duration) {
        self.made += 1;
        let id = self.made;
        let caller = self.callers[(id % CONNECTIONS as u64) as usize].clone();
        let (told, deadline) = (Arc::clone(&self.told), self.deadline);
        calls.spawn(async move {
            let one = caller.call(Order { id, work }, deadline).await;
            told.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(one);
        });
        while calls.try_join_next().is_some() {}
    }

    async fn all(self, mut calls: JoinSet<()>) -> Vec<Told> {
        while calls.join_next().await.is_some() {}
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = std::mem::take(&mut *told);
        all.sort_by_key(|one| one.start);
        all
    }
}
