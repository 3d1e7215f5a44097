//! Name servers, asked one after the other until one answers.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_resolver::{
    NameServerPool, PoolContext, TlsConfig,
    config::{NameServerConfig, ResolverOpts},
    net::{
        DnsError, NetError,
        runtime::TokioRuntimeProvider,
        xfer::{DnsHandle as _, FirstAnswer as _},
    },
    proto::{
        op::{DnsRequestOptions, Message, Query, ResponseCode},
        rr::{Name, RecordType},
    },
};

use super::{
    question::{Question, Said},
    terms::Over,
    trouble::Trouble,
};

/// How long a server may take for one query, over UDP and then over TCP where that does not fit.
const TIMEOUT: Duration = Duration::from_secs(1);
/// How long for all queries that a question takes.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(5);

/// All that may be asked, in the order in which they are.
#[derive(Debug)]
pub(super) struct Servers {
    list: Vec<Server>,
    /// The one that answered last: the next ones are asked when it fails.
    first: usize,
}

/// One of them.
pub(super) struct Server {
    at: SocketAddr,
    pool: NameServerPool<TokioRuntimeProvider>,
}

/// What a server answers to one query.
#[derive(Debug)]
pub(super) enum Reply {
    /// With records.
    Records(Box<Message>),
    /// Without any, which holds for so many seconds.
    Nothing(Option<u32>),
    /// That there is no such name, which holds for so many seconds.
    Missing(Option<u32>),
}

impl Servers {
    pub(super) fn new(at: &[SocketAddr], over: Over) -> Result<Self, String> {
        let servers = at.iter().map(|at| Server::new(*at, over));
        let list: Result<Vec<_>, _> = servers.collect();
        let list = list.map_err(|error| error.to_string())?;
        Ok(Self { list, first: 0 })
    }

    /// Has one of them answer the whole question: half of it from one and half from another would be an answer that
    /// nobody gave.
    pub(super) async fn ask(&mut self, question: &Question) -> Result<Said, Trouble> {
        let mut troubles = Vec::new();
        for _ in 0..self.list.len() {
            let server = &self.list[self.first];
            let asking = tokio::time::timeout(QUESTION_TIMEOUT, question.put(server));
            let slow = Trouble::Server(format!("it takes more than {QUESTION_TIMEOUT:?}"));
            match asking.await.unwrap_or(Err(slow)) {
                Err(Trouble::Server(why)) => {
                    troubles.push(format!("the server {} fails: {why}", server.at));
                    self.first = (self.first + 1) % self.list.len();
                }
                said => return said,
            }
        }
        Err(Trouble::Server(troubles.join("; ")))
    }
}

impl Server {
    fn new(at: SocketAddr, over: Over) -> Result<Self, NetError> {
        let mut config = match over {
            Over::Either => NameServerConfig::udp_and_tcp(at.ip()),
            Over::Tcp => NameServerConfig::tcp(at.ip()),
        };
        for connection in &mut config.connections {
            connection.port = at.port();
        }
        let mut options = ResolverOpts::default();
        options.timeout = TIMEOUT;
        let context = Arc::new(PoolContext::new(options, TlsConfig::new()?));
        let provider = TokioRuntimeProvider::default();
        let pool = NameServerPool::from_config([config], context, provider);
        Ok(Self { at, pool })
    }

    /// Asks for records of a complete name.
    pub(super) async fn query(&self, name: &Name, kind: RecordType) -> Result<Reply, Trouble> {
        let query = Query::query(name.clone(), kind);
        let asking = self.pool.lookup(query, DnsRequestOptions::default());
        let fails = |why: String| Err(Trouble::Server(why));
        match asking.first_answer().await {
            Ok(response) => Ok(Reply::Records(Box::new(response.into_message()))),
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match none.response_code {
                ResponseCode::NXDomain => Ok(Reply::Missing(none.negative_ttl)),
                // Without a word on how long it holds, and with others to ask, it says that it does not know.
                _ if none.ns.is_some() && none.soa.is_none() => {
                    fails("it only says whom else to ask".to_owned())
                }
                _ => Ok(Reply::Nothing(none.negative_ttl)),
            },
            Err(NetError::Dns(DnsError::ResponseCode(code))) => {
                fails(format!("it answers `{code}`"))
            }
            Err(NetError::Truncated) => fails(
                "its answer is cut off, over TCP too or because that cannot be had: of more than 65,535 bytes, name fewer records there or use several pools"
                    .to_owned(),
            ),
            Err(NetError::Timeout) => fails(format!("it does not answer within {TIMEOUT:?}")),
            Err(error) => fails(error.to_string()),
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
