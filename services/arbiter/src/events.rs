//! Events: numbered, kept up to a bound, and told to whoever watches.

use std::{collections::VecDeque, sync::Mutex, time::SystemTime};

use prost::Message as _;
use tether_proto::worker::Event;
use tether_store::Listing;
use tokio::sync::watch;

use crate::effects::{Effects, keys};

/// Events kept, in memory and in the store (P5).
const KEPT: usize = 2_000;

/// The last events, shared between the service and those who watch.
#[derive(Debug)]
pub(crate) struct Events {
    kept: Mutex<VecDeque<Event>>,
    /// Revision of the newest.
    newest: watch::Sender<u64>,
}

impl Events {
    /// Takes up the events an earlier arbiter left in the store.
    pub(crate) fn restore(listing: &Listing) -> Self {
        let events = listing
            .entries
            .iter()
            .filter(|entry| entry.key.starts_with(keys::EVENTS));
        let kept: VecDeque<Event> = events
            .filter_map(|entry| Event::decode(&*entry.value).ok())
            .collect();
        let newest = kept.back().map_or(0, |event| event.revision);
        Self {
            kept: Mutex::new(kept),
            newest: watch::Sender::new(newest),
        }
    }

    /// Numbers the events among `effects` and has them written, the oldest beyond the bound deleted.
    pub(crate) fn number(&self, effects: &mut Effects, last: &mut u64) {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        *last = (*last).max(*self.newest.borrow());
        let mut events = std::mem::take(&mut effects.events);
        for event in &mut events {
            if event.revision == 0 {
                *last += 1;
                event.revision = *last;
                event.unix_ms = unix_ms;
                effects.put(keys::event(*last), event.clone());
                if let Some(old) = last.checked_sub(KEPT as u64).filter(|&old| old > 0) {
                    effects.delete(keys::event(old));
                }
            }
        }
        effects.events = events;
    }

    /// Tells events, once they are written.
    pub(crate) fn publish(&self, events: Vec<Event>) {
        let Some(newest) = events.last().map(|event| event.revision) else {
            return;
        };
        {
            let mut kept = self
                .kept
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            kept.extend(events);
            let surplus = kept.len().saturating_sub(KEPT);
            kept.drain(..surplus);
        }
        self.newest.send_replace(newest);
    }

    /// Events after `revision`, oldest first.
    pub(crate) fn after(&self, revision: u64) -> Vec<Event> {
        let kept = self
            .kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.iter()
            .filter(|event| event.revision > revision)
            .cloned()
            .collect()
    }

    /// Changes when there is something new.
    pub(crate) fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}
