//! Clients that use two gateways, and call again only where they were told that nobody has seen the call.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tether_tests::clerk::{
    caller::{Caller, End},
    order::Order,
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::verdict::Attempt;

/// A call's own deadline, each time it is made.
const DEADLINE: Duration = Duration::from_secs(10);

/// Nobody goes on for longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Before a call is made again.
const PAUSE: Duration = Duration::from_millis(20);

/// Attempts at one call have numbers of their own, up to so many.
const ATTEMPTS: u64 = 1 << 12;

/// What became of all calls to one pool.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) calls: usize,
    /// Calls that were given up.
    pub(crate) given_up: usize,
    pub(crate) attempts: Vec<Attempt>,
    /// The longest that one took, with all its attempts.
    pub(crate) slowest: Duration,
}

/// Calls to one pool that go on until they are ended.
pub(crate) struct Callers {
    go_on: watch::Sender<bool>,
    calling: JoinHandle<Arc<Mutex<Tally>>>,
}

impl Callers {
    /// So many a second; `first` is the number before the first of theirs.
    pub(crate) fn start(ports: &[u16], pool: &'static str, rate: f64, first: u64) -> Self {
        let (go_on, mut ended) = watch::channel(true);
        let gateways: Vec<_> = ports.iter().map(|port| Caller::new(*port, pool)).collect();
        let calling = tokio::spawn(async move {
            let tally = Arc::new(Mutex::new(Tally::default()));
            let mut calls = JoinSet::new();
            let mut pace = interval(Duration::from_secs_f64(1.0 / rate));
            pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut number = first;
            loop {
                tokio::select! {
                    _ = pace.tick() => {}
                    _ = ended.changed() => break,
                }
                number += 1;
                calls.spawn(call(gateways.clone(), number, Arc::clone(&tally)));
                while calls.try_join_next().is_some() {}
            }
            while calls.join_next().await.is_some() {}
            tally
        });
        Self { go_on, calling }
    }

    /// Makes no more, and waits for those under way.
    pub(crate) async fn end(self) -> anyhow::Result<Tally> {
        drop(self.go_on);
        let tally = self.calling.await?;
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *tally))
    }
}

async fn call(gateways: Vec<Caller>, number: u64, tally: Arc<Mutex<Tally>>) {
    let start = Instant::now();
    let mut attempts = Vec::new();
    let given_up = loop {
        let attempt = attempts.len() as u64;
        let gateway = usize::try_from(number + attempt).unwrap_or(0) % gateways.len();
        let order = Order {
            id: number * ATTEMPTS + attempt,
            work: Duration::ZERO,
        };
        let told = gateways[gateway].call(order, DEADLINE).await;
        let again = is_unseen(&told.how);
        attempts.push(Attempt { told, gateway });
        if !again {
            break false;
        }
        if start.elapsed() > PATIENCE || attempt + 1 == ATTEMPTS {
            break true;
        }
        sleep(PAUSE).await;
    };
    let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    tally.calls += 1;
    tally.given_up += usize::from(given_up);
    tally.slowest = tally.slowest.max(start.elapsed());
    tally.attempts.extend(attempts);
}

/// Whether somebody has said that no worker has begun with it.
fn is_unseen(how: &End) -> bool {
    match how {
        End::Unseen(_) => true,
        End::Failed { outcome, .. } => {
            matches!(outcome.as_deref(), Some("never_sent" | "refused"))
        }
        End::Answered | End::Broken(_) | End::Silent | End::Wrong(_) => false,
    }
}
