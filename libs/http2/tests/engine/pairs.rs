//! Two engines that talk to each other, whatever calls are made and however their bytes are cut.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use proptest::{collection::vec, prelude::*, sample::select};
use tether_http2::{Config, Connection, Event, Key, Reason, Role};

use super::cases;

#[derive(Debug, Clone)]
enum Step {
    Open,
    /// The so-and-so-manieth stream of this end sends as much of this as it may.
    Send(bool, usize, usize),
    Finish(bool, usize, bool),
    Reset(bool, usize),
    /// So many bytes go from this end to the other.
    Move(bool, usize),
    /// This end takes what has come.
    Take(bool),
}

/// A stream as one end sees it.
#[derive(Debug, Default)]
struct Side {
    sent: usize,
    received: usize,
    untaken: usize,
    is_done: bool,
    ended: bool,
    reset: bool,
    responded: bool,
}

struct End {
    connection: Connection,
    input: BytesMut,
    /// In the order of their opening.
    streams: Vec<Key>,
    sides: BTreeMap<Key, Side>,
    is_client: bool,
}

impl End {
    fn new(role: Role, config: Config) -> Self {
        Self {
            connection: Connection::new(role, config),
            input: BytesMut::new(),
            streams: Vec::new(),
            sides: BTreeMap::new(),
            is_client: role == Role::Client,
        }
    }

    fn pick(&self, at: usize) -> Option<Key> {
        let at = at.checked_rem(self.streams.len())?;
        Some(self.streams[at])
    }

    fn open(&mut self) {
        if !self.connection.can_open() {
            return;
        }
        let uri = Uri::from_static("http://site/a.B/Echo");
        let opened = self
            .connection
            .open(&Method::POST, &uri, &fields(self.streams.len()), false);
        let key = opened.expect("there is room");
        self.streams.push(key);
        let side = Side {
            responded: true,
            ..Side::default()
        };
        self.sides.insert(key, side);
    }

    fn respond(&mut self, key: Key) {
        let side = self.sides.get_mut(&key).expect("it is known");
        if !std::mem::replace(&mut side.responded, true) {
            let fields = fields(key.index());
            let said = self.connection.respond(key, StatusCode::OK, &fields, false);
            said.expect("it is open");
        }
    }

    fn send(&mut self, key: Key, bytes: usize) {
        let side = &self.sides[&key];
        if side.is_done || side.reset {
            return;
        }
        self.respond(key);
        let part = bytes.min(self.connection.capacity(key));
        if part > 0 {
            let data = Bytes::from(vec![1; part]);
            self.connection
                .send_data(key, &data, false)
                .expect("there is room");
            self.sides.get_mut(&key).expect("it is known").sent += part;
        }
    }

    fn finish(&mut self, key: Key, with_trailers: bool) {
        let side = &self.sides[&key];
        if side.is_done || side.reset {
            return;
        }
        self.respond(key);
        let said = match with_trailers {
            true => self.connection.send_trailers(key, &fields(3)),
            false => self.connection.send_data(key, &Bytes::new(), true),
        };
        said.expect("it is open");
        self.sides.get_mut(&key).expect("it is known").is_done = true;
    }

    fn reset(&mut self, key: Key) {
        self.connection.reset(key, Reason::CANCEL);
        self.sides.get_mut(&key).expect("it is known").reset = true;
    }

    fn take(&mut self) {
        for (key, side) in &mut self.sides {
            self.connection
                .release(*key, std::mem::take(&mut side.untaken));
        }
    }

    fn read(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        loop {
            // An error here is a frame that the other end may not send.
            let event = self.connection.next(&mut self.input);
            let Some(event) =
                event.unwrap_or_else(|error| panic!("client {}: {error}", self.is_client))
            else {
                return;
            };
            match event {
                Event::Request { stream, head, ends } => {
                    assert!(!ends);
                    assert_eq!(head.uri.path(), "/a.B/Echo");
                    self.connection.accept(stream);
                    self.streams.push(stream);
                    self.sides.insert(stream, Side::default());
                }
                Event::Response { .. } => {}
                Event::Data { stream, data, ends } => {
                    let side = self.sides.get_mut(&stream).expect("it is known");
                    side.received += data.len();
                    side.untaken += data.len();
                    side.ended = ends;
                }
                Event::Trailers { stream, fields } => {
                    assert_eq!(fields.get("x-same").expect("it was sent"), "value");
                    self.sides.get_mut(&stream).expect("it is known").ended = true;
                }
                Event::Reset { stream, error } => {
                    assert!(error.is_remote(), "{error}");
                    self.sides.get_mut(&stream).expect("it is known").reset = true;
                }
                Event::GoAway => panic!("nobody said so"),
                Event::Writable(_) | Event::ConnectionWritable | Event::AllWritable => {}
            }
        }
    }
}

