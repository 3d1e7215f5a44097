//! The names that pools have in DNS, and what is said of them. Pure.
//!
//! ```text
//!                  POOL.NAMESPACE.ZONE.   A, AAAA: the addresses of its workers    SRV: those with their ports
//!       _grpc._tcp.POOL.NAMESPACE.ZONE.   SRV: the same
//!        _10-0-0-4.POOL.NAMESPACE.ZONE.   A: 10.0.0.4, as long as a worker serves there; the target of such an SRV
//! ```
//!
//! A pool's name begins with a letter or a digit, and so no other name of a pool can look like one of the last two.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use hickory_server::proto::rr::{
    Name, RData, Record, RecordType,
    rdata::{SOA, SRV},
};
use tether_types::{Address, PoolName, stable};

use crate::table::Table;

/// Most records of one answer: of more workers than these, whoever asks has some of its own.
const RECORDS_MAX: usize = 1_000;

const SERVICE: [&[u8]; 2] = [b"_grpc", b"_tcp"];

/// The part of all names that is answered for.
#[derive(Debug)]
pub(crate) struct Zone {
    origin: Name,
    namespace: Name,
    /// How long what is said holds, in seconds.
    ttl: u32,
}

/// What is said to a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// Records, and others that belong to them.
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// The name exists, and has none of this kind.
    Nothing,
    /// There is no such name.
    NoName,
    /// Nobody has said yet who serves the pool of this name.
    Unheard,
    /// Nothing, because it is asked of the wrong one.
    Refused(Refusal),
}

/// Why nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The name is in no zone that is answered for.
    OtherZone,
    /// Two pools have this name, for whoever does not tell letters of either case apart.
    TwoPools,
}

/// What a name in the namespace stands for.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Pool(String),
    Service(String),
    /// A name above that of a service.
    Between(String),
    Host(IpAddr, String),
    Nothing,
}

/// Workers of a pool that calls can go to.
type Serving = Vec<(IpAddr, u16, u32)>;

impl Zone {
    pub(crate) fn new(origin: Name, namespace: Name, ttl: u32) -> Self {
        Self {
            origin,
            namespace,
            ttl,
        }
    }

    /// What is said to a question of `asker` about `name`. Of many workers it is told of the same ones each time, for
    /// as long as they serve: others in each answer would look like a loss of those before.
    pub(crate) fn say(&self, name: &Name, kind: RecordType, table: &Table, asker: IpAddr) -> Said {
        if !self.origin.zone_of(name) {
            return Said::Refused(Refusal::OtherZone);
        }
        if *name == self.origin {
            return match kind {
                RecordType::SOA => Said::Records {
                    answers: vec![self.soa(table.revision())],
                    additionals: Vec::new(),
                },
                _ => Said::Nothing,
            };
        }
        if name.zone_of(&self.namespace) {
            return Said::Nothing;
        }
        if !self.namespace.zone_of(name) {
            return Said::NoName;
        }
        let place = self.place(name);
        let (Place::Pool(text)
        | Place::Service(text)
        | Place::Between(text)
        | Place::Host(_, text)) = &place
        else {
            return Said::NoName;
        };
        let pool = match table.pools_like(text).as_slice() {
            [] => return Said::NoName,
            [pool] => *pool,
            _ => return Said::Refused(Refusal::TwoPools),
        };
        if table.is_unheard(pool) {
            return Said::Unheard;
        }
        let mut serving = serving(table, pool);
        match place {
            Place::Host(ip, _) if !serving.iter().any(|(at, ..)| *at == ip) => Said::NoName,
            Place::Host(ip, _) => self.addresses(name, kind, vec![ip]),
            Place::Pool(_) if kind != RecordType::SRV => {
                let all: BTreeSet<IpAddr> = serving.into_iter().map(|(ip, ..)| ip).collect();
                let mut all: Vec<_> = all.into_iter().collect();
                all.sort_by_cached_key(|ip| rank(asker, *ip, 0));
                self.addresses(name, kind, all)
            }
            Place::Pool(_) | Place::Service(_) if kind == RecordType::SRV => {
                serving.sort_by_cached_key(|(ip, port, _)| rank(asker, *ip, *port));
                serving.truncate(RECORDS_MAX);
                self.services(name, text, &serving)
            }
            Place::Pool(_) | Place::Service(_) | Place::Between(_) | Place::Nothing => {
                Said::Nothing
            }
        }
    }

