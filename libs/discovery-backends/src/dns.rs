//! `dns://name:port`: every A and AAAA record of a name, asked again when its time to live is over.
//!
//! `dns://127.0.0.1:8600/name:port` asks a certain server, as gRPC writes it; Consul wants that. Names
//! are always taken as complete: search domains are not tried.
//!
//! A name that has no addresses serves from none. A name that does not exist, or a server that does
//! not answer, says nothing: servers answer NXDOMAIN while they restart, and what served a moment ago
//! most likely still does.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{NameServerConfig, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::ResponseCode, rr::RecordType},
};
use tether_types::Address;

use super::{Answer, Backend, Options, Watch, target};

/// Servers that say 0 mean "do not cache", which would be a query without pause.
const FLOOR: Duration = Duration::from_secs(1);
/// A record that lives for a day may still be changed by hand.
const CEILING: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(1);
/// Where the server does not say how long "no addresses" holds, and after an error.
const ASK_AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Dns;

impl Backend for Dns {
    fn scheme(&self) -> &'static str {
        "dns"
    }

    fn usage(&self) -> &'static str {
        "dns://workers.internal:50051"
    }

    fn watch(&self, rest: &str, _options: &mut Options) -> Result<Watch, String> {
        let (server, name) = match rest.split_once('/') {
            Some((server, name)) => (Some(parse_server(server)?), name),
            None => (None, rest),
        };
        let (host, port) = match target(name)? {
            Address::Tcp { host, port } => (host, port),
            Address::Unix(_) => return Err("a socket has no name to ask for".to_owned()),
        };
        if host.parse::<IpAddr>().is_ok() {
            return Err(format!("`{host}` is an address already, use `static://`"));
        }
        let watching = Watching {
            server,
            name: format!("{}.", host.trim_end_matches('.')),
            port,
            resolver: None,
            wait: Duration::ZERO,
        };
        Ok(stream::unfold(watching, |mut watching| async {
            let answer = watching.next().await;
            Some((answer, watching))
        })
        .boxed())
    }
}

fn parse_server(text: &str) -> Result<SocketAddr, String> {
    let with_port = text.parse().ok();
    let without = || Some(SocketAddr::new(text.parse().ok()?, 53));
    with_port
        .or_else(without)
        .ok_or_else(|| format!("the server `{text}` is not an IP address with or without a port"))
}

struct Watching {
    server: Option<SocketAddr>,
    /// With its trailing dot.
    name: String,
    port: u16,
    resolver: Option<TokioResolver>,
    /// Until the next question.
    wait: Duration,
}

impl Watching {
    async fn next(&mut self) -> Result<Answer, String> {
        tokio::time::sleep(self.wait).await;
        let answer = self.ask().await;
        self.wait = answer.as_ref().map_or(ASK_AGAIN, |(_, wait)| *wait);
        let answer = match answer {
            Ok((addresses, _)) => Answer::of(addresses),
            Err(error) => Err(error.to_string()),
        };
        answer.map_err(|error| format!("`{}`: {error}", self.name))
    }

    async fn ask(&mut self) -> Result<(Vec<Address>, Duration), NetError> {
        let resolver = match &self.resolver {
            Some(resolver) => resolver,
            None => &*self.resolver.insert(resolver(self.server)?),
        };
        // Asked apart, because a resolver that asks for both calls it empty when one of them failed.
        let (v4, v6) = tokio::join!(
            records(resolver, &self.name, RecordType::A),
            records(resolver, &self.name, RecordType::AAAA),
        );
        let (v4, v6) = (v4?, v6?);
        let wait = match (v4.0.is_empty(), v6.0.is_empty()) {
            (false, true) => v4.1,
            (true, false) => v6.1,
            _ => v4.1.min(v6.1),
        };
        let addresses = v4.0.into_iter().chain(v6.0).map(|ip| Address::Tcp {
            host: ip.to_string(),
            port: self.port,
        });
        Ok((addresses.collect(), wait.clamp(FLOOR, CEILING)))
    }
}

fn resolver(server: Option<SocketAddr>) -> Result<TokioResolver, NetError> {
    let mut builder = match server {
        None => Resolver::builder_tokio()?,
        Some(server) => {
            let mut config = NameServerConfig::udp_and_tcp(server.ip());
            for connection in &mut config.connections {
                connection.port = server.port();
            }
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![config]);
            Resolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.timeout = TIMEOUT;
    options.attempts = 1;
    // The times here decide when to ask; a cache would round them up again and answer from the past.
    options.cache_size = 0;
    builder.build()
}

/// Addresses of one family and for how long they hold.
async fn records(
    resolver: &TokioResolver,
    name: &str,
    kind: RecordType,
) -> Result<(Vec<IpAddr>, Duration), NetError> {
    match resolver.lookup(name, kind).await {
        Ok(lookup) => {
            let answers = lookup.answers();
            let seconds = answers.iter().map(|record| record.ttl).min().unwrap_or(0);
            let addresses = answers.iter().filter_map(|record| record.data.ip_addr());
            Ok((addresses.collect(), Duration::from_secs(seconds.into())))
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none)))
            if none.response_code == ResponseCode::NoError =>
        {
            let seconds = none
                .negative_ttl
                .map(|seconds| Duration::from_secs(seconds.into()));
            Ok((Vec::new(), seconds.unwrap_or(ASK_AGAIN)))
        }
        Err(error) => Err(error),
    }
}
