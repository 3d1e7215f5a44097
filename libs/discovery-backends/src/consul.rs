//! `consul://127.0.0.1:8500/embed`: the instances of a service whose checks pass, from Consul's HTTP API.
//!
//! `/v1/health/service/NAME?passing=1` is asked with the index of the last answer, and answered once something has
//! changed or `wait=1m` is over. Options: `dc`, `tag` (several with `,`), `near`, and `token_file`, which is read for each
//! question. An agent of Consul on the same machine is meant, as Consul wants it: TLS is not spoken.
//!
//! An instance is who it is by its ID and the index at which it was registered. Its weight is `Weights.Passing`; zone,
//! capacity and protocol are what the service's `Meta` says under these names, and a zone may also stand in the node's
//! `Meta` or in a `Locality`.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::value::RawValue;
use tether_types::Address;
use tokio::time::{Instant, sleep_until};

use super::{
    Answer, Backend, Options, Traits, Watch,
    again::{Ask, and_again},
    entry::shown,
    http, target,
};

/// How long Consul may keep a question: also the longest that a lost change stays unseen.
const WAIT: Duration = Duration::from_secs(60);
/// Consul takes no longer one.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// Beyond what Consul may take, which adds a sixteenth to what was asked for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between the beginnings of two questions. A Consul that answers at once whatever it is asked would be asked without
/// pause otherwise.
const GAP: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Consul;

impl Backend for Consul {
    fn scheme(&self) -> &'static str {
        "consul"
    }

    fn usage(&self) -> &'static str {
        "consul://127.0.0.1:8500/embed"
    }

    fn watch(&self, place: &str, options: &mut Options) -> Result<Watch, String> {
        let (server, service) = place
            .split_once('/')
            .ok_or("the service is missing, behind a `/`")?;
        if let Address::Unix(_) = target(server)? {
            return Err("Consul is reached by `host:port`".to_owned());
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if service.is_empty() || service.len() > 255 || !service.chars().all(is_name) {
            return Err(format!("`{}` is no name of a service", shown(service)));
        }
        let wait = options.duration("wait")?.unwrap_or(WAIT);
        if !(Duration::from_secs(1)..=WAIT_MAX).contains(&wait) {
            return Err("the option `wait` is from `1s` to `10m`".to_owned());
        }
        let mut query = format!("passing=1&wait={}ms", wait.as_millis());
        for name in ["dc", "near"] {
            if let Some(value) = options.text(name) {
                query = format!("{query}&{name}={}", encoded(&value));
            }
        }
        for tag in options.text("tag").iter().flat_map(|tags| tags.split(',')) {
            query = format!("{query}&tag={}", encoded(tag));
        }
        let token_file = options.text("token_file");
        if token_file
            .as_ref()
            .is_some_and(|path| !path.starts_with('/'))
        {
            return Err("`token_file` has to start with `/`".to_owned());
        }
        Ok(and_again(Instances {
            name: format!("`consul://{place}`"),
            server: server.to_owned(),
            path: format!("/v1/health/service/{service}?{query}"),
            token_file,
            patience: wait + wait / 16 + PATIENCE,
            index: 0,
            last: None,
            earliest: Instant::now(),
        }))
    }
}

struct Instances {
    name: String,
    server: String,
    /// But for the index.
    path: String,
    token_file: Option<String>,
    patience: Duration,
    /// What was seen; 0 asks for what there is.
    index: u64,
    /// What was said last, which is not said again.
    last: Option<Answer>,
    /// When to ask next, at the earliest.
    earliest: Instant,
}

impl Ask for Instances {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn next(&mut self) -> Result<Answer, String> {
        loop {
            sleep_until(self.earliest).await;
            self.earliest = Instant::now() + GAP;
            match self.ask().await {
                Ok(answer) if self.last.as_ref() == Some(&answer) => {}
                Ok(answer) => {
                    self.last = Some(answer.clone());
                    return Ok(answer);
                }
                Err(why) => {
                    // It may come back with another history.
                    (self.index, self.last) = (0, None);
                    return Err(why);
                }
            }
        }
    }
}

impl Instances {
    async fn ask(&mut self) -> Result<Answer, String> {
        let token = match &self.token_file {
            Some(path) => Some(token(path).await?),
            None => None,
        };
        let headers: Vec<_> = token
            .iter()
            .map(|token| ("X-Consul-Token", token.as_str()))
            .collect();
        let path = format!("{}&index={}", self.path, self.index);
        let answer = http::get(&self.server, &path, &headers, self.patience).await?;
        let header = |name| {
            answer
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok())
        };
        if !answer.status().is_success() {
            let said = String::from_utf8_lossy(answer.body());
            let hint = match answer.status().as_u16() {
                401 | 403 => {
                    "; give a token that may read the service and its nodes: `token_file=/path`"
                }
                _ => "",
            };
            return Err(format!(
                "Consul answers {}: {}{hint}",
                answer.status(),
                shown(&said)
            ));
        }
        let index = header("X-Consul-Index").and_then(|index| index.parse().ok());
        let index = index
            .ok_or("the answer has no `X-Consul-Index`; is there a Consul at this address?")?;
        let found = parse(answer.body())?;
        if found.targets.is_empty() && header("X-Consul-Results-Filtered-By-ACLs") == Some("true") {
            return Err("Consul hides what there is from this token; give one that may read the service and its nodes: `token_file=/path`".to_owned());
        }
        self.index = advance(self.index, index);
        Ok(found)
    }
}

