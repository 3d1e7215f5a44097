//! Held against h2: the same calls between each pair of engines are seen in the same way by both sides.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::future::join_all;
use http::{HeaderMap, HeaderValue, Request, Response};
use proptest::{collection::vec, prelude::*, sample::select};
use tether_http2_io::{
    Config, Error, Reason,
    either::{Engine, RecvStream, SendRequest, SendResponse, SendStream, accept, connect},
};
use tokio::io::duplex;

/// How a call is made and answered.
#[derive(Debug, Clone)]
struct Call {
    fields: Vec<(String, String)>,
    request: Vec<usize>,
    request_trailers: bool,
    answer: Answer,
    response: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// A head and nothing else.
    Head,
    /// A body that ends by itself.
    Body,
    /// A body with trailers.
    Trailers,
    /// A head, and then a reset for this reason.
    Reset(u32),
    /// A reset instead of an answer.
    Refused(u32),
    /// Nothing: the client gives it up when its request was sent.
    Cancelled,
}

/// What one side saw.
type Seen = BTreeMap<String, String>;

fn body(sizes: &[usize]) -> Vec<Bytes> {
    let piece = |(at, size): (usize, &usize)| {
        Bytes::from(vec![
            u8::try_from(at % 251).expect("it is as it should be");
            *size
        ])
    };
    sizes.iter().enumerate().map(piece).collect()
}

fn trailers() -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert("grpc-status", HeaderValue::from_static("0"));
    fields.insert("x-end", HeaderValue::from_static("yes"));
    fields
}

fn told(fields: &HeaderMap) -> String {
    let mut all: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name}={value:?}"))
        .collect();
    all.sort();
    all.join(" ")
}

fn why(error: &Error) -> String {
    match error {
        Error::Reset { reason, remote } => format!("reset {reason:?} remote {remote}"),
        Error::GoAway { reason, remote } => format!("gone {reason:?} remote {remote}"),
        Error::Io(..) => "lost".to_owned(),
        Error::TooLarge { .. } => "too large".to_owned(),
        Error::Misused(what) => (*what).to_owned(),
    }
}

async fn send(to: &mut SendStream, pieces: Vec<Bytes>) -> Result<(), String> {
    for mut piece in pieces {
        while !piece.is_empty() {
            to.reserve(piece.len());
            let capacity = poll_fn(|cx| to.poll_capacity(cx)).await;
            let capacity = capacity.ok_or("over")?.map_err(|error| why(&error))?;
            let part = piece.split_to(capacity.min(piece.len()));
            to.send_data(part, false).map_err(|error| why(&error))?;
        }
    }
    Ok(())
}

/// All of a body, as its length and a sum, and how it ended.
async fn read(from: &mut RecvStream) -> String {
    let (mut length, mut sum) = (0, 0_u64);
    while let Some(data) = poll_fn(|cx| from.poll_data(cx)).await {
        match data {
            Err(error) => return why(&error),
            Ok(data) => {
                from.release_capacity(data.len());
                for byte in &data {
                    length += 1;
                    sum = sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
                }
            }
        }
    }
    match poll_fn(|cx| from.poll_trailers(cx)).await {
        Err(error) => why(&error),
        Ok(fields) => format!(
            "{length} {sum} {}",
            fields.map_or_else(String::new, |all| told(&all))
        ),
    }
}

async fn answer(request: Request<RecvStream>, respond: SendResponse, call: Call) -> String {
    let (head, mut from) = request.into_parts();
    let mut seen = format!("{} {} {}", head.method, head.uri, told(&head.headers));
    if let Answer::Refused(reason) = call.answer {
        let head = Response::new(());
        // A reset needs the stream, which comes with a head in either engine; nobody reads it.
        if let Ok(mut to) = respond.send_response(head, false) {
            to.send_reset(Reason(reason));
        }
        return seen;
    }
    seen.push_str(&read(&mut from).await);
    if call.answer == Answer::Cancelled {
        let mut respond = respond;
        poll_fn(|cx| respond.poll_reset(cx)).await;
        return format!("{seen} cancelled");
    }
    let mut head = Response::builder().status(200);
    for (name, value) in &call.fields {
        head = head.header(name, value);
    }
    let is_all = call.answer == Answer::Head;
    let Ok(mut to) = respond.send_response(head.body(()).expect("it is as it should be"), is_all)
    else {
        return format!("{seen} gone");
    };
    match call.answer {
        Answer::Head => {}
        Answer::Reset(reason) => to.send_reset(Reason(reason)),
        _ => {
            let sent = send(&mut to, body(&call.response)).await;
            seen.push_str(&format!(" {sent:?}"));
            let _ = match call.answer {
                Answer::Trailers => to.send_trailers(trailers()),
                _ => to.send_data(Bytes::new(), true),
            };
        }
    }
    seen
}