fn fields(salt: usize) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert("x-same", HeaderValue::from_static("value"));
    for at in 0..salt % 4 {
        let name = HeaderName::try_from(format!("x-{}", (salt + at) % 7)).expect("it is a name");
        fields.append(
            name,
            HeaderValue::from(u64::try_from(salt % 5).expect("it is small")),
        );
    }
    fields
}

fn step() -> impl Strategy<Value = Step> {
    let side = any::<bool>;
    let size = select(vec![1_usize, 9, 100, 5_000, 20_000, 100_000]);
    prop_oneof![
        2 => Just(Step::Open),
        6 => (side(), 0..50_usize, size.clone()).prop_map(|(side, at, size)| Step::Send(side, at, size)),
        2 => (side(), 0..50_usize, side()).prop_map(|(side, at, with)| Step::Finish(side, at, with)),
        1 => (side(), 0..50_usize).prop_map(|(side, at)| Step::Reset(side, at)),
        8 => (side(), size).prop_map(|(side, size)| Step::Move(side, size)),
        3 => side().prop_map(Step::Take),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    let window = || select(vec![1_u32, 50, 16_384, 65_535, 200_000]);
    (
        window(),
        select(vec![65_535_u32, 100_000, 1 << 30]),
        1..6_u32,
    )
        .prop_map(|(stream_window, connection_window, max_streams)| Config {
            stream_window,
            connection_window,
            max_streams,
            ..Config::default()
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(256), failure_persistence: None, ..ProptestConfig::default() })]

    /// W1, and that what can be sent is sent in the end: no window is lost.
    #[test]
    fn windows_are_kept_and_never_lost(
        configs in (config(), config()),
        steps in vec(step(), 1..200),
    ) {
        let mut ends = [End::new(Role::Client, configs.0), End::new(Role::Server, configs.1)];
        let mut wires = [VecDeque::new(), VecDeque::new()];
        let pass = |ends: &mut [End; 2], wires: &mut [VecDeque<u8>; 2], from: usize, most: usize| {
            wires[from].extend(ends[from].connection.output().take());
            ends[from].connection.on_written();
            let count = most.min(wires[from].len());
            let bytes: Vec<u8> = wires[from].drain(..count).collect();
            ends[1 - from].read(&bytes);
            count
        };
        // The server's word on its streams comes first.
        pass(&mut ends, &mut wires, 1, usize::MAX);
        for step in steps {
            match step {
                Step::Open => ends[0].open(),
                Step::Send(side, at, size) => {
                    let end = &mut ends[usize::from(side)];
                    if let Some(key) = end.pick(at) { end.send(key, size) }
                }
                Step::Finish(side, at, with) => {
                    let end = &mut ends[usize::from(side)];
                    if let Some(key) = end.pick(at) { end.finish(key, with) }
                }
                Step::Reset(side, at) => {
                    let end = &mut ends[usize::from(side)];
                    if let Some(key) = end.pick(at) { end.reset(key) }
                }
                Step::Move(side, size) => { pass(&mut ends, &mut wires, usize::from(side), size); }
                Step::Take(side) => ends[usize::from(side)].take(),
            }
        }
        // Everybody sends 100 more and ends, taking what comes: all must arrive.
        pass(&mut ends, &mut wires, 0, usize::MAX);
        let mut left: Vec<(usize, Key, usize)> = Vec::new();
        for (at, end) in ends.iter().enumerate() {
            left.extend(end.streams.iter().map(|key| (at, *key, 100)));
        }
        for _ in 0..20_000 {
            let mut moved = 0;
            for from in [0, 1] {
                moved += pass(&mut ends, &mut wires, from, usize::MAX);
                ends[0].take();
                ends[1].take();
            }
            for (at, key, bytes) in &mut left {
                let before = ends[*at].sides[key].sent;
                ends[*at].send(*key, *bytes);
                *bytes -= ends[*at].sides[key].sent - before;
                if *bytes == 0 {
                    ends[*at].finish(*key, false);
                }
            }
            if moved == 0 && ends.iter_mut().all(|end| end.connection.output().is_empty()) {
                break;
            }
        }
        let [client, server] = &ends;
        prop_assert_eq!(client.streams.len(), server.streams.len());
        for (near, far) in client.streams.iter().zip(&server.streams) {
            let (near, far) = (&client.sides[near], &server.sides[far]);
            if near.reset || far.reset {
                prop_assert!(near.reset && far.reset || near.is_done || far.is_done);
                continue;
            }
            prop_assert_eq!(near.sent, far.received);
            prop_assert_eq!(far.sent, near.received);
            prop_assert!(near.ended && far.ended);
        }
    }
}
