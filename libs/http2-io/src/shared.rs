//! What the driver of a connection and the handles of its streams share.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
};

use bytes::Bytes;
use http::{HeaderMap, request, response};
use slab::Slab;
use tether_http2::{Config, Connection, Error, Event, Key, Reason, Role};

use crate::{openers::Openers, received::Received};

/// So many slots are kept when there are no streams.
const FEW: usize = 1_024;

#[cfg(test)]
mod tests;

/// For so much room one of those that wait for it has its turn, and what it may send then.
const SHARE: usize = 16 << 10;
const TURN: usize = 64 << 10;

/// A connection, as its driver and its streams see it.
#[derive(Debug)]
pub(crate) struct Shared(Mutex<Core>);

impl Shared {
    pub(crate) fn new(role: Role, config: Config) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Core {
            connection: Connection::new(role, config),
            slots: Vec::new(),
            heads: Slab::new(),
            trailers: Slab::new(),
            driver: None,
            to_write: BTreeMap::new(),
            next_place: 0,
            to_widen: BTreeSet::new(),
            openers: Openers::default(),
            promised: 0,
            all_writable: false,
            requests: VecDeque::new(),
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Core> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) connection: Connection,
    /// By the streams' keys.
    slots: Vec<Slot>,
    /// What came and nobody has taken, beside the slots: few of them have any at a time.
    heads: Slab<response::Parts>,
    trailers: Slab<HeaderMap>,
    /// There when the driver is to be woken: it has not been since it last ran.
    driver: Option<Waker>,
    /// Streams that wait for the connection to have room, and not for their own window, by their places.
    to_write: BTreeMap<u64, Key>,
    /// The next place among them.
    next_place: u64,
    /// Streams that wait for their own window.
    to_widen: BTreeSet<Key>,
    /// Who waits for room for another stream.
    pub(crate) openers: Openers,
    /// Streams that were promised to somebody, and are not open yet.
    pub(crate) promised: u32,
    /// Whether any stream may have more room than it had.
    all_writable: bool,
    /// What came and nobody has taken on.
    requests: VecDeque<(Key, request::Parts)>,
}

/// What is kept for a stream.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// Handles of it.
    handles: u8,
    pub(crate) received: Received,
    /// Whether there is a head, and trailers, among those that nobody has taken.
    head: Option<u32>,
    trailers: Option<u32>,
    /// Whether nothing more comes.
    pub(crate) has_ended: bool,
    /// Whether the end is still to be told that came behind the last piece, in a frame of its own.
    pub(crate) ends_by_itself: bool,
    /// Why it was over before its time.
    pub(crate) error: Option<Box<Error>>,
    /// Whether what comes is not wanted.
    unwanted: bool,
    waits_to_write: bool,
    /// Its place among those that wait for the connection.
    place: Option<u64>,
    /// Whether it was, and may send before those that still are.
    has_turn: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Slot {
    /// Whether all was taken and nothing more comes, not even the word that it is over.
    pub(crate) fn is_over(&self) -> bool {
        let has_more = self.ends_by_itself || self.trailers.is_some();
        self.has_ended && self.received.is_empty() && !has_more
    }

    /// Who is to be woken when something comes.
    pub(crate) fn on_read(&mut self, cx: &Context<'_>) {
        register(&mut self.reader, cx);
    }

    fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    fn wake_writer(&mut self) {
        self.waits_to_write = false;
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }

    fn fail(&mut self, error: &Error) {
        self.error.get_or_insert_with(|| Box::new(error.clone()));
        self.wake_reader();
        self.wake_writer();
    }
}

