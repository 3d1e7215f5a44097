//! What EndpointSlices say of who serves. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, mem,
};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::runtime::watcher::Event;
use tether_types::Address;

use crate::{Answer, TARGETS_MAX, Traits, entry::shown};

/// A kind of IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Which port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Port {
    /// The only one there is.
    Only,
    Named(String),
    Numbered(u16),
}

impl Port {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        match text.parse() {
            Ok(0) => Err("nobody serves at port 0".to_owned()),
            Ok(number) => Ok(Self::Numbered(number)),
            Err(_)
                if text.is_empty()
                    || text.len() > 63
                    || !text.chars().all(is_name)
                    || text.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                Err(format!(
                    "`{}` is neither a number nor a name of a port",
                    shown(text)
                ))
            }
            Err(_) => Ok(Self::Named(text.to_owned())),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only => f.write_str("the only port"),
            Self::Named(name) => write!(f, "the port `{name}`"),
            Self::Numbered(number) => write!(f, "the port {number}"),
        }
    }
}

/// All slices of one service, as far as they matter.
#[derive(Debug)]
pub(super) struct Slices {
    port: Port,
    family: Option<Family>,
    /// By name.
    known: BTreeMap<String, Slice>,
    /// Those of a listing that is not over yet.
    listed: BTreeMap<String, Slice>,
}

#[derive(Debug)]
struct Slice {
    family: Family,
    serving: Vec<(Address, Traits)>,
    /// Why its endpoints cannot be taken.
    wrong: Option<String>,
}

impl Slices {
    pub(super) fn new(port: Port, family: Option<Family>) -> Self {
        Self {
            port,
            family,
            known: BTreeMap::new(),
            listed: BTreeMap::new(),
        }
    }

    /// True where who serves may have changed.
    ///
    /// # Errors
    /// Where there are too many.
    pub(super) fn on_event(&mut self, event: Event<EndpointSlice>) -> Result<bool, String> {
        let name = |slice: &EndpointSlice| slice.metadata.name.clone().unwrap_or_default();
        let changed = match event {
            Event::Init => {
                self.listed.clear();
                false
            }
            Event::InitApply(slice) => {
                self.listed.insert(name(&slice), self.read(slice));
                bounded(&self.listed)?;
                false
            }
            Event::InitDone => {
                self.known = mem::take(&mut self.listed);
                true
            }
            Event::Apply(slice) => {
                self.known.insert(name(&slice), self.read(slice));
                true
            }
            Event::Delete(slice) => self.known.remove(&name(&slice)).is_some(),
        };
        bounded(&self.known)?;
        Ok(changed)
    }

    /// Who serves, all slices together. While an endpoint moves from one slice to another it is in both; the one that
    /// takes calls counts.
    ///
    /// # Errors
    /// Where it cannot be believed.
    pub(super) fn answer(&self) -> Result<Answer, String> {
        let has = |family| {
            self.known
                .values()
                .any(|slice| slice.family == family && !slice.serving.is_empty())
        };
        let family = match self.family {
            Some(family) => family,
            None if has(Family::V6) && !has(Family::V4) => Family::V6,
            None => Family::V4,
        };
        let mut answer = Answer::default();
        let mut merged: BTreeMap<&Address, &Traits> = BTreeMap::new();
        for slice in self.known.values().filter(|slice| slice.family == family) {
            for (address, traits) in &slice.serving {
                let known = merged.entry(address).or_insert(traits);
                if known.draining {
                    *known = traits;
                }
            }
            if let Some(why) = &slice.wrong {
                answer.leave_out(why.clone());
            }
        }
        for (address, traits) in merged {
            answer.take(address.clone(), traits.clone())?;
        }
        answer.settled()
    }

    fn read(&self, slice: EndpointSlice) -> Slice {
        let name = slice.metadata.name.clone().unwrap_or_default();
        let family = match slice.address_type.as_str() {
            "IPv6" => Family::V6,
            _ => Family::V4,
        };
        let mut read = Slice {
            family,
            serving: Vec::new(),
            wrong: None,
        };
        if slice.address_type == "FQDN" {
            read.wrong = Some(format!(
                "the slice `{name}` is of names, which mean nothing to Kubernetes itself; use `dns://`"
            ));
            return read;
        }
        // Nobody is asked where nobody is.
        if slice.endpoints.is_empty() {
            return read;
        }
        match self.port_of(&slice) {
            Ok((port, protocol)) => {
                let endpoints = slice.endpoints.into_iter();
                read.serving = endpoints
                    .filter_map(|endpoint| serving(endpoint, port, protocol))
                    .collect();
            }
            Err(why) => read.wrong = Some(format!("the slice `{name}`: {why}")),
        }
        read
    }

