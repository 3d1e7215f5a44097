//! What calls are told of their connection, and how they wait for it.

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use tether_http2_io::{Config, Error, SendRequest, ServerConnection, accept, connect};
use tokio::{
    io::{AsyncRead, AsyncWrite, BufStream, DuplexStream, ReadBuf, duplex},
    task::JoinHandle,
};

fn head() -> Parts {
    let request = Request::post("http://site/a.B/Echo").body(());
    request.expect("it is a request").into_parts().0
}

type Driving = JoinHandle<Result<(), Error>>;

fn pair(config: Config) -> (SendRequest, Driving, ServerConnection<DuplexStream>) {
    let (near, far) = duplex(1 << 16);
    let (sender, driving) = connect(near, Config::default());
    (sender, tokio::spawn(driving), accept(far, config))
}

/// The server has begun with the call, so nobody may take its end for a refusal and make it again.
#[tokio::test]
async fn a_call_under_way_is_lost_with_its_connection_whatever_was_said_before() {
    let (sender, driving, mut server) = pair(Config::default());
    let mut sender = sender.ready().await.expect("there is room");
    let (response, _to) = sender.send_request(&head(), true).expect("it is open");
    let taken = server.accept().await.expect("there is one");
    let _call = taken.expect("it is a request");
    server.graceful_shutdown();
    let serving = tokio::spawn(async move { drop(server.accept().await) });
    // Until it has heard that no more are taken.
    let closed = loop {
        match sender.clone().ready().await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(closed.is_go_away() && closed.is_remote(), "{closed}");

    driving.abort();
    let lost = response.await.expect_err("its connection is gone");

    assert!(matches!(lost, Error::Io(..)), "{lost}");
    serving.await.expect("it ends");
}

#[tokio::test]
async fn calls_beyond_what_the_other_side_takes_wait_for_their_turn() {
    let config = Config {
        max_streams: 2,
        ..Config::default()
    };
    let (sender, _driving, mut server) = pair(config);
    let serving = tokio::spawn(async move {
        let (mut open, mut most) = (Vec::new(), 0);
        for _ in 0..20 {
            let (request, respond) = server.accept().await?.ok()?;
            open.push((request, respond));
            most = most.max(open.len());
            if open.len() == 2 {
                for (_, respond) in open.drain(..) {
                    respond.send_response(&Response::new(()), true).ok()?;
                }
            }
        }
        let rest = async move { while server.accept().await.is_some() {} };
        tokio::spawn(rest);
        Some(most)
    });
    let calls = (0..10).map(|_| {
        let sender = sender.clone();
        async move {
            for _ in 0..2 {
                let mut sender = sender.clone().ready().await?;
                let (response, mut to) = sender.send_request(&head(), false)?;
                to.send_data(&Bytes::new(), true)?;
                let (_, mut from) = response.await?.into_parts();
                assert!(poll_fn(|cx| from.poll_data(cx)).await.is_none());
            }
            Ok::<_, Error>(())
        }
    });
    // More would be refused of those that were sent before that was known.
    let most = async || {
        let sender = sender.clone().ready().await.expect("it stands");
        sender.current_max_send_streams()
    };
    while most().await != 2 {
        tokio::task::yield_now().await;
    }
    for ended in futures::future::join_all(calls).await {
        ended.expect("each has its turn");
    }
    assert_eq!(serving.await.expect("it ends"), Some(2));
}

/// As TLS does, which takes what is written and still has to get rid of it.
#[tokio::test]
async fn what_a_stream_keeps_to_itself_is_flushed_however_long_that_takes() {
    let (near, far) = duplex(16);
    let (sender, driving) = connect(BufStream::new(near), Config::default());
    let driving = tokio::spawn(driving);
    let mut server = accept(BufStream::new(far), Config::default());
    let serving = tokio::spawn(async move {
        let (_, respond) = server.accept().await?.ok()?;
        respond.send_response(&Response::new(()), true).ok()?;
        server.accept().await.is_none().then_some(())
    });
    let mut sender = sender.ready().await.expect("there is room");
    let (response, to) = sender.send_request(&head(), true).expect("it is open");

    let answer = response.await.expect("it is answered");

    assert_eq!(answer.status(), 200);
    drop((answer, to, sender));
    let _ = driving.await.expect("it ends");
    let _ = serving.await.expect("it ends");
}

/// Where all that is read was there before, a piece at a time.
struct Recorded {
    pieces: std::vec::IntoIter<Vec<u8>>,
    reads: usize,
    takes_words: bool,
    closes: bool,
}

impl Recorded {
    fn new(pieces: Vec<Vec<u8>>, takes_words: bool) -> Self {
        Self {
            pieces: pieces.into_iter(),
            reads: 0,
            takes_words,
            closes: true,
        }
    }
}

impl AsyncRead for &mut Recorded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.reads += 1;
        if let Some(piece) = self.pieces.next() {
            to.put_slice(&piece);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for &mut Recorded {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(match self.takes_words {
            true => Ok(bytes.len()),
            false => Err(io::ErrorKind::BrokenPipe.into()),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.closes {
            true => Poll::Ready(Ok(())),
            false => Poll::Pending,
        }
    }
}

const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

#[tokio::test]
async fn what_was_answered_before_the_other_side_closed_is_heard() {
    // The head of an answer that is all of it: `:status: 200`.
    let answer = vec![0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88];
    let mut io = Recorded::new(vec![SETTINGS.to_vec(), answer], false);
    let (sender, driving) = connect(&mut io, Config::default());
    let mut sender = sender.ready().await.expect("there is room");
    let (response, _to) = sender.send_request(&head(), true).expect("it is open");

    let lost = driving.await.expect_err("it cannot be written");
    assert!(matches!(lost, Error::Io(..)), "{lost}");
    let answer = response.await.expect("it was answered before");
    assert_eq!(answer.status(), 200);
}

#[test]
fn a_connection_that_has_much_to_say_leaves_others_their_turn() {
    let mut pieces = vec![[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &SETTINGS[..]].concat()];
    for at in 0..200_u8 {
        // A request of nothing but what every request has: `GET http /`.
        let [high, low] = (2 * u16::from(at) + 1).to_be_bytes();
        pieces.push(vec![0, 0, 3, 1, 5, 0, 0, high, low, 0x82, 0x86, 0x84]);
    }
    let mut io = Recorded::new(pieces, true);
    let mut taken = 0;
    {
        let mut server = accept(&mut io, Config::default());
        let mut serving = pin!(async {
            while let Some(Ok(_)) = server.accept().await {
                taken += 1;
            }
        });
        let mut cx = Context::from_waker(Waker::noop());
        assert!(serving.as_mut().poll(&mut cx).is_pending());
    }
    assert!((1..=8).contains(&io.reads), "{} reads", io.reads);
    assert!(taken > 0, "none of them was handed out");
}

#[tokio::test]
async fn a_socket_that_does_not_close_is_not_waited_for() {
    let mut io = Recorded::new(vec![SETTINGS.to_vec()], true);
    io.closes = false;
    let (sender, driving) = connect(&mut io, Config::default());
    drop(sender);
    let patience = std::time::Duration::from_secs(20);
    let ended = tokio::time::timeout(patience, driving).await;
    ended.expect("it ends").expect("it ends well");
}