/// Keeps what came until somebody takes it; answers where.
fn keep<T>(kept: &mut Slab<T>, came: T) -> u32 {
    // Each is of another stream, and those have numbers of 31 bits.
    u32::try_from(kept.insert(came)).unwrap_or(u32::MAX)
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

impl Core {
    pub(crate) fn slot(&mut self, key: Key) -> &mut Slot {
        &mut self.slots[key.index()]
    }

    pub(crate) fn take_head(&mut self, key: Key) -> Option<response::Parts> {
        let at = self.slot(key).head.take()?;
        Some(self.heads.remove(at as usize))
    }

    pub(crate) fn take_trailers(&mut self, key: Key) -> Option<HeaderMap> {
        let at = self.slot(key).trailers.take()?;
        Some(self.trailers.remove(at as usize))
    }

    /// A new stream, of which there are so many handles.
    pub(crate) fn occupy(&mut self, key: Key, handles: u8) -> &mut Slot {
        let at = key.index();
        if at >= self.slots.len() {
            self.slots.resize_with(at + 1, Slot::default);
        }
        let slot = &mut self.slots[at];
        slot.handles = handles;
        slot
    }

    /// One handle less; the last takes the stream with it.
    pub(crate) fn leave(&mut self, key: Key) {
        let slot = &mut self.slots[key.index()];
        slot.handles -= 1;
        if slot.handles == 0 {
            self.vacate(key);
        }
    }

    fn vacate(&mut self, key: Key) {
        let slot = &mut self.slots[key.index()];
        if let Some(at) = slot.head {
            self.heads.remove(at as usize);
        }
        if let Some(at) = slot.trailers {
            self.trailers.remove(at as usize);
        }
        if let Some(place) = slot.place {
            self.to_write.remove(&place);
        }
        self.to_widen.remove(&key);
        *slot = Slot::default();
        self.connection.forget(key);
        if !self.connection.has_streams() && self.slots.len() > FEW {
            self.slots = Vec::new();
        }
        self.on_output();
        self.wake_openers();
        // It may have had its turn.
        self.wake_writers();
    }

    /// Nobody reads this stream any more, of which so many bytes were taken and not told.
    pub(crate) fn leave_reader(&mut self, key: Key, untold: usize) {
        let slot = self.slot(key);
        slot.unwanted = true;
        let bytes = slot.received.clear();
        self.release(key, untold + bytes);
    }

    /// So many bytes of a stream were taken.
    pub(crate) fn release(&mut self, key: Key, bytes: usize) {
        if bytes > 0 {
            self.connection.release(key, bytes);
            self.on_output();
        }
    }

    /// The driver of the connection runs; it is woken for whatever is to be written from here on.
    pub(crate) fn on_drive(&mut self, cx: &Context<'_>) {
        register(&mut self.driver, cx);
    }

    /// Something may have to be written.
    pub(crate) fn on_output(&mut self) {
        if (!self.connection.output().is_empty() || self.connection.is_over())
            && let Some(driver) = self.driver.take()
        {
            driver.wake();
        }
    }

    /// The stream was given up from here.
    pub(crate) fn on_reset(&mut self, key: Key, reason: Reason) {
        let remote = false;
        self.slot(key).fail(&Error::Reset { reason, remote });
    }

    /// How many bytes can be sent over a stream now: none before those that have waited.
    pub(crate) fn capacity(&self, key: Key) -> usize {
        match self.to_write.is_empty() || self.slots[key.index()].has_turn {
            true => self.connection.capacity(key).min(TURN),
            false => 0,
        }
    }

    /// Sends a piece over a stream that has capacity for it.
    pub(crate) fn send_data(&mut self, key: Key, data: &Bytes, ends: bool) -> Result<(), Error> {
        let sent = self.connection.send_data(key, data, ends);
        self.slot(key).has_turn = false;
        self.on_output();
        sent
    }

    /// Who is to be woken when the stream ends or, where it `waits`, when there is room to write.
    pub(crate) fn on_write(&mut self, key: Key, waits: bool, cx: &Context<'_>) {
        let slot = &mut self.slots[key.index()];
        register(&mut slot.writer, cx);
        slot.waits_to_write |= waits;
        if !waits {
            return;
        }
        slot.has_turn = false;
        if slot.place.is_none() {
            if self.connection.waits_for_connection(key) {
                slot.place = Some(self.next_place);
                self.to_write.insert(self.next_place, key);
                self.next_place += 1;
            } else {
                self.to_widen.insert(key);
            }
        }
        // It may have had a turn that it cannot use, or there is room that those before it have not.
        self.wake_writers();
    }

    /// Wakes as many of those who wait for room as it is for, in their order; who finds none waits behind the others.
    pub(crate) fn wake_writers(&mut self) {
        let room = match self.to_write.is_empty() {
            true => 0,
            false => self.connection.room(),
        };
        if room == 0 {
            return;
        }
        let mut turns = 1 + room / SHARE;
        while turns > 0
            && let Some((_, key)) = self.to_write.pop_first()
        {
            let slot = self.slot(key);
            slot.place = None;
            // One that has ended does not wait any more.
            if slot.waits_to_write {
                slot.has_turn = true;
                slot.wake_writer();
                turns -= 1;
            }
        }
    }

    /// How many more streams can be promised.
    pub(crate) fn free(&self) -> u32 {
        self.connection.free().saturating_sub(self.promised)
    }

    /// Promises streams to those who wait for one, in their order; all are to hear that there will be none.
    pub(crate) fn wake_openers(&mut self) {
        if self.openers.is_empty() {
            return;
        }
        let most = match self.connection.is_closed() {
            Some(_) => u32::MAX,
            None => self.free(),
        };
        self.promised += self.openers.wake(most);
    }

    /// Wakes those that a word of the other side may have made room for.
    pub(crate) fn on_parsed(&mut self) {
        if !std::mem::take(&mut self.all_writable) {
            return;
        }
        for key in std::mem::take(&mut self.to_widen) {
            self.on_wider(key);
        }
        self.wake_openers();
    }

    /// A stream's own window may be wider.
    fn on_wider(&mut self, key: Key) {
        self.to_widen.remove(&key);
        let slot = self.slot(key);
        if slot.waits_to_write && slot.place.is_none() {
            slot.wake_writer();
        }
    }

    /// Hands on what came.
    pub(crate) fn on_event(&mut self, event: Event) {
        match event {
            Event::Request { stream, head, ends } => {
                // The two of who takes it on.
                self.occupy(stream, 2).has_ended = ends;
                self.requests.push_back((stream, head));
            }
            Event::Response { stream, head, ends } => {
                let at = keep(&mut self.heads, head);
                let slot = self.slot(stream);
                slot.head = Some(at);
                slot.has_ended = ends;
                slot.wake_reader();
            }
            Event::Data { stream, data, ends } => {
                let slot = &mut self.slots[stream.index()];
                slot.has_ended = ends;
                if slot.unwanted {
                    return self.connection.release(stream, data.len());
                }
                match data.is_empty() {
                    true => slot.ends_by_itself = ends,
                    false => slot.received.push(data),
                }
                slot.wake_reader();
            }
            Event::Trailers { stream, fields } => {
                let at = keep(&mut self.trailers, fields);
                let slot = self.slot(stream);
                slot.has_ended = true;
                slot.trailers = Some(at);
                slot.wake_reader();
            }
            Event::Reset { stream, error } => self.slot(stream).fail(&error),
            Event::Writable(stream) => self.on_wider(stream),
            Event::ConnectionWritable => self.wake_writers(),
            Event::AllWritable => self.all_writable = true,
            Event::GoAway => {
                let refused = self.connection.refused();
                if let Some(error) = self.connection.is_closed() {
                    refused
                        .into_iter()
                        .for_each(|stream| self.slot(stream).fail(&error));
                }
                self.wake_openers();
            }
        }
    }

    /// The connection is gone, and all that is on it.
    pub(crate) fn fail(&mut self, error: &Error) {
        self.connection.abort(error);
        for slot in self.slots.iter_mut().filter(|slot| slot.handles > 0) {
            slot.fail(error);
        }
        // Those that nobody has taken on go with it.
        while let Some((key, _)) = self.requests.pop_front() {
            self.vacate(key);
        }
        self.wake_openers();
    }

    /// The next request; one that was given up meanwhile is nobody's.
    pub(crate) fn next_request(&mut self) -> Option<(Key, request::Parts)> {
        loop {
            let (key, head) = self.requests.pop_front()?;
            if self.slot(key).error.is_none() {
                self.connection.accept(key);
                return Some((key, head));
            }
            self.vacate(key);
        }
    }

    pub(crate) fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }
}