    /// The port, and how it is spoken to.
    fn port_of(&self, slice: &EndpointSlice) -> Result<(u16, &'static str), String> {
        let ports = slice.ports.as_deref().unwrap_or_default();
        let tcp = ports
            .iter()
            .filter(|port| port.protocol.as_deref().is_none_or(|kind| kind == "TCP"));
        let wanted = tcp.filter(|port| match &self.port {
            Port::Only => true,
            Port::Named(name) => port.name.as_deref() == Some(name),
            Port::Numbered(number) => port.port == Some(i32::from(*number)),
        });
        let wanted: Vec<_> = wanted.collect();
        if let ([], [], Port::Numbered(number)) = (ports, wanted.as_slice(), &self.port) {
            return Ok((*number, "grpc"));
        }
        let names = || {
            let names: BTreeSet<String> = ports
                .iter()
                .map(|port| {
                    format!(
                        "{}:{}",
                        port.name.as_deref().unwrap_or(""),
                        port.port.unwrap_or(0)
                    )
                })
                .collect();
            names.into_iter().collect::<Vec<_>>().join(", ")
        };
        match wanted.as_slice() {
            [] => Err(format!(
                "there is not {}, there are: {}",
                self.port,
                names()
            )),
            [port] => {
                let number = port.port.and_then(|number| u16::try_from(number).ok());
                let protocol = match port.app_protocol.as_deref() {
                    Some("grpcs" | "https") => "grpcs",
                    _ => "grpc",
                };
                Ok((number.ok_or("its port is none")?, protocol))
            }
            _ => Err(format!(
                "there are several ports, name one, as in `SERVICE:grpc`: {}",
                names()
            )),
        }
    }
}

fn bounded(slices: &BTreeMap<String, Slice>) -> Result<(), String> {
    let count: usize = slices.values().map(|slice| slice.serving.len()).sum();
    // With both families there may be twice as many of them, and some are in two slices for a moment.
    if count > 3 * TARGETS_MAX || slices.len() > TARGETS_MAX {
        return Err(format!(
            "it names more than {TARGETS_MAX} addresses, which is taken for a mistake"
        ));
    }
    Ok(())
}

