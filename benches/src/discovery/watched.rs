//! What watchers saw.

use std::time::Duration;

use anyhow::Context as _;
use tether_clock::{BootClock, Clock as _, Tick};
use tokio::task::JoinHandle;

/// Longest time from the last change until a watcher has all.
const PATIENCE: Duration = Duration::from_secs(20);

/// From a change to each watcher, in milliseconds, in order.
#[derive(Debug)]
pub(super) struct Delays {
    sorted: Vec<f64>,
    /// Changes that somebody was never told.
    pub(super) missed: usize,
}

impl Delays {
    /// Which so large a share of them does not exceed.
    pub(super) fn at(&self, share: f64) -> f64 {
        let last = self.sorted.len().saturating_sub(1);
        let index = (last as f64 * share).round() as usize;
        self.sorted.get(index).copied().unwrap_or(f64::NAN)
    }
}

/// Delays that one watcher has seen, of changes with a time in them.
#[derive(Debug, Default)]
pub(super) struct Seen(pub(super) Vec<f64>);

impl Seen {
    /// A change was told that was written at `written`, in nanoseconds of the clock.
    pub(super) fn note(&mut self, written: &str) {
        if let Ok(nanos) = written.parse() {
            let delay = BootClock.now().since(Tick::from_nanos(nanos));
            self.0.push(delay.as_secs_f64() * 1e3);
        }
    }
}

/// Watchers under way: each ends by itself once it has seen as many changes as it is told.
#[derive(Debug)]
pub(super) struct Watchers {
    pub(super) wanted: tokio::sync::watch::Sender<Option<usize>>,
    pub(super) tasks: Vec<JoinHandle<anyhow::Result<Seen>>>,
}

impl Watchers {
    /// So many changes were written: waits until each watcher has them, or for long enough.
    pub(super) async fn end(self, sent: usize) -> anyhow::Result<Delays> {
        self.wanted.send_replace(Some(sent));
        let (mut sorted, mut missed) = (Vec::new(), 0);
        for task in self.tasks {
            let seen = tokio::time::timeout(PATIENCE * 2, task).await;
            let seen = seen.context("a watcher does not end")???;
            missed += sent.saturating_sub(seen.0.len());
            sorted.extend(seen.0);
        }
        sorted.sort_by(f64::total_cmp);
        Ok(Delays { sorted, missed })
    }
}

/// Comes back when a watcher has seen all there was, or has waited long enough for it.
pub(super) async fn enough(wanted: &mut tokio::sync::watch::Receiver<Option<usize>>, seen: usize) {
    let all = wanted.wait_for(|wanted| wanted.is_some_and(|wanted| seen >= wanted));
    let _ = all.await;
}

/// Comes back when nobody will write any more and a while has passed.
pub(super) async fn late(mut wanted: tokio::sync::watch::Receiver<Option<usize>>) {
    let _ = wanted.wait_for(Option::is_some).await;
    tokio::time::sleep(PATIENCE).await;
}
