//! Events: numbered, kept up to a bound, and told to whoever watches.

use std::{collections::VecDeque, sync::Mutex, time::SystemTime};

use prost::Message as _;
use tether_history::{What, Worker, note};
use tether_proto::{
    common::WorkerRef,
    worker::{Event, EventKind},
};
use tether_store::Listing;
use tether_types::Death;
use tokio::sync::watch;

use crate::effects::{Effects, keys};

/// Events kept, in memory and in the store (P5).
pub(crate) const KEPT: usize = 2_000;

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
        let mut kept = VecDeque::new();
        let mut newest = 0;
        for entry in &listing.entries {
            let Some(number) = entry.key.strip_prefix(keys::EVENTS) else {
                continue;
            };
            // From the key: one that cannot be read has its number all the same.
            newest = newest.max(number.parse().unwrap_or(0));
            match Event::decode(&*entry.value) {
                Ok(event) => kept.push_back(event),
                Err(error) => tracing::warn!(key = entry.key, %error, "Cannot read an event"),
            }
        }
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
        let written = *last;
        let mut events = std::mem::take(&mut effects.events);
        for event in &mut events {
            if event.revision == 0 {
                *last += 1;
                event.revision = *last;
                event.unix_ms = unix_ms;
            }
        }
        // Of what was written, and not of what a long burst never has written.
        let forgotten = |last: u64| last.saturating_sub(KEPT as u64);
        for old in forgotten(written) + 1..=forgotten(*last).min(written) {
            effects.delete(keys::event(old));
        }
        // Of a burst that is longer than the history, its end.
        let surplus = events.len().saturating_sub(KEPT);
        events.drain(..surplus);
        for event in &events {
            effects.put(keys::event(event.revision), event.clone());
        }
        effects.events = events;
    }

    /// Tells events, once they are written.
    pub(crate) fn publish(&self, events: Vec<Event>) {
        let Some(newest) = events.last().map(|event| event.revision) else {
            return;
        };
        events.iter().for_each(on_record);
        {
            let mut kept = self
                .kept
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            kept.extend(events);
            let surplus = kept.len().saturating_sub(KEPT);
            kept.drain(..surplus);
            // Before anybody can have read them: one who names an event that there never was is refused.
            self.newest.send_replace(newest);
        }
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

/// The line of a history for a death that is recorded.
fn on_record(event: &Event) {
    if let (EventKind::WorkerDied, Some(death)) = (event.kind(), &event.death)
        && let Ok(id) = WorkerRef::required(event.worker.as_ref())
    {
        note(|| What::Buried {
            worker: Worker(id),
            cause: Death::from(death).cause.word().to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tether_store::Entry;

    use super::*;

    fn some(count: usize) -> Effects {
        Effects {
            events: vec![Event::default(); count],
            ..Effects::default()
        }
    }

    /// What the store has after these effects, as a listing.
    fn write(store: &mut BTreeMap<String, bytes::Bytes>, effects: &Effects) -> Listing {
        for (key, value) in &effects.writes {
            match value {
                Some(value) => drop(store.insert(key.clone(), value.clone())),
                None => drop(store.remove(key)),
            }
        }
        let entry = |(key, value): (&String, &bytes::Bytes)| Entry {
            key: key.clone(),
            value: value.clone(),
            mod_revision: 1,
        };
        Listing {
            entries: store.iter().map(entry).collect(),
            revision: 1,
        }
    }

    #[test]
    fn history_is_bounded_in_memory_and_in_the_store() {
        let events = Events::restore(&write(&mut BTreeMap::new(), &Effects::default()));
        let (mut store, mut last) = (BTreeMap::new(), 0);

        for _ in 0..7 {
            let mut effects = some(KEPT / 3);
            events.number(&mut effects, &mut last);
            write(&mut store, &effects);
            events.publish(effects.events);
        }

        let written = 7 * (KEPT as u64 / 3);
        let kept = events.after(0);
        assert_eq!((kept.len(), store.len()), (KEPT, KEPT));
        assert_eq!(kept[0].revision, written - KEPT as u64 + 1);
        assert_eq!(*events.newest().borrow(), written);
    }

    #[test]
    fn numbers_go_on_after_a_restart_even_behind_an_event_that_cannot_be_read() {
        let (mut store, mut last) = (BTreeMap::new(), 0);
        let mut effects = some(3);
        Events::restore(&write(&mut BTreeMap::new(), &Effects::default()))
            .number(&mut effects, &mut last);
        effects
            .writes
            .insert(keys::event(3), Some("garbage".into()));
        let left = write(&mut store, &effects);

        let events = Events::restore(&left);
        let (mut effects, mut last) = (some(1), 0);
        events.number(&mut effects, &mut last);

        assert_eq!(effects.events[0].revision, 4);
        assert_eq!(events.after(0).len(), 2);
    }

    #[test]
    fn events_that_waited_for_the_store_keep_their_numbers() {
        let events = Events::restore(&write(&mut BTreeMap::new(), &Effects::default()));
        let (mut effects, mut last) = (some(2), 0);
        events.number(&mut effects, &mut last);
        effects.append(some(1));

        events.number(&mut effects, &mut last);

        let numbers: Vec<_> = effects.events.iter().map(|event| event.revision).collect();
        assert_eq!(numbers, [1, 2, 3]);
        assert_eq!(effects.writes.len(), 3);
    }
}
