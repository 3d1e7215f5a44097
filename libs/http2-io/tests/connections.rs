//! What calls are told of their connection, and how they wait for it.

use std::future::poll_fn;

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use tether_http2_io::{Config, Error, SendRequest, ServerConnection, accept, connect};
use tokio::{
    io::{BufStream, DuplexStream, duplex},
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
                to.send_data(Bytes::new(), true)?;
                let (_, mut from) = response.await?.into_parts();
                assert!(poll_fn(|cx| from.poll_data(cx)).await.is_none());
            }
            Ok::<_, Error>(())
        }
    });
    // More would be refused of those that were sent before that was known.
    while sender.current_max_send_streams() != 2 {
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
