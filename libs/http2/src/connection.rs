//! One connection, of a client or a server: bytes in, events out; calls in, bytes out.

mod messages;
mod receive;
mod send;

use std::collections::HashMap;

use slab::Slab;

use crate::{
    config::{Config, Role},
    error::{Error, Reason},
    event::{Event, Key},
    frame::{self, GOAWAY, PING, PREFACE, RST_STREAM, WINDOW_UPDATE},
    hpack::{Decoder, Encoder},
    output::Output,
    settings::{FIRST_WINDOW, LARGEST_WINDOW, Ours, Theirs},
    spread::Seed,
    stream::{Stream, signed},
};

use messages::Unended;

/// What is asked before the last farewell: whoever answers it has read the first.
const FAREWELL: [u8; 8] = *b"farewell";

/// How many streams are opened before the other side has said how many it takes: most take as many.
const STREAMS_BEFORE: u32 = 100;

/// The last stream that a connection has a number for.
const LAST_STREAM: u32 = (1 << 31) - 1;

/// Less is not handed out while more is to come.
const LITTLE_ROOM: usize = 16 << 10;

/// How many times what may wait to be written there may be before no more requests are taken: what is said to one costs
/// no room, so that one who does not read may ask for any amount of it.
const MOST_UNREAD: usize = 4;

/// How far a farewell of ours is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Farewell {
    None,
    /// Said, but streams that are under way are still taken.
    Announced,
    /// No stream after this one is taken.
    Final(u32),
}

/// Counts of what costs us something and the other side next to nothing.
#[derive(Debug, Default)]
struct Guard {
    /// Answers that nobody has read yet, of this period.
    unread_answers: usize,
    /// A period ends when so much was written: all that waited when it began.
    ends_at: u64,
    /// Frames in a row that carry nothing.
    empty_frames: usize,
    /// Streams that were given up and not accepted.
    abandoned: usize,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    config: Config,
    /// How much of a client's preface is still to come.
    preface: &'static [u8],
    streams: Slab<Stream>,
    keys: HashMap<u32, u32, Seed>,
    /// What a new stream of the other side may send: never less than it may take for granted.
    first_window: u32,
    /// How many streams of the other side are open, and of ours.
    theirs_open: u32,
    ours_open: u32,
    /// The next that we open.
    next: u32,
    /// The last that the other side opened.
    last: u32,
    unended: Option<Unended>,
    decoder: Decoder,
    encoder: Encoder,
    theirs: Theirs,
    /// No stream was given more than this beyond what all begin with.
    most_given: i64,
    /// Whether they have said anything of themselves.
    has_heard: bool,
    send_window: i32,
    receive_window: i32,
    taken: u32,
    output: Output,
    guard: Guard,
    farewell: Farewell,
    /// The last of our streams that the other side takes, and why it takes no more.
    gone: Option<(u32, Reason)>,
    broken: Option<Error>,
}

impl Connection {
    /// One end of a connection on which nothing was said.
    pub fn new(role: Role, config: Config) -> Self {
        let mut output = Output::default();
        let is_client = role == Role::Client;
        let to = output.buffer();
        if is_client {
            to.extend_from_slice(PREFACE);
        }
        let ours = Ours {
            no_push: is_client,
            max_streams: (!is_client).then_some(config.max_streams),
            window: config.stream_window,
            header_list: config.header_list,
        };
        ours.write(to);
        let connection_window = config.connection_window.clamp(FIRST_WINDOW, LARGEST_WINDOW);
        let more = connection_window - FIRST_WINDOW;
        if more > 0 {
            frame::numbers(to, WINDOW_UPDATE, 0, [more]);
        }
        Self {
            role,
            config,
            preface: if is_client { b"" } else { PREFACE },
            streams: Slab::new(),
            keys: HashMap::default(),
            first_window: config.stream_window.max(FIRST_WINDOW),
            theirs_open: 0,
            ours_open: 0,
            next: 1,
            last: 0,
            unended: None,
            decoder: Decoder::default(),
            encoder: Encoder::default(),
            theirs: Theirs::default(),
            most_given: 0,
            has_heard: false,
            send_window: signed(FIRST_WINDOW),
            receive_window: signed(connection_window),
            taken: 0,
            output,
            guard: Guard::default(),
            farewell: Farewell::None,
            gone: None,
            broken: None,
        }
    }

