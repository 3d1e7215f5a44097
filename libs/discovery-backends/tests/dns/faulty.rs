//! A server for faults that no real one shows on demand: a test says what comes of each query.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

use super::place::place;

/// How a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    Udp,
    Tcp,
}

/// Gone when it is dropped.
pub(crate) struct Faulty {
    /// Where it answers.
    pub(crate) at: SocketAddr,
    asked: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Faulty {
    /// Answers each query with the messages that `answer` makes of it: none is silence.
    pub(crate) async fn start(
        answer: impl Fn(&Message, Over) -> Vec<Message> + Send + Sync + 'static,
    ) -> Self {
        let at = place();
        let (answer, asked) = (Arc::new(answer), Arc::new(AtomicUsize::new(0)));
        let mut serving = JoinSet::new();
        let socket = UdpSocket::bind(at).await.unwrap();
        let listener = TcpListener::bind(at).await.unwrap();
        let (of_udp, count) = (Arc::clone(&answer), Arc::clone(&asked));
        serving.spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                let query = Message::from_vec(&buffer[..length]).unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                for message in of_udp(&query, Over::Udp) {
                    let bytes = message.to_vec().unwrap();
                    socket.send_to(&bytes, from).await.unwrap();
                }
            }
        });
        let count = Arc::clone(&asked);
        serving.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut buffer = vec![0; length.into()];
                        stream.read_exact(&mut buffer).await.unwrap();
                        let query = Message::from_vec(&buffer).unwrap();
                        count.fetch_add(1, Ordering::Relaxed);
                        for message in answer(&query, Over::Tcp) {
                            let bytes = message.to_vec().unwrap();
                            let length = u16::try_from(bytes.len()).unwrap();
                            stream.write_u16(length).await.unwrap();
                            stream.write_all(&bytes).await.unwrap();
                        }
                    }
                });
            }
        });
        Self {
            at,
            asked,
            _serving: serving,
        }
    }

    /// How many queries it has had.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

/// An answer to `query` without records.
pub(crate) fn reply(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.queries.clone_from(&query.queries);
    reply
}

pub(crate) fn error(query: &Message, code: ResponseCode) -> Message {
    let mut reply = reply(query);
    reply.metadata.response_code = code;
    reply
}

/// Records for whichever name is asked for: this address where A is, and none otherwise.
pub(crate) fn address(query: &Message, last: u8) -> Message {
    let mut reply = reply(query);
    if kind(query) == RecordType::A {
        let address = RData::A(A::new(10, 0, 0, last));
        reply
            .answers
            .push(Record::from_rdata(name(query), 1, address));
    }
    reply
}

pub(crate) fn kind(query: &Message) -> RecordType {
    query.queries[0].query_type()
}

pub(crate) fn name(query: &Message) -> Name {
    query.queries[0].name().clone()
}
