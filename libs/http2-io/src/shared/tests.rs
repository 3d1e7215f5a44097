//! Who has room to write and streams to open, and when: with a connection that nobody drives.

use std::{
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Poll, Wake},
};

use bytes::{Bytes, BytesMut};
use http::{Request, request::Parts};
use tokio::io::DuplexStream;

use super::*;
use crate::{ClientConnection, SendRequest, SendStream, connect};

/// How often somebody was woken.
#[derive(Debug, Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Woken {
    fn times(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn head() -> Parts {
    let request = Request::post("http://site/a").body(());
    request.expect("it is a request").into_parts().0
}

struct Client {
    sender: SendRequest,
    shared: Arc<Shared>,
    /// Nobody drives it: nothing is written but by hand.
    _connection: ClientConnection<DuplexStream>,
}

impl Client {
    fn new() -> Self {
        let (io, _) = tokio::io::duplex(1);
        let (sender, connection) = connect(io, Config::default());
        let shared = sender.shared();
        Self {
            sender,
            shared,
            _connection: connection,
        }
    }

    /// Whose server gives all the room there can be.
    fn with_room(streams: u32) -> Self {
        let client = Self::new();
        let settings = [0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 4, 0x40, 0, 0, 0, 0, 3];
        client.hear(&[&settings[..], &streams.to_be_bytes()].concat());
        client.hear(&[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x40, 0, 0, 0]);
        client
    }

    fn hear(&self, bytes: &[u8]) {
        let mut input = BytesMut::from(bytes);
        let mut core = self.shared.lock();
        while let Some(event) = core.connection.next(&mut input).expect("it is read") {
            core.on_event(event);
        }
        core.on_parsed();
    }

    fn open(&self) -> SendStream {
        let sent = self.sender.clone().send_request(&head(), false);
        sent.expect("there is room").1
    }

    /// So much of the output was written; all of it where there is less.
    fn written(&self, bytes: usize) {
        let mut core = self.shared.lock();
        let bytes = bytes.min(core.connection.output().len());
        core.connection.output().advance(bytes);
        core.connection.on_written();
        core.wake_writers();
        core.wake_openers();
    }
}

/// One that waits for room to write; with how often it was woken.
fn waits(stream: &mut SendStream) -> Arc<Woken> {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let polled = stream.poll_capacity(&mut Context::from_waker(&waker));
    assert!(polled.is_pending(), "{polled:?}");
    woken
}

fn fill(client: &Client, stream: &mut SendStream) {
    while stream.capacity() > 0 {
        let piece = Bytes::from(vec![0; stream.capacity()]);
        stream.send_data(&piece, false).expect("there is room");
    }
    assert!(client.shared.lock().connection.room() == 0);
}

#[test]
fn room_to_write_goes_round_and_wakes_no_more_than_it_is_for() {
    let client = Client::with_room(1_000);
    let mut bulk = client.open();
    let mut others: Vec<_> = (0..30).map(|_| client.open()).collect();
    let newcomer = client.open();
    fill(&client, &mut bulk);
    let first = waits(&mut bulk);
    let woken: Vec<_> = others.iter_mut().map(waits).collect();
    let all = || woken.iter().map(|one| one.times()).sum::<usize>();
    client.written(1_000);
    assert_eq!((first.times(), all()), (0, 0), "that is not worth it");

    client.written(40_000);
    let turns = first.times() + all();
    assert!((2..=4).contains(&turns), "{turns} had their turn");
    assert_eq!(first.times(), 1);
    // Who has its turn sends, and who has not does not come before those that wait.
    let capacity = bulk.capacity();
    assert!((1..=TURN).contains(&capacity), "{capacity}");
    bulk.send_data(&Bytes::from_static(b"some"), false)
        .expect("there is room");
    assert_eq!(bulk.capacity(), 0);
    assert_eq!(newcomer.capacity(), 0);
    // One more has it when one is gone that has not used it.
    let before = all();
    drop(others.remove(0));
    assert!(all() > before, "nobody else had the room");

    // All have it in the end, and then there is nobody to wait for.
    let again = waits(&mut bulk);
    for _ in 0..30 {
        client.written(usize::MAX);
    }
    assert!(woken[1..].iter().all(|one| one.times() == 1));
    assert_eq!(again.times(), 1);
    assert!(newcomer.capacity() > 0);
}

#[test]
fn a_turn_that_cannot_be_used_is_the_next_ones() {
    let client = Client::with_room(1_000);
    let mut bulk = client.open();
    let mut others = [client.open(), client.open(), client.open()];
    fill(&client, &mut bulk);
    let woken = others.each_mut().map(waits);
    let times = || woken.each_ref().map(|one| one.times());
    // What streams begin with is taken back, but the third was given something beside it.
    client.hear(&[0, 0, 4, 8, 0, 0, 0, 0, 7, 0, 0, 0, 9]);
    client.hear(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0]);
    client.written(17_000);
    assert_eq!(times(), [1, 1, 0]);

    waits(&mut others[0]);
    assert_eq!(times(), [1, 1, 1]);
    assert_eq!(others[2].capacity(), 9);
}