    /// What is to be written.
    pub fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Some of the output was written.
    pub fn on_written(&mut self) {
        let written = self.output.written();
        if written >= self.guard.ends_at {
            self.guard.unread_answers = 0;
            self.guard.ends_at = written + self.output.len() as u64;
        }
    }

    /// Takes no new streams, in two steps: the other side may have opened some that have not come yet.
    pub fn say_farewell(&mut self) {
        if self.farewell == Farewell::None && self.broken.is_none() {
            self.farewell = Farewell::Announced;
            let to = self.output.buffer();
            frame::numbers(to, GOAWAY, 0, [LARGEST_WINDOW, Reason::NO_ERROR.0]);
            frame::head(to, FAREWELL.len(), PING, 0, 0);
            to.extend_from_slice(&FAREWELL);
        }
    }

    /// Takes no stream that has not come yet.
    pub fn close(&mut self) {
        if !matches!(self.farewell, Farewell::Final(_)) && self.broken.is_none() {
            self.farewell = Farewell::Final(self.last);
            let word = [self.last, Reason::NO_ERROR.0];
            frame::numbers(self.output.buffer(), GOAWAY, 0, word);
        }
    }

    /// Whether nothing is left to be done but to write the output and close.
    pub fn is_over(&self) -> bool {
        let says_no_more = matches!(self.farewell, Farewell::Final(_));
        let hears_no_more = self.role == Role::Client && (self.gone.is_some() || self.is_used_up());
        self.broken.is_some()
            || (says_no_more || hears_no_more) && self.theirs_open == 0 && self.ours_open == 0
    }

    /// Why it takes no more streams, if it does not.
    pub fn is_closed(&self) -> Option<Error> {
        if let Some(error) = &self.broken {
            return Some(error.clone());
        }
        let (reason, remote) = match self.gone {
            Some((_, reason)) => (reason, true),
            None if self.is_used_up() => (Reason::NO_ERROR, false),
            None => return None,
        };
        Some(Error::GoAway { reason, remote })
    }

    /// Whether there are no numbers left for streams of ours.
    fn is_used_up(&self) -> bool {
        self.next > LAST_STREAM
    }

    /// Whether there are streams that were not forgotten.
    pub fn has_streams(&self) -> bool {
        !self.streams.is_empty()
    }

    /// Whether there are streams over which something may still come or go.
    pub fn has_open_streams(&self) -> bool {
        self.theirs_open + self.ours_open > 0
    }

    /// Whether something may be sent over this stream.
    pub fn is_sending(&self, stream: Key) -> bool {
        let known = self.streams.get(stream.index());
        self.broken.is_none() && known.is_some_and(|stream| stream.is_ours_open)
    }

    /// Whether a stream has room that the connection does not have.
    pub fn waits_for_connection(&self, stream: Key) -> bool {
        let known = self.streams.get(stream.index());
        known.is_some_and(|stream| stream.window(&self.theirs) > 0)
    }

    /// How much room the connection has, for those streams that have; nothing where it is too little to begin with.
    pub fn room(&self) -> usize {
        let room = self.config.send_buffer.saturating_sub(self.output.len());
        let is_worth_it = room >= LITTLE_ROOM.min(self.config.send_buffer / 4);
        match usize::try_from(self.send_window) {
            Ok(window) if is_worth_it || self.output.is_empty() => window.min(room),
            _ => 0,
        }
    }

    /// The connection is gone: nothing more is read or written.
    pub fn abort(&mut self, error: &Error) {
        self.broken.get_or_insert_with(|| error.clone());
    }

    /// Whether the other side takes another stream now.
    pub fn can_open(&self) -> bool {
        self.ours_open < self.max_streams()
    }

    /// How many streams the other side takes at once.
    pub fn max_streams(&self) -> u32 {
        match self.has_heard {
            true => self.theirs.max_streams,
            false => STREAMS_BEFORE,
        }
    }

