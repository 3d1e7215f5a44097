//! Discovery answers DNS itself, so that clients without our protocol find workers: `POOL.NAMESPACE.ZONE.`.
//!
//! What is said is decided in [`zone`]; here it is read from the board and put on the wire, by `hickory-server`.

mod config;
mod fitting;
mod refusals;
mod tcp;
mod zone;

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context as _;
use hickory_server::{
    Server,
    net::{runtime::Time, xfer::Protocol},
    proto::{
        op::{Edns, Header, HeaderCounts, Message, Metadata, OpCode, ResponseCode},
        rr::{DNSClass, Record},
    },
    server::{Request, RequestHandler, ResponseHandler, ResponseInfo},
    zone_handler::MessageResponseBuilder,
};
use tether_clock::{BootClock, Clock as _};
use tokio::net::{TcpListener, UdpSocket};

use crate::board::Board;
use fitting::{Records, Room, fit};
use refusals::Refusals;
use zone::{Refusal, Said, Zone};

pub use config::DnsOut;

/// What does not fit is asked for over TCP: larger datagrams are cut to pieces on the way, and some are lost.
const PAYLOAD_MAX: u16 = 1232;
/// Where a message has the bit that says that it was cut.
const FLAGS: usize = 2;
const TRUNCATED: u8 = 0b10;
/// The ports that questions come to, before anybody answers.
#[derive(Debug)]
pub struct DnsPorts {
    socket: UdpSocket,
    listener: TcpListener,
    zone: Zone,
}

impl DnsOut {
    /// Listens where it is to be answered; nowhere where that is not set.
    ///
    /// # Errors
    /// Names the address, the cause and what to do.
    pub async fn bind(&self) -> anyhow::Result<Option<DnsPorts>> {
        let refused = |why: String| anyhow::anyhow!("`discovery.dns` cannot be used: {why}");
        let Some((host, port)) = self.host_and_port().map_err(refused)? else {
            return Ok(None);
        };
        let zone = self.zone().map_err(|(_, why)| refused(why))?;
        let bind = async {
            let listener = TcpListener::bind((host.as_str(), port)).await?;
            let socket = UdpSocket::bind(listener.local_addr()?).await?;
            io::Result::Ok((listener, socket))
        };
        let (listener, socket) = bind.await.with_context(|| {
            format!("cannot listen for DNS at port {port} of `{host}`; it has to be free over UDP and TCP, and below 1024 is for root")
        })?;
        Ok(Some(DnsPorts {
            socket,
            listener,
            zone,
        }))
    }
}

impl DnsPorts {
    /// Where questions come to.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<std::net::SocketAddr> {
        self.socket.local_addr()
    }
}

/// Answers until a port fails; which, and why.
pub(crate) async fn serve(board: Arc<Board>, ports: DnsPorts) -> String {
    if let Ok(at) = ports.address() {
        tracing::info!(%at, "DNS is answered");
    }
    let answering = Answering(Arc::new(Shared {
        board,
        zone: ports.zone,
        refusals: Mutex::default(),
    }));
    let mut datagrams = Server::new(answering.clone());
    datagrams.register_socket(ports.socket);
    tokio::select! {
        ended = datagrams.block_until_done() => match ended {
            Ok(()) => "no datagram can be received for DNS".to_owned(),
            Err(error) => format!("no datagram can be received for DNS: {error}"),
        },
        error = tcp::serve(ports.listener, answering) => {
            format!("no connection can be accepted for DNS: {error}")
        }
    }
}

#[derive(Clone)]
struct Answering(Arc<Shared>);

struct Shared {
    board: Arc<Board>,
    zone: Zone,
    refusals: Mutex<Refusals>,
}

/// An answer before it is written.
struct Reply {
    code: ResponseCode,
    records: Records,
    soa: Option<Record>,
}

impl Reply {
    fn bare(code: ResponseCode) -> Self {
        Self {
            code,
            records: Records::default(),
            soa: None,
        }
    }
}

