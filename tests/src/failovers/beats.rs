//! When heartbeats of nodes were answered, as their agents tell in their metrics.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tether_clock::{BootClock, Clock as _, Tick};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Longest time for an agent to tell its metrics.
const ANSWER: Duration = Duration::from_secs(1);

/// Two answers nearer than this are one that was looked at twice.
const SAME: Duration = Duration::from_millis(500);

/// Answered heartbeats of one node, in order.
pub(crate) type Answers = Vec<Tick>;

/// Looks at all nodes for as long as it lives.
#[derive(Debug)]
pub(crate) struct Beats {
    seen: Arc<Mutex<BTreeMap<String, Answers>>>,
    watchers: Vec<JoinHandle<()>>,
}

impl Beats {
    /// Watches agents that tell their metrics at these addresses.
    pub(crate) fn watch(addresses: Vec<String>) -> Self {
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let watchers = addresses.into_iter().map(|address| {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                loop {
                    if let Ok(Some(age)) = timeout(ANSWER, age(&address)).await {
                        // Read after the answer: a beat may seem later than it was, not earlier.
                        let at = BootClock.now().as_nanos().saturating_sub(age);
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        note(
                            seen.entry(address.clone()).or_default(),
                            Tick::from_nanos(at),
                        );
                    }
                    sleep(PAUSE).await;
                }
            })
        });
        Self {
            watchers: watchers.collect(),
            seen,
        }
    }

    /// What was seen of each node so far.
    pub(crate) fn answers(&self) -> Vec<Answers> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.values().cloned().collect()
    }

    /// Whether all of so many nodes were answered after this.
    pub(crate) fn after(&self, at: Tick, nodes: usize) -> bool {
        let answers = self.answers();
        let late = |answers: &&Answers| answers.last().is_some_and(|last| *last > at);
        answers.iter().filter(late).count() == nodes
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        for watcher in &self.watchers {
            watcher.abort();
        }
    }
}

/// Takes what one look tells.
fn note(answers: &mut Answers, at: Tick) {
    match answers.last_mut() {
        // The earlier look was the quicker one.
        Some(last) if at.since(*last) < SAME => *last = (*last).min(at),
        _ => answers.push(at),
    }
}

/// Nanoseconds since a heartbeat was answered.
async fn age(address: &str) -> Option<u64> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = b"GET /metrics HTTP/1.1\r\nhost: tether\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let age = text
        .lines()
        .find_map(|line| line.strip_prefix("tether_heartbeat_age_seconds "))?;
    let age = Duration::try_from_secs_f64(age.parse().ok()?).ok()?;
    u64::try_from(age.as_nanos()).ok()
}

/// Times without an answer that ended after `from`: when each began and ended.
pub(crate) fn silences(nodes: &[Answers], from: Tick) -> Vec<(Tick, Tick)> {
    let gaps = nodes.iter().flat_map(|answers| answers.windows(2));
    gaps.filter_map(|gap| match *gap {
        [begin, end] if end > from => Some((begin, end)),
        _ => None,
    })
    .collect()
}