    /// How many more streams are to be opened now: none where the other side does not read what was said on others.
    pub fn free(&self) -> u32 {
        match self.output.len() < self.config.send_buffer {
            true => self.max_streams().saturating_sub(self.ours_open),
            false => 0,
        }
    }

    /// Streams of ours that the other side has not begun with, and will not: they are over.
    pub fn refused(&mut self) -> Vec<Key> {
        let Some((last, _)) = self.gone else {
            return Vec::new();
        };
        let refused = |(at, stream): (usize, &Stream)| {
            let is_it = stream.is_open() && stream.id % 2 == 1 && stream.id > last;
            is_it.then_some(at)
        };
        let refused: Vec<_> = match self.role {
            Role::Client => self.streams.iter().filter_map(refused).collect(),
            Role::Server => Vec::new(),
        };
        for at in &refused {
            self.end_both(*at);
        }
        refused.into_iter().map(Key::at).collect()
    }

    /// Nobody asks for this stream any more: what is left of it is given up.
    pub fn forget(&mut self, stream: Key) {
        let at = stream.index();
        let Some(known) = self.streams.get(at) else {
            return;
        };
        if known.is_open() && self.broken.is_none() {
            // An answer that is whole needs nothing more of its request (RFC 9113, 8.1).
            let answered = self.role == Role::Server && !known.is_ours_open;
            let reason = if answered {
                Reason::NO_ERROR
            } else {
                Reason::CANCEL
            };
            self.send_reset(at, reason);
        }
        self.end_both(at);
        let known = self.streams.remove(at);
        self.keys.remove(&known.id);
        if known.is_abandoned {
            self.guard.abandoned -= 1;
        }
        if self.streams.is_empty() && self.streams.capacity() > 1_024 {
            self.streams.shrink_to_fit();
            self.keys.shrink_to_fit();
        }
    }

    /// Resets a stream, which is then over.
    pub fn reset(&mut self, stream: Key, reason: Reason) {
        let at = stream.index();
        if self.streams.get(at).is_some_and(Stream::is_open) && self.broken.is_none() {
            self.send_reset(at, reason);
        }
    }

    /// Somebody has taken on the request of this stream.
    pub fn accept(&mut self, stream: Key) {
        if let Some(stream) = self.streams.get_mut(stream.index()) {
            stream.is_accepted = true;
            if std::mem::take(&mut stream.is_abandoned) {
                self.guard.abandoned -= 1;
            }
        }
    }

    fn send_reset(&mut self, at: usize, reason: Reason) {
        let id = self.streams[at].id;
        frame::numbers(self.output.buffer(), RST_STREAM, id, [reason.0]);
        self.end_both(at);
    }

    fn end_ours(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        let was = stream.is_open();
        stream.is_ours_open = false;
        self.count_end(at, was);
    }

    fn end_theirs(&mut self, at: usize) {
        let stream = &mut self.streams[at];
        let was = stream.is_open();
        stream.is_theirs_open = false;
        self.count_end(at, was);
    }

    fn end_both(&mut self, at: usize) {
        self.end_ours(at);
        self.end_theirs(at);
    }

    /// Takes a stream out of the count when it has ended just now.
    fn count_end(&mut self, at: usize, was_open: bool) {
        if was_open && !self.streams[at].is_open() {
            match self.role {
                Role::Client => self.ours_open -= 1,
                Role::Server => self.theirs_open -= 1,
            }
        }
    }

    fn open_stream(&mut self, id: u32) -> usize {
        let stream = Stream::new(id, self.first_window);
        let at = self.streams.insert(stream);
        self.keys.insert(id, Key::at(at).0);
        match self.role {
            Role::Client => self.ours_open += 1,
            Role::Server => self.theirs_open += 1,
        }
        at
    }

    fn find(&self, id: u32) -> Option<usize> {
        self.keys.get(&id).map(|key| *key as usize)
    }

    /// How much is remembered, for those who check that it is bounded.
    pub fn held(&self) -> usize {
        let unended = self.unended.as_ref().map_or(0, Unended::held);
        self.output.len() + unended + self.streams.len() * size_of::<Stream>()
    }
}