    /// What tells others for how long to believe that there is nothing.
    pub(crate) fn soa(&self, revision: u64) -> Record {
        let contact = self.origin.prepend_label("hostmaster");
        let serial = u32::try_from(revision & u64::from(u32::MAX)).unwrap_or_default();
        let soa = SOA::new(
            self.origin.clone(),
            contact.unwrap_or_else(|_| self.origin.clone()),
            serial,
            60,
            60,
            60,
            self.ttl,
        );
        Record::from_rdata(self.origin.clone(), self.ttl, RData::SOA(soa))
    }

    fn place(&self, name: &Name) -> Place {
        let depth = usize::from(name.num_labels() - self.namespace.num_labels());
        let labels: Vec<&[u8]> = name.iter().take(depth).collect();
        let is = |label: &[u8], word: &[u8]| label.eq_ignore_ascii_case(word);
        let place = match labels.as_slice() {
            [first, second, pool @ ..] if is(first, SERVICE[0]) && is(second, SERVICE[1]) => {
                pool_name(pool).map(Place::Service)
            }
            [first, pool @ ..] if is(first, SERVICE[1]) => pool_name(pool).map(Place::Between),
            [first, pool @ ..] if first.starts_with(b"_") => {
                host(&first[1..]).and_then(|ip| Some(Place::Host(ip, pool_name(pool)?)))
            }
            pool => pool_name(pool).map(Place::Pool),
        };
        place.unwrap_or(Place::Nothing)
    }

    fn addresses(&self, name: &Name, kind: RecordType, ips: Vec<IpAddr>) -> Said {
        let of_kind = |ip: &IpAddr| match kind {
            RecordType::A => ip.is_ipv4(),
            RecordType::AAAA => ip.is_ipv6(),
            _ => false,
        };
        let ips = ips.into_iter().filter(of_kind).take(RECORDS_MAX);
        let answers: Vec<_> = ips.map(|ip| self.address(name.clone(), ip)).collect();
        if answers.is_empty() {
            return Said::Nothing;
        }
        Said::Records {
            answers,
            additionals: Vec::new(),
        }
    }

    fn services(&self, name: &Name, pool: &str, serving: &Serving) -> Said {
        let (mut answers, mut hosts) = (Vec::new(), BTreeMap::new());
        for &(ip, port, weight) in serving {
            // A name too long for its own length is that of nobody.
            let Some(target) = self.target(ip, pool) else {
                continue;
            };
            let weight = u16::try_from(weight).unwrap_or(u16::MAX);
            let service = SRV::new(0, weight, port, target.clone());
            answers.push(Record::from_rdata(
                name.clone(),
                self.ttl,
                RData::SRV(service),
            ));
            hosts.insert(ip, target);
        }
        if answers.is_empty() {
            return Said::Nothing;
        }
        let hosts = hosts.into_iter();
        Said::Records {
            answers,
            additionals: hosts.map(|(ip, target)| self.address(target, ip)).collect(),
        }
    }

    fn address(&self, name: Name, ip: IpAddr) -> Record {
        let data = match ip {
            IpAddr::V4(ip) => RData::A(ip.into()),
            IpAddr::V6(ip) => RData::AAAA(ip.into()),
        };
        Record::from_rdata(name, self.ttl, data)
    }

    /// The name of a worker's host.
    fn target(&self, ip: IpAddr, pool: &str) -> Option<Name> {
        let host = match ip {
            IpAddr::V4(ip) => ip.octets().map(|part| part.to_string()).join("-"),
            IpAddr::V6(ip) => ip.segments().map(|part| format!("{part:x}")).join("-"),
        };
        let labels = [format!("_{host}").into_bytes()].into_iter();
        // One label, whatever is in it: a pool's name is short enough, and may have dots where names have none.
        let labels = labels.chain([pool.as_bytes().to_vec()]);
        let labels = labels.chain(self.namespace.iter().map(<[u8]>::to_vec));
        Name::from_labels(labels.collect::<Vec<_>>()).ok()
    }
}

/// Where a worker stands among all, for whoever asks: for each in another order, so that together they call all.
fn rank(asker: IpAddr, ip: IpAddr, port: u16) -> u64 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let bytes = octets(asker).into_iter().chain(octets(ip));
    stable::finish(stable::fnv1a(bytes.chain(port.to_be_bytes())))
}

/// The pool that labels name: with dots between, be they of the name or of DNS.
fn pool_name(labels: &[&[u8]]) -> Option<String> {
    let name = String::from_utf8(labels.join(&b'.')).ok()?;
    (!name.is_empty()).then_some(name)
}

