//! A stand-in for a server of Consul, written from its documented contract: `/v1/health/service/NAME` with blocking
//! queries, and nothing else of it.
//!
//! - Every change has an index. An answer carries that of the last change to the service; where it has no instances, that
//!   of the last change to any.
//! - A question with `index=N`, N over 0, is answered when that index is over N, or once `wait` is over with what there
//!   is; up to a sixteenth of it is added. Without an index, or with 0, it is answered at once.
//! - `passing` leaves out instances with a check that does not pass. A service that nobody knows has none, and that is
//!   no error.
//! - A server that lost its data, or a restored one, begins with a lower index.
//! - A token that there is not is refused with 403; an answer from which something is hidden says so in a header.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt as _;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use crate::stand::{Body, Stand, whole};

/// One instance, as its entry says it, and whether its checks pass.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) entry: Value,
    pub(crate) passing: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Catalog {
    index: u64,
    /// By service: its instances by ID, and the index of the last change.
    services: BTreeMap<String, (BTreeMap<String, Instance>, u64)>,
    /// The only token that is let in, where one is asked for.
    token: Option<String>,
    /// What is answered instead.
    broken: Option<(StatusCode, String)>,
    /// What the index is said to be, whatever it is.
    claims: Option<u64>,
    /// Every question that came, as path and query.
    asked: Vec<String>,
}

pub(crate) struct Consul(pub(crate) Stand<Catalog>);

impl Consul {
    pub(crate) async fn start() -> Self {
        let catalog = Catalog {
            index: 10,
            ..Catalog::default()
        };
        let answers = |request, catalog, changed| answer(request, catalog, changed).boxed();
        Self(Stand::start(catalog, answers).await)
    }

    /// Changes the instances of a service, in one commit. Each gets the index at which it came to be.
    pub(crate) fn register(&self, service: &str, instances: Vec<(String, Instance)>) {
        self.0.change(|catalog| {
            catalog.index += 1;
            let index = catalog.index;
            let (known, last) = catalog.services.entry(service.to_owned()).or_default();
            *last = index;
            let before = std::mem::take(known);
            for (id, mut instance) in instances {
                let since = match before.get(&id) {
                    Some(before) => before.entry["Service"]["CreateIndex"].clone(),
                    None => json!(index),
                };
                instance.entry["Service"]["CreateIndex"] = since;
                known.insert(id, instance);
            }
        });
    }

    /// As one does that was restored from nothing: all is registered again, and the index is low.
    pub(crate) fn begin_anew(&self) {
        self.0.change(|catalog| {
            catalog.index = 3;
            for (_, last) in catalog.services.values_mut() {
                *last = 3;
            }
        });
    }

    pub(crate) fn ask_for_token(&self, token: &str) {
        self.0
            .change(|catalog| catalog.token = Some(token.to_owned()));
    }

    /// Answers so, whatever is asked; `None` ends that.
    pub(crate) fn break_with(&self, answer: Option<(u16, &str)>) {
        let answer =
            answer.map(|(status, body)| (StatusCode::from_u16(status).unwrap(), body.to_owned()));
        self.0.change(|catalog| catalog.broken = answer);
    }

    /// Claims that its index is this one.
    pub(crate) fn claim(&self, index: u64) {
        self.0.change(|catalog| catalog.claims = Some(index));
    }

    /// What was asked since the last call.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.0.change(|catalog| std::mem::take(&mut catalog.asked))
    }
}

async fn answer(
    request: Request<Incoming>,
    catalog: Arc<Mutex<Catalog>>,
    mut changed: watch::Receiver<()>,
) -> Response<Body> {
    let asked = request.uri().path_and_query().unwrap().as_str().to_owned();
    catalog.lock().unwrap().asked.push(asked);
    let query: BTreeMap<&str, &str> = request
        .uri()
        .query()
        .unwrap_or("")
        .split('&')
        .filter_map(|part| part.split_once('='))
        .collect();
    let Some(name) = request.uri().path().strip_prefix("/v1/health/service/") else {
        return plain(StatusCode::NOT_FOUND, "");
    };
    let shown = request
        .headers()
        .get("X-Consul-Token")
        .map(|token| token.to_str().unwrap().to_owned());
    let index: u64 = query.get("index").map_or(0, |index| index.parse().unwrap());
    let wait: u64 = query.get("wait").map_or(300_000, |wait| {
        wait.strip_suffix("ms").unwrap().parse().unwrap()
    });
    let deadline = Instant::now() + Duration::from_millis(wait + wait / 32);
    let mut late = false;
    loop {
        changed.mark_unchanged();
        {
            let catalog = catalog.lock().unwrap();
            if let Some((status, body)) = &catalog.broken {
                return plain(*status, body);
            }
            let hidden = match (&catalog.token, &shown) {
                (Some(_), None) => true,
                (Some(token), Some(shown)) if token != shown => {
                    return plain(StatusCode::FORBIDDEN, "rpc error: ACL not found");
                }
                _ => false,
            };
            let service = catalog.services.get(name);
            let now = match service {
                Some((instances, last)) if !instances.is_empty() => *last,
                _ => catalog.index,
            };
            if index == 0 || now > index || late || catalog.claims.is_some() {
                let instances = service
                    .into_iter()
                    .flat_map(|(instances, _)| instances.values());
                let wanted =
                    instances.filter(|instance| instance.passing || !query.contains_key("passing"));
                let list: Vec<_> = wanted
                    .filter(|_| !hidden)
                    .map(|instance| instance.entry.clone())
                    .collect();
                return Response::builder()
                    .header("Content-Type", "application/json")
                    .header("X-Consul-Index", catalog.claims.unwrap_or(now))
                    .header("X-Consul-KnownLeader", "true")
                    .header("X-Consul-Results-Filtered-By-ACLs", hidden.to_string())
                    .body(whole(Value::from(list).to_string()))
                    .unwrap();
            }
        }
        late = tokio::time::timeout_at(deadline, changed.changed())
            .await
            .is_err();
    }
}

fn plain(status: StatusCode, body: &str) -> Response<Body> {
    Response::builder()
        .status(status)
        .body(whole(body.to_owned()))
        .unwrap()
}
