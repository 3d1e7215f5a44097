//! Frames that no client may send are refused as RFC 9113 says, and nobody else notices.

use std::time::Duration;

use bytes::Bytes;
use tether_gateway::Engine;
use tokio::sync::mpsc;
use tonic::Streaming;

use super::{
    attacks::{self, Attack, Ends},
    contract,
    wire::*,
};
use crate::{
    client::{Client, next},
    house::{DIGITS, House, engine},
};

/// How long the end of a connection may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Somebody else: a stream that is open all the time, and calls now and then.
struct Bystander {
    client: Client,
    sender: mpsc::Sender<Bytes>,
    answers: Streaming<Bytes>,
}

impl Bystander {
    async fn open(house: &House) -> Self {
        let client = house.client().await;
        let (sender, messages) = mpsc::channel(1);
        let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
        let answers = client.bidi("/conform.v1.Contract/PingPong", DIGITS, messages);
        Self {
            answers: answers.await.expect("the stream opens"),
            client,
            sender,
        }
    }

    async fn is_unharmed(&mut self) {
        let word = Bytes::from("still here");
        self.sender.send(word.clone()).await.expect("it is open");
        let answer = next(&mut self.answers).await;
        assert_eq!(answer.expect("the stream goes on"), Some(word));
        let call = self.client.unary("/conform.v1.Contract/Echo", DIGITS, "a");
        call.await.expect("calls go on");
    }
}

/// Waits for a connection's end; answers with the code it was given as the reason, if any.
async fn closed(wire: &mut Wire) -> Option<u32> {
    let mut code = None;
    while let Some(frame) = wire.next().await {
        if frame.kind == GOAWAY {
            code = Some(frame.number_at(4));
        }
    }
    code
}

/// Waits until the other side answers a PING; answers with the frames before it that end something.
async fn until_alive(wire: &mut Wire) -> Vec<Frame> {
    const PAYLOAD: [u8; 8] = *b"alive? 1";
    wire.send(frame(PING, 0, 0, PAYLOAD)).await;
    let mut ends = Vec::new();
    loop {
        match wire.next().await {
            None => panic!("the connection was closed, after {ends:?}"),
            Some(frame) if frame.kind == PING && frame.payload == PAYLOAD => return ends,
            Some(frame) if [RST_STREAM, GOAWAY].contains(&frame.kind) => ends.push(frame),
            Some(_) => {}
        }
    }
}

/// Waits for the end of stream 1, or of the connection; answers with the kind of frame that said so, and its code.
async fn ended(wire: &mut Wire) -> (u8, u32) {
    loop {
        match wire.next().await {
            None => panic!("the connection was closed without a word"),
            Some(frame) if frame.kind == GOAWAY => return (GOAWAY, frame.number_at(4)),
            Some(frame) if frame.kind == RST_STREAM => {
                assert_eq!(frame.stream, 1);
                return (RST_STREAM, frame.number_at(0));
            }
            Some(_) => {}
        }
    }
}

/// What is wrong with how it ended.
async fn play(wire: &mut Wire, (_, bytes, ends): &Attack) -> Result<(), String> {
    wire.send(bytes).await;
    let ends = match (*ends, engine()) {
        (Ends::Tolerated(_), Engine::H2) => Ends::Ignored,
        (Ends::Tolerated(codes), Engine::Own) => Ends::Stream(codes),
        (ends, _) => ends,
    };
    match ends {
        Ends::Connection(codes) => match closed(wire).await {
            Some(code) if codes.contains(&code) => Ok(()),
            other => Err(format!(
                "the connection ended with {other:?}, not {codes:?}"
            )),
        },
        Ends::Closed => {
            closed(wire).await;
            Ok(())
        }
        Ends::Stream(codes) | Ends::Tolerated(codes) => match ended(wire).await {
            (RST_STREAM, code) if codes.contains(&code) => {
                until_alive(wire).await;
                Ok(())
            }
            other => Err(format!("ended with {other:?}, not {codes:?}")),
        },
        Ends::Either(codes) => match ended(wire).await {
            (_, code) if codes.contains(&code) => Ok(()),
            other => Err(format!("ended with {other:?}, not {codes:?}")),
        },
        Ends::Answered(status) => {
            let answer = wire.next_of(HEADERS).await.ok_or("it was not answered")?;
            let fields = wire.fields(&answer.payload);
            let seen = fields.iter().find(|(key, _)| key == ":status");
            match seen {
                Some((_, value)) if value == status => Ok(()),
                other => Err(format!("answered with {other:?}")),
            }
        }
        Ends::Ignored => match until_alive(wire).await {
            ends if ends.is_empty() => Ok(()),
            ends => Err(format!("something ended: {ends:?}")),
        },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_frames_end_what_they_are_on_and_nothing_else() {
    let house = House::open().await;
    let worker = contract::Worker::start().await;
    house.tell(0, 1, &worker.address).await;
    let mut bystander = Bystander::open(&house).await;
    let mut wrong = Vec::new();
    let (first, later) = (attacks::prefaces(), attacks::all());

    for attack in &first {
        let mut wire = Wire::silent(&house.address).await;
        wrong.extend(judge(&mut wire, attack).await);
        bystander.is_unharmed().await;
    }
    for attack in &later {
        let (mut wire, _) = Wire::open(&house.address, &[]).await;
        wrong.extend(judge(&mut wire, attack).await);
        bystander.is_unharmed().await;
    }

    let count = first.len() + later.len();
    super::report("malformed frames", count, &wrong);
}

async fn judge(wire: &mut Wire, attack: &Attack) -> Option<String> {
    let played = match tokio::time::timeout(PATIENCE, play(wire, attack)).await {
        Ok(played) => played,
        Err(_) => Err(format!("nothing within {PATIENCE:?}")),
    };
    played.err().map(|why| format!("{}: {why}", attack.0))
}