fn host(label: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(label).ok()?;
    if text.contains(['.', ':']) {
        return None;
    }
    let four = text.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    let six = || text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6);
    four.or_else(|_| six()).ok()
}

/// Those that take new calls at an IP address; of a unix socket DNS cannot tell.
fn serving(table: &Table, pool: &PoolName) -> Serving {
    let takes_calls = table
        .endpoints_of(pool)
        .filter(|endpoint| !endpoint.draining);
    let serving = takes_calls.filter_map(|endpoint| {
        let Ok(Address::Tcp { host, port }) = endpoint.address.parse() else {
            return None;
        };
        Some((host.parse().ok()?, port, endpoint.weight.max(1)))
    });
    serving.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tether_proto::common::{Endpoint, WorkerRef};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn zone() -> Zone {
        Zone::new(name("tether."), name("default.tether."), 1)
    }

    /// A table of pools, each with addresses; `!` before one says that it drains.
    fn table(pools: &[(&str, &[&str])]) -> Table {
        let pools = pools
            .iter()
            .map(|(pool, all)| (PoolName::new(*pool).unwrap(), *all));
        let pools: Vec<(PoolName, &[&str])> = pools.collect();
        let names: BTreeSet<_> = pools.iter().map(|(pool, _)| pool.clone()).collect();
        let mut table = Table::new(names, 10);
        for (pool, addresses) in pools {
            let endpoints = addresses.iter().zip(0..).map(|(address, slot)| Endpoint {
                worker: Some(WorkerRef {
                    pool: pool.to_string(),
                    slot,
                    incarnation: 1,
                }),
                address: address.trim_start_matches('!').to_owned(),
                draining: address.starts_with('!'),
                weight: slot,
                ..Endpoint::default()
            });
            table.source(&pool, endpoints.collect());
        }
        table
    }

    fn asker(last: u8) -> IpAddr {
        IpAddr::from([10, 9, 9, last])
    }

    fn ask(table: &Table, text: &str, kind: RecordType) -> Said {
        zone().say(&name(text), kind, table, asker(7))
    }

    fn texts(said: Said) -> (Vec<String>, Vec<String>) {
        let Said::Records {
            answers,
            additionals,
        } = said
        else {
            panic!("{said:?}");
        };
        let texts = |records: Vec<Record>| {
            let mut texts: Vec<_> = records.iter().map(ToString::to_string).collect();
            texts.sort();
            texts
        };
        (texts(answers), texts(additionals))
    }

    #[test]
    fn a_pool_has_the_addresses_of_those_who_take_calls_and_nobody_is_no_missing_name() {
        let table = table(&[
            (
                "train",
                &[
                    "10.0.0.1:1",
                    "10.0.0.1:2",
                    "!10.0.0.2:1",
                    "[fd00::1]:1",
                    "unix:/a",
                    "host:1",
                ],
            ),
            ("sockets", &["unix:/a"]),
            ("empty", &[]),
        ]);
        let four = ask(&table, "train.default.tether.", RecordType::A);
        assert_eq!(texts(four).0, ["train.default.tether. 1 IN A 10.0.0.1"]);
        let six = ask(&table, "TRAIN.Default.tether.", RecordType::AAAA);
        assert_eq!(texts(six).0, ["TRAIN.Default.tether. 1 IN AAAA fd00::1"]);

        for (text, kind) in [
            ("train.default.tether.", RecordType::TXT),
            ("sockets.default.tether.", RecordType::A),
            ("sockets.default.tether.", RecordType::SRV),
            ("empty.default.tether.", RecordType::AAAA),
            ("_tcp.train.default.tether.", RecordType::SRV),
            ("_grpc._tcp.train.default.tether.", RecordType::A),
            ("default.tether.", RecordType::A),
            ("tether.", RecordType::A),
        ] {
            assert_eq!(ask(&table, text, kind), Said::Nothing, "{text}");
        }
        for text in [
            "nobody.default.tether.",
            "train.other.tether.",
            "_grpclb._tcp.train.default.tether.",
            "_grpc._tcp.default.tether.",
            "_10-0-0-2.train.default.tether.",
            "_x.train.default.tether.",
            "x.train.default.tether.",
        ] {
            assert_eq!(ask(&table, text, RecordType::A), Said::NoName, "{text}");
        }
        for text in ["train.default.", "tether.example.", "."] {
            let refused = Said::Refused(Refusal::OtherZone);
            assert_eq!(ask(&table, text, RecordType::A), refused, "{text}");
        }
    }

    #[test]
    fn services_have_ports_and_weights_and_targets_that_can_be_asked_for() {
        let table = table(&[("train", &["10.0.0.1:1", "10.0.0.1:2", "[fd00::1]:3"])]);
        for text in ["train.default.tether.", "_grpc._tcp.train.default.tether."] {
            let (answers, additionals) = texts(ask(&table, text, RecordType::SRV));
            let expected = [
                "0 1 1 _10-0-0-1.train.default.tether.",
                "0 1 2 _10-0-0-1.train.default.tether.",
                "0 2 3 _fd00-0-0-0-0-0-0-1.train.default.tether.",
            ];
            assert_eq!(
                answers,
                expected.map(|rest| format!("{text} 1 IN SRV {rest}"))
            );
            assert_eq!(
                additionals,
                [
                    "_10-0-0-1.train.default.tether. 1 IN A 10.0.0.1",
                    "_fd00-0-0-0-0-0-0-1.train.default.tether. 1 IN AAAA fd00::1",
                ]
            );
        }
        let host = ask(
            &table,
            "_fd00-0-0-0-0-0-0-1.train.default.tether.",
            RecordType::AAAA,
        );
        assert!(texts(host).0[0].ends_with("AAAA fd00::1"));
    }

    #[test]
    fn names_with_dots_can_be_written_and_two_that_dns_cannot_tell_apart_are_refused() {
        let table = table(&[
            ("a.b", &["10.0.0.1:1"]),
            ("odd..", &["10.0.0.2:1"]),
            ("Two", &["10.0.0.3:1"]),
            ("two", &["10.0.0.4:1"]),
        ]);
        let has = |text: &str, address: &str| {
            let answers = texts(ask(&table, text, RecordType::A)).0;
            assert!(answers[0].ends_with(address), "{text}: {answers:?}");
        };
        has("a.b.default.tether.", "10.0.0.1");
        has("a\\.b.default.tether.", "10.0.0.1");
        has("odd\\.\\..default.tether.", "10.0.0.2");
        let of_odd = ask(&table, "odd\\.\\..default.tether.", RecordType::SRV);
        let Said::Records { answers, .. } = of_odd else {
            panic!("{of_odd:?}");
        };
        let RData::SRV(service) = &answers[0].data else {
            panic!("{answers:?}");
        };
        let host = zone().say(&service.target, RecordType::A, &table, asker(7));
        assert!(texts(host).0[0].ends_with("A 10.0.0.2"));

        let refused = Said::Refused(Refusal::TwoPools);
        assert_eq!(ask(&table, "two.default.tether.", RecordType::A), refused);
    }

    #[test]
    fn answers_are_bounded_and_whoever_asks_again_is_told_of_the_same_workers() {
        let all: Vec<String> = (0..3_000)
            .map(|number| format!("10.0.{}.{}:1", number / 250, number % 250 + 1))
            .collect();
        let mut all: Vec<&str> = all.iter().map(String::as_str).collect();
        let answer = |all: &[&str], last, kind| -> BTreeSet<String> {
            let table = table(&[("many", all)]);
            let name = name("many.default.tether.");
            let Said::Records { answers, .. } = zone().say(&name, kind, &table, asker(last)) else {
                panic!("there are workers");
            };
            answers
                .iter()
                .map(|record| record.data.to_string())
                .collect()
        };
        let before = [RecordType::A, RecordType::SRV].map(|kind| {
            let told = answer(&all, 1, kind);
            assert_eq!(told.len(), RECORDS_MAX);
            let other = answer(&all, 2, kind);
            assert!(told.intersection(&other).count() < RECORDS_MAX / 2);
            told
        });

        // Ten are gone: those it knew of have others in their place, and nothing else has changed.
        all.truncate(2_990);
        for (kind, before) in [RecordType::A, RecordType::SRV].into_iter().zip(before) {
            let gone = before.difference(&answer(&all, 1, kind)).count();
            assert!(gone <= 10, "{gone}");
        }
    }

    #[test]
    fn the_zone_says_for_how_long_there_is_nothing() {
        let table = table(&[]);
        let answers = texts(ask(&table, "tether.", RecordType::SOA)).0;
        assert_eq!(
            answers,
            ["tether. 1 IN SOA tether. hostmaster.tether. 1 60 60 60 1"]
        );
    }
}