#[test]
fn nothing_is_left_of_streams_that_waited_when_all_are_gone() {
    let client = Client::with_room(5_000);
    let mut streams: Vec<_> = (0..2_000).map(|_| client.open()).collect();
    fill(&client, &mut streams[0]);
    let waiting: Vec<_> = streams.iter_mut().map(waits).collect();
    drop(streams);
    assert!(client.shared.lock().to_write.is_empty());
    // Those who would be woken now are no more.
    client.written(usize::MAX);
    drop(waiting);
    assert!(client.open().capacity() > 0);
}

/// What came of waiting for a stream, once something has.
fn opens<F: Future>(ready: &mut Pin<Box<F>>, woken: &Arc<Woken>) -> Option<F::Output> {
    let waker = Waker::from(Arc::clone(woken));
    match ready.as_mut().poll(&mut Context::from_waker(&waker)) {
        Poll::Pending => None,
        Poll::Ready(ready) => Some(ready),
    }
}

#[test]
fn those_who_wait_for_a_stream_have_it_in_their_order_and_one_at_a_time() {
    let client = Client::with_room(2);
    let open = (client.open(), client.open());
    let mut waiting: Vec<_> = (0..20)
        .map(|_| {
            let mut ready = Box::pin(client.sender.clone().ready());
            let woken = Arc::new(Woken::default());
            assert!(opens(&mut ready, &woken).is_none());
            (ready, woken)
        })
        .collect();
    let times = |of: &[(_, Arc<Woken>)]| of.iter().map(|one| one.1.times()).sum::<usize>();
    drop(waiting.remove(0));
    drop(open.0);
    assert_eq!((waiting[0].1.times(), times(&waiting)), (1, 1));
    // It was promised to the one that was woken, and to no other.
    let mut late = Box::pin(client.sender.clone().ready());
    assert!(opens(&mut late, &Arc::default()).is_none());
    let (mut first, woken) = waiting.remove(0);
    let promised = opens(&mut first, &woken).expect("it is its turn");
    drop(open.1);
    assert_eq!((waiting[0].1.times(), times(&waiting)), (1, 1));
    // Who gives up what it was promised leaves it to the next.
    drop(waiting.remove(0));
    assert_eq!((waiting[0].1.times(), times(&waiting)), (1, 1));
    drop((first, promised, waiting, late));
    let core = client.shared.lock();
    assert!(core.openers.is_empty());
    assert_eq!((core.promised, core.free()), (0, 2));
}

#[test]
fn all_who_wait_for_a_stream_hear_that_there_will_be_none() {
    let client = Client::with_room(1);
    let _open = client.open();
    let woken = Arc::new(Woken::default());
    let mut ready = Box::pin(client.sender.clone().ready());
    assert!(opens(&mut ready, &woken).is_none());
    let lost = Error::Io(std::io::ErrorKind::Other, "gone".to_owned());
    client.shared.lock().fail(&lost);

    assert_eq!(woken.times(), 1);
    assert!(opens(&mut ready, &woken).is_some_and(|ready| ready.is_err()));
    drop(ready);
    assert_eq!(client.shared.lock().promised, 0);
}

#[test]
fn streams_open_again_when_what_was_said_on_others_is_written() {
    let client = Client::with_room(u32::MAX);
    let mut bulk = client.open();
    fill(&client, &mut bulk);
    let woken = Arc::new(Woken::default());
    let mut ready = Box::pin(client.sender.clone().ready());
    assert!(opens(&mut ready, &woken).is_none());
    client.written(40_000);
    assert_eq!(woken.times(), 1);
    assert!(opens(&mut ready, &woken).is_some_and(|ready| ready.is_ok()));
}

#[test]
fn what_was_taken_is_told_when_more_is_asked_for_and_when_nobody_will() {
    for asks in [true, false] {
        let client = Client::with_room(10);
        let sent = client.sender.clone().send_request(&head(), false);
        let (response, _to) = sent.expect("there is room");
        client.hear(&[0, 0, 1, 1, 4, 0, 0, 0, 1, 0x88]);
        let piece = [&[0, 0x40, 0, 0, 0, 0, 0, 0, 1][..], &[7; 1 << 14]].concat();
        // More than half of the stream's window.
        (0..33).for_each(|_| client.hear(&piece));
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok(response)) = Pin::new(&mut { response }).poll(&mut cx) else {
            panic!("it has come");
        };
        let mut body = response.into_body();
        let mut taken = 0;
        while taken < 33 << 14 {
            let Poll::Ready(Some(Ok(data))) = body.poll_data(&mut cx) else {
                panic!("it has come");
            };
            taken += data.len();
            body.release_capacity(data.len());
        }
        let output = || client.shared.lock().connection.output().len();
        let before = output();
        match asks {
            true => assert!(body.poll_data(&mut cx).is_pending()),
            false => drop(body),
        }
        assert_eq!(output() - before, 13, "one word on the window");
    }
}
