//! One question: all the queries that it takes, to one server.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use hickory_resolver::proto::rr::{Name, Record, RecordType, rdata::SRV};
use tether_types::Address;

use super::{
    chain::{Chain, Step},
    servers::{Reply, Server},
    services::{self, Host},
    terms::Wanted,
    trouble::Trouble,
};
use crate::Answer;

/// So many targets are asked for at once, and so many at most whose addresses did not come with their SRV record.
const AT_ONCE: usize = 8;
const TARGETS_ASKED_MAX: usize = 500;

/// What is wanted of which names; the first one that exists counts, and where nobody serves there, nobody does.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) names: Vec<Name>,
    pub(super) wanted: Wanted,
}

/// Who serves, and for how many seconds that holds, where that is said.
pub(super) type Said = (Answer, Option<u32>);

/// Records of one kind, with what came beside them.
#[derive(Debug, Default)]
struct Found {
    records: Vec<Record>,
    additionals: Vec<Record>,
    ttl: Option<u32>,
}

impl Question {
    pub(super) async fn put(&self, server: &Server) -> Result<Said, Trouble> {
        let mut missing = None;
        for name in &self.names {
            let said = match self.wanted {
                Wanted::Addresses { port } => everyone_at(server, name, port).await,
                Wanted::Services => of_services(server, name).await,
            };
            match said {
                Err(Trouble::Missing(ttl)) => missing = ttl,
                said => return said,
            }
        }
        Err(Trouble::Missing(missing))
    }
}

async fn everyone_at(server: &Server, name: &Name, port: u16) -> Result<Said, Trouble> {
    let (addresses, ttl) = host(server, name).await?;
    let addresses = addresses.into_iter().map(|ip| Address::Tcp {
        host: ip.to_string(),
        port,
    });
    let answer = Answer::of(addresses).and_then(Answer::settled);
    Ok((answer.map_err(Trouble::Nonsense)?, ttl))
}

/// The addresses of a name. Both kinds are asked for by themselves, and one that fails fails both: half of them
/// would look like a loss.
async fn host(
    server: &Server,
    name: &Name,
) -> Result<(Vec<std::net::IpAddr>, Option<u32>), Trouble> {
    let both = tokio::join!(
        lookup(server, name, RecordType::A),
        lookup(server, name, RecordType::AAAA)
    );
    let (four, six) = match both {
        // Some servers deny the whole name where it has no addresses of one kind.
        (Ok(four), Err(Trouble::Missing(_))) if !four.records.is_empty() => {
            (four, Found::default())
        }
        (Err(Trouble::Missing(_)), Ok(six)) if !six.records.is_empty() => (Found::default(), six),
        (four, six) => (four?, six?),
    };
    let ttl = match (four.records.is_empty(), six.records.is_empty()) {
        (false, true) => four.ttl,
        (true, false) => six.ttl,
        _ => shorter(four.ttl, six.ttl),
    };
    let records = four.records.iter().chain(&six.records);
    Ok((
        records.filter_map(|record| record.data.ip_addr()).collect(),
        ttl,
    ))
}

async fn of_services(server: &Server, name: &Name) -> Result<Said, Trouble> {
    let found = lookup(server, name, RecordType::SRV).await?;
    let groups = services::groups(&found.records);
    if groups.is_empty() {
        return Ok((Answer::default(), found.ttl));
    }
    for group in &groups {
        let hosts = hosts(server, group, &found.additionals).await?;
        let shortest = hosts.values().flatten().map(|(_, ttl)| *ttl).min();
        if shortest.is_none() {
            continue;
        }
        let answer = services::answer(group, &hosts).and_then(Answer::settled);
        let answer = answer.map_err(Trouble::Nonsense)?;
        return Ok((answer, shorter(found.ttl, shortest)));
    }
    // Somebody serves, says the record: that nobody does would be the opposite.
    let why = format!(
        "none of the targets of its SRV records has an address, such as `{}`",
        groups[0][0].target
    );
    Err(Trouble::Nonsense(why))
}

/// The addresses of targets, or why one has none: those that came with the record, and the others by asking.
async fn hosts(
    server: &Server,
    group: &[&SRV],
    additionals: &[Record],
) -> Result<BTreeMap<Name, Result<Host, String>>, Trouble> {
    let targets: BTreeSet<&Name> = group.iter().map(|service| &service.target).collect();
    let (mut hosts, mut unknown) = (BTreeMap::new(), Vec::new());
    for target in targets {
        match services::told(target, additionals) {
            Some(host) => drop(hosts.insert(target.clone(), Ok(host))),
            None => unknown.push(target.clone()),
        }
    }
    if unknown.len() > TARGETS_ASKED_MAX {
        return Err(Trouble::Nonsense(format!(
            "its SRV records name {} hosts whose addresses are to be asked for, more than {TARGETS_ASKED_MAX} are taken for a mistake",
            unknown.len()
        )));
    }
    let asking = stream::iter(unknown).map(|target| async {
        let host = match host(server, &target).await {
            Ok((addresses, _)) if addresses.is_empty() => Err("it has no address".to_owned()),
            Ok((addresses, ttl)) => Ok((addresses, ttl.unwrap_or(0))),
            Err(Trouble::Missing(_)) => Err("it has no address".to_owned()),
            // One bad name says nothing of the others, while a server that fails may fail for any.
            Err(Trouble::Nonsense(why)) => Err(why),
            Err(Trouble::Server(why)) => {
                let why = format!("asked for `{target}`, a target of its SRV records, {why}");
                return Err(Trouble::Server(why));
            }
        };
        Ok((target, host))
    });
    let asked: Vec<_> = asking.buffer_unordered(AT_ONCE).try_collect().await?;
    hosts.extend(asked);
    Ok(hosts)
}

/// Records of one kind, over aliases.
async fn lookup(server: &Server, name: &Name, kind: RecordType) -> Result<Found, Trouble> {
    let mut chain = Chain::new(name.clone(), kind);
    loop {
        let message = match server.query(chain.end(), kind).await? {
            Reply::Records(message) => message,
            Reply::Missing(ttl) => return Err(Trouble::Missing(ttl)),
            Reply::Nothing(ttl) => {
                return Ok(Found {
                    ttl,
                    ..Found::default()
                });
            }
        };
        let negative = negative_ttl(&message.authorities);
        match chain.follow(&message).map_err(Trouble::Nonsense)? {
            Step::Ask => {}
            Step::Missing => return Err(Trouble::Missing(negative)),
            Step::Nothing => {
                return Ok(Found {
                    ttl: negative,
                    ..Found::default()
                });
            }
            Step::Found(records, ttl) => {
                return Ok(Found {
                    records,
                    additionals: message.additionals,
                    ttl: Some(ttl),
                });
            }
        }
    }
}

/// For how long "there is none" holds (RFC 2308).
fn negative_ttl(authorities: &[Record]) -> Option<u32> {
    authorities.iter().find_map(|record| match &record.data {
        hickory_resolver::proto::rr::RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    })
}

fn shorter(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}