/// What to ask with next. An index that goes back is that of another history, which is read from its beginning; and 0
/// would never wait.
fn advance(before: u64, said: u64) -> u64 {
    let said = said.max(1);
    if said < before { 0 } else { said }
}

async fn token(path: &str) -> Result<String, String> {
    let text = tokio::fs::read_to_string(path).await;
    let text = text.map_err(|error| format!("`token_file={path}` cannot be read: {error}"))?;
    Ok(text.trim().to_owned())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Instance {
    node: Node,
    service: Service,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node {
    address: String,
    meta: Option<BTreeMap<String, String>>,
    locality: Option<Locality>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    address: String,
    port: u16,
    meta: Option<BTreeMap<String, String>>,
    weights: Option<Weights>,
    locality: Option<Locality>,
    create_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Locality {
    #[serde(default)]
    zone: String,
}

fn parse(body: &[u8]) -> Result<Answer, String> {
    let instances: Vec<&RawValue> = serde_json::from_slice(body)
        .map_err(|error| format!("the answer is not Consul's: {error}"))?;
    let mut answer = Answer::default();
    for instance in instances {
        let read = serde_json::from_str(instance.get());
        let read =
            read.map_err(|error| format!("`{}` cannot be read: {error}", shown(instance.get())));
        answer.take_or_leave(read.and_then(described))?;
    }
    answer.settled()
}

fn described(Instance { node, service }: Instance) -> Result<(Address, Traits), String> {
    // A service without an address of its own is at its node's.
    let host = match service.address.is_empty() {
        true => node.address,
        false => service.address,
    };
    let said = |key: &str| {
        service
            .meta
            .as_ref()
            .and_then(|meta| meta.get(key))
            .cloned()
    };
    let number = |key: &str| {
        let read = |text: String| {
            text.parse()
                .map_err(|_| format!("`{key}` of `{}` is `{}`", shown(&service.id), shown(&text)))
        };
        said(key).map(read).transpose()
    };
    let locality = service.locality.as_ref().or(node.locality.as_ref());
    let zone = said("zone")
        .or_else(|| node.meta.as_ref()?.get("zone").cloned())
        .or_else(|| Some(locality?.zone.clone()));
    let known = Traits::default();
    let traits = Traits {
        zone: zone.unwrap_or_default(),
        weight: service
            .weights
            .as_ref()
            .map_or(known.weight, |weights| weights.passing),
        capacity: number("capacity")?.unwrap_or(known.capacity),
        draining: false,
        protocol: said("protocol").unwrap_or(known.protocol),
        identity: format!("{}/{}", service.id, service.create_index),
    };
    Ok((
        Address::Tcp {
            host,
            port: service.port,
        },
        traits,
    ))
}

/// Text as it stands in a query.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let bytes = text.bytes().map(|byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_goes_back_begins_anew_and_none_asks_without_waiting() {
        assert_eq!((advance(0, 7), advance(7, 7), advance(7, 9)), (7, 7, 9));
        assert_eq!((advance(7, 6), advance(7, 0)), (0, 0));
        assert_eq!((advance(0, 0), advance(1, 0)), (1, 1));
    }

    #[test]
    fn an_instance_is_read_with_what_its_service_and_its_node_say() {
        let body = r#"[
            {"Node": {"Address": "10.0.0.1", "Meta": {"zone": "n"}},
             "Service": {"ID": "a", "Address": "", "Port": 1, "Weights": {"Passing": 0, "Warning": 1}, "CreateIndex": 5}},
            {"Node": {"Address": "10.0.0.9", "Meta": null, "Locality": {"Region": "r", "Zone": "l"}},
             "Service": {"ID": "b", "Address": "fd00::2", "Port": 2, "CreateIndex": 6,
                         "Meta": {"zone": "s", "capacity": "4", "protocol": "grpcs"}}},
            {"Node": {"Address": "10.0.0.3", "Locality": {"Zone": "l"}}, "Service": {"ID": "c", "Port": 3, "CreateIndex": 6}},
            {"Node": {"Address": "10.0.0.4"}, "Service": {"ID": "d", "Port": 4, "CreateIndex": 7, "Meta": {"capacity": "much"}}}
        ]"#;
        let answer = parse(body.as_bytes()).unwrap();
        let told: Vec<_> = answer
            .targets
            .iter()
            .map(|(address, traits)| {
                let Traits {
                    zone,
                    weight,
                    capacity,
                    draining,
                    protocol,
                    identity,
                } = traits;
                format!("{address} {zone} {weight} {capacity} {draining} {protocol} {identity}")
            })
            .collect();
        assert_eq!(
            told,
            [
                "10.0.0.1:1 n 1 0 true grpc a/5",
                "10.0.0.3:3 l 1 0 false grpc c/6",
                "[fd00::2]:2 s 1 4 false grpcs b/6",
            ]
        );
        assert!(
            answer.reasons[0].contains("`capacity` of `d` is `much`"),
            "{answer:?}"
        );
        assert!(parse(b"{}").is_err() && parse(b"<html>").is_err());
    }

    #[test]
    fn what_stands_in_a_query_cannot_end_it() {
        assert_eq!(encoded("a b&c=1#ä"), "a%20b%26c%3D1%23%C3%A4");
    }
}