async fn ask(sender: SendRequest, at: usize, call: Call) -> String {
    let mut request = Request::post(format!("http://site/call/{at}"));
    for (name, value) in &call.fields {
        request = request.header(name, value);
    }
    let sender = sender.ready().await;
    let (head, ()) = request
        .body(())
        .expect("it is as it should be")
        .into_parts();
    let (response, mut to) = match sender.map(|mut sender| sender.send_request(&head, false)) {
        Ok(Ok(sent)) => sent,
        Ok(Err(error)) | Err(error) => return why(&error),
    };
    let sending = async {
        let sent = send(&mut to, body(&call.request)).await;
        if sent.is_ok() {
            let _ = match call.request_trailers {
                true => to.send_trailers(trailers()),
                false => to.send_data(Bytes::new(), true),
            };
        }
        if call.answer == Answer::Cancelled {
            to.send_reset(Reason::CANCEL);
        }
    };
    let reading = async {
        match response.await {
            Err(error) => why(&error),
            Ok(response) => {
                let (head, mut from) = response.into_parts();
                let rest = read(&mut from).await;
                format!("{} {} {rest}", head.status, told(&head.headers))
            }
        }
    };
    let ((), seen) = tokio::join!(sending, reading);
    // What was read before a reset is not the same each time.
    match call.answer {
        Answer::Reset(reason) | Answer::Refused(reason) => {
            assert!(
                seen.contains(&format!("reset {:?} remote true", Reason(reason))),
                "{seen}"
            );
            "reset".to_owned()
        }
        Answer::Cancelled => "cancelled".to_owned(),
        _ => seen,
    }
}

/// Makes all calls at once; answers with what clients saw, and servers.
async fn play(client: Engine, server: Engine, calls: &[Call], windows: (u32, u32)) -> (Seen, Seen) {
    let (near, far) = duplex(10_000);
    let config = |window| Config {
        stream_window: window,
        connection_window: 200_000,
        ..Config::default()
    };
    let at_server = Arc::new(Mutex::new(Seen::new()));
    let (seen, known) = (Arc::clone(&at_server), calls.to_vec());
    let serving = tokio::spawn(async move {
        let mut connection = accept(server, far, &config(windows.1))
            .await
            .expect("it ends well");
        let mut tasks = tokio::task::JoinSet::new();
        while let Some(Ok((request, respond))) = connection.accept().await {
            let path = request.uri().path().to_owned();
            let at: usize = path
                .rsplit('/')
                .next()
                .expect("it is as it should be")
                .parse()
                .expect("it is as it should be");
            let (seen, call) = (Arc::clone(&seen), known[at].clone());
            tasks.spawn(async move {
                // How far one has come that is given up, and whether it is seen at all, is not the same each time.
                let is_whole =
                    matches!(call.answer, Answer::Head | Answer::Body | Answer::Trailers);
                let saw = answer(request, respond, call).await;
                if is_whole {
                    seen.lock().expect("nobody panicked").insert(path, saw);
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    });
    let (sender, driving) = connect(client, near, &config(windows.0))
        .await
        .expect("it ends well");
    let driving = tokio::spawn(driving);
    let asked = calls.iter().enumerate().map(|(at, call)| {
        let (sender, call) = (sender.clone(), call.clone());
        async move { (at.to_string(), ask(sender, at, call).await) }
    });
    let at_client = join_all(asked).await.into_iter().collect();
    drop(sender);
    // Either side may close first, and the other find it closed.
    let _ = driving.await.expect("it ends well");
    serving.await.expect("it ends well");
    let at_server = std::mem::take(&mut *at_server.lock().expect("nobody panicked"));
    (at_client, at_server)
}

fn call() -> impl Strategy<Value = Call> {
    let name = select(vec![
        "x-a",
        "x-b",
        "user-agent",
        "grpc-timeout",
        "x-bin",
        "cookie",
    ]);
    let field =
        (name, "[a-z ]{0,40}").prop_map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    let size = prop_oneof![4 => 0..200_usize, 2 => 0..20_000_usize, 1 => 60_000..150_000_usize];
    let answer = prop_oneof![
        1 => Just(Answer::Head),
        2 => Just(Answer::Body),
        4 => Just(Answer::Trailers),
        1 => (0..14_u32).prop_map(Answer::Reset),
        1 => (0..14_u32).prop_map(Answer::Refused),
        1 => Just(Answer::Cancelled),
    ];
    (
        vec(field, 0..6),
        vec(size.clone(), 0..5),
        any::<bool>(),
        answer,
        vec(size, 0..5),
    )
        .prop_map(
            |(fields, request, request_trailers, answer, response)| Call {
                fields,
                request,
                request_trailers,
                answer,
                response,
            },
        )
}

/// How many histories are tried: `TETHER_HTTP2_CASES` for more.
fn cases() -> u32 {
    let given = std::env::var("TETHER_HTTP2_CASES").ok();
    given.and_then(|cases| cases.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn calls_are_the_same_between_all_engines(
        calls in vec(call(), 1..12),
        windows in (select(vec![100_u32, 65_535, 1 << 20]), select(vec![1_000_u32, 65_535, 300_000])),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("it is as it should be");
        let played = |client, server| {
            let play = play(client, server, &calls, windows);
            let patience = std::time::Duration::from_secs(20);
            runtime.block_on(async { tokio::time::timeout(patience, play).await.expect("it ends") })
        };
        let expected = played(Engine::H2, Engine::H2);
        for (client, server) in [(Engine::Own, Engine::H2), (Engine::H2, Engine::Own), (Engine::Own, Engine::Own)] {
            prop_assert_eq!(&played(client, server), &expected, "{:?} calls {:?}", client, server);
        }
    }
}