impl Shared {
    fn reply(&self, request: &Request) -> Reply {
        if request.metadata.op_code != OpCode::Query {
            return Reply::bare(ResponseCode::NotImp);
        }
        let [query] = request.queries.queries() else {
            return Reply::bare(ResponseCode::FormErr);
        };
        if request.version() > 0 {
            return Reply::bare(ResponseCode::BADVERS);
        }
        let (name, kind) = (query.original().name(), query.query_type());
        if query.query_class() != DNSClass::IN {
            return Reply::bare(ResponseCode::Refused);
        }
        let said = self.board.look(|table| {
            let said = self.zone.say(name, kind, table, request.src().ip());
            (said, table.revision())
        });
        // Before the store was read, that a pool is unknown would be a lie.
        let Some((said, revision)) = said else {
            return Reply::bare(ResponseCode::ServFail);
        };
        let nothing = |code| Reply {
            soa: Some(self.zone.soa(revision)),
            ..Reply::bare(code)
        };
        match said {
            Said::Records {
                answers,
                additionals,
            } => Reply {
                records: Records {
                    answers,
                    additionals,
                    truncated: false,
                },
                ..Reply::bare(ResponseCode::NoError)
            },
            Said::Nothing => nothing(ResponseCode::NoError),
            Said::NoName => nothing(ResponseCode::NXDomain),
            // That nobody serves it would be as much of a lie.
            Said::Unheard => Reply::bare(ResponseCode::ServFail),
            Said::Refused(refusal) => {
                self.tell_of(refusal, request);
                Reply::bare(ResponseCode::Refused)
            }
        }
    }

    fn tell_of(&self, refusal: Refusal, request: &Request) {
        let refusals = self.refusals.lock();
        let mut refusals = refusals.unwrap_or_else(PoisonError::into_inner);
        let Some(count) = refusals.on_refusal(BootClock.now()) else {
            return;
        };
        let queries = request.queries.queries().iter();
        let names: Vec<_> = queries.map(|query| query.name().to_string()).collect();
        let (from, name) = (request.src(), names.join(", "));
        match refusal {
            Refusal::OtherZone => {
                tracing::warn!(%from, name, count, "DNS is asked for names of other zones");
            }
            Refusal::TwoPools => {
                tracing::warn!(%from, name, count, "DNS cannot tell pools apart whose names differ in the case of letters alone");
            }
        }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Answering {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut out: R,
    ) -> ResponseInfo {
        let reply = self.0.reply(request);
        // As large as whoever asks can take, and the way there.
        let payload = request.max_payload().min(PAYLOAD_MAX);
        let room = match request.protocol() {
            Protocol::Udp => Room::Datagram(payload.into()),
            _ => Room::Stream,
        };
        let mut records = fit(reply.records, room, |records| size(request, records));
        // Many take the first one.
        fastrand::shuffle(&mut records.answers);
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative =
            matches!(reply.code, ResponseCode::NoError | ResponseCode::NXDomain);
        metadata.truncation = records.truncated;
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        edns.set_rcode_high(reply.code.high());
        let edns = request.edns.is_some().then_some(&edns);
        let builder = MessageResponseBuilder::new(&request.queries, edns);
        let response = builder.build(
            metadata,
            &records.answers,
            [],
            reply.soa.as_ref(),
            &records.additionals,
        );
        out.send_response(response).await.unwrap_or_else(|error| {
            tracing::debug!(%error, "A DNS answer cannot be sent");
            ResponseInfo::from(Header {
                metadata,
                counts: HeaderCounts::default(),
            })
        })
    }
}

/// How many bytes an answer with these records has.
fn size(request: &Request, records: &Records) -> usize {
    let mut message = Message::response(request.metadata.id, request.metadata.op_code);
    let queries = request.queries.queries().iter();
    message.queries = queries.map(|query| query.original().clone()).collect();
    message.answers.clone_from(&records.answers);
    message.additionals.clone_from(&records.additionals);
    message.edns = request.edns.as_ref().map(|_| Edns::new());
    // What cannot be written is too long, and so is what is cut to the longest message there is: then it says so.
    match message.to_vec() {
        Ok(bytes) if bytes.get(FLAGS).is_some_and(|flags| flags & TRUNCATED == 0) => bytes.len(),
        _ => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tether_store::MemoryStore;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{Config, Discovery, Error};

    #[tokio::test]
    async fn a_port_that_fails_is_the_end_of_discovery_and_an_error() {
        let config = Config {
            dns: DnsOut {
                listen: Some("127.0.0.1:0".to_owned()),
                ..DnsOut::default()
            },
            ..Config::default()
        };
        let ports = config.dns.bind().await.unwrap().unwrap();
        let listener = rustix::io::dup(&ports.listener).unwrap();
        let mut discovery = Discovery::build(&config, Arc::new(MemoryStore::new())).unwrap();
        discovery.answer_dns(Some(ports));
        let running = discovery.run(CancellationToken::new());

        rustix::net::shutdown(listener, rustix::net::Shutdown::Both).unwrap();

        let ended = tokio::time::timeout(Duration::from_secs(10), running).await;
        let error = ended.expect("it ends").unwrap_err();
        assert!(
            matches!(&error, Error::Unasked(why) if why.contains("DNS")),
            "{error}"
        );
    }
}