/// The endpoint, where it serves. One that terminates and still serves takes no new calls.
fn serving(endpoint: Endpoint, port: u16, protocol: &str) -> Option<(Address, Traits)> {
    let conditions = endpoint.conditions.unwrap_or_default();
    // What is not said of readiness means ready, and what is not said of serving means as ready.
    let ready = conditions.ready.unwrap_or(true);
    let draining = conditions.terminating.unwrap_or(false);
    let serves = match draining {
        true => conditions.serving.unwrap_or(ready),
        false => ready,
    };
    // More than one mean the same pod.
    let host = endpoint.addresses.into_iter().next().filter(|_| serves)?;
    let identity = endpoint.target_ref.and_then(|target| target.uid);
    let traits = Traits {
        zone: endpoint.zone.unwrap_or_default(),
        draining,
        protocol: protocol.to_owned(),
        identity: identity.unwrap_or_default(),
        ..Traits::default()
    };
    Some((Address::Tcp { host, port }, traits))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn slice(name: &str, kind: &str, ports: Value, endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": name},
            "addressType": kind, "ports": ports, "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn grpc() -> Value {
        json!([{"name": "grpc", "port": 50051, "protocol": "TCP"}, {"name": "web", "port": 80}])
    }

    fn told(slices: &Slices) -> Vec<String> {
        let answer = slices.answer().unwrap();
        let told = answer.targets.iter().map(|(address, traits)| {
            let draining = if traits.draining { " draining" } else { "" };
            format!("{address} {}{}{draining}", traits.zone, traits.identity)
        });
        told.collect()
    }

    fn with(port: Port, family: Option<Family>, all: Vec<EndpointSlice>) -> Slices {
        let mut slices = Slices::new(port, family);
        assert!(!slices.on_event(Event::Init).unwrap());
        for slice in all {
            assert!(!slices.on_event(Event::InitApply(slice)).unwrap());
        }
        assert!(slices.on_event(Event::InitDone).unwrap());
        slices
    }

    #[test]
    fn conditions_say_who_serves_and_who_takes_no_new_calls() {
        let endpoints = [
            json!({}),
            json!({"ready": true, "serving": true, "terminating": false}),
            json!({"ready": false, "serving": false}),
            json!({"ready": false, "serving": true, "terminating": true}),
            json!({"ready": false, "serving": false, "terminating": true}),
            json!({"ready": null, "serving": null, "terminating": null}),
            json!({"ready": false, "terminating": true}),
        ];
        let endpoints = endpoints.iter().enumerate().map(|(number, conditions)| {
            json!({"addresses": [format!("10.0.0.{number}"), "10.9.9.9"], "conditions": conditions, "zone": "z", "targetRef": {"uid": "u"}})
        });
        let slices = with(
            Port::Named("grpc".to_owned()),
            None,
            vec![slice("a", "IPv4", grpc(), endpoints.collect())],
        );
        assert_eq!(
            told(&slices),
            [
                "10.0.0.0:50051 zu",
                "10.0.0.1:50051 zu",
                "10.0.0.3:50051 zu draining",
                "10.0.0.5:50051 zu"
            ]
        );
    }

    #[test]
    fn slices_are_one_and_who_is_in_two_of_them_serves_once() {
        let at = |host: &str, terminating| json!([{"addresses": [host], "conditions": {"terminating": terminating, "serving": true}}]);
        let mut slices = with(
            Port::Numbered(50051),
            None,
            vec![
                slice("a", "IPv4", grpc(), at("10.0.0.1", true)),
                slice("b", "IPv4", grpc(), at("10.0.0.1", false)),
                slice("c", "IPv4", grpc(), at("10.0.0.2", false)),
                slice("d", "IPv6", grpc(), at("fd00::1", false)),
                slice("e", "IPv4", grpc(), json!(null)),
            ],
        );
        assert_eq!(told(&slices), ["10.0.0.1:50051 ", "10.0.0.2:50051 "]);
        slices.family = Some(Family::V6);
        assert_eq!(told(&slices), ["[fd00::1]:50051 "]);
        slices.family = None;
        for name in ["a", "b", "c"] {
            assert!(
                slices
                    .on_event(Event::Delete(slice(name, "IPv4", grpc(), json!([]))))
                    .unwrap()
            );
        }
        assert_eq!(
            told(&slices),
            ["[fd00::1]:50051 "],
            "where there is no other"
        );
        assert!(
            slices
                .on_event(Event::Apply(slice("d", "IPv6", grpc(), json!([]))))
                .unwrap()
        );
        assert!(told(&slices).is_empty());
    }

    #[test]
    fn a_port_that_is_not_there_or_not_the_only_one_is_an_error_that_lists_them() {
        let all = |ports: Value| {
            vec![slice(
                "a",
                "IPv4",
                ports,
                json!([{"addresses": ["10.0.0.1"]}]),
            )]
        };
        for (port, ports, why) in [
            (Port::Only, grpc(), "several ports"),
            (Port::Named("http".to_owned()), grpc(), "grpc:50051, web:80"),
            (Port::Numbered(81), grpc(), "the port 81"),
            (Port::Only, json!([]), "the only port"),
            (Port::Only, json!([{"port": 70_000}]), "none"),
            (Port::Only, json!([{"port": 53, "protocol": "UDP"}]), ":53"),
        ] {
            let error = with(port, None, all(ports)).answer().unwrap_err();
            assert!(error.contains(why) && error.contains("`a`"), "{error}");
        }
        let only = with(
            Port::Only,
            None,
            all(json!([{"port": 7, "appProtocol": "https"}])),
        );
        assert_eq!(
            only.answer()
                .unwrap()
                .targets
                .values()
                .next()
                .unwrap()
                .protocol,
            "grpcs"
        );
        // A headless service need not say any.
        assert_eq!(
            told(&with(Port::Numbered(9), None, all(json!(null)))),
            ["10.0.0.1:9 "]
        );
        let names = slice("n", "FQDN", grpc(), json!([{"addresses": ["a.b"]}]));
        assert!(
            with(Port::Only, None, vec![names])
                .answer()
                .unwrap_err()
                .contains("dns://")
        );
    }

    #[test]
    fn a_port_is_a_name_or_a_number() {
        assert_eq!(Port::parse("80"), Ok(Port::Numbered(80)));
        assert_eq!(Port::parse("grpc-1"), Ok(Port::Named("grpc-1".to_owned())));
        for wrong in ["", "0", "70000", "A", "a b", "a:b"] {
            assert!(Port::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_is_bounded_whatever_is_listed() {
        let mut slices = Slices::new(Port::Numbered(50051), None);
        let mut refused = false;
        for number in 0..100 {
            let endpoints = (0..1000).map(
                |host| json!({"addresses": [format!("10.{number}.{}.{}", host / 250, host % 250)]}),
            );
            let slice = slice(&number.to_string(), "IPv4", grpc(), endpoints.collect());
            refused |= slices.on_event(Event::InitApply(slice)).is_err();
            if refused {
                return;
            }
        }
        panic!("100,000 are taken in");
    }
}
