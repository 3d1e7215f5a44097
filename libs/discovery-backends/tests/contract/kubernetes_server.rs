//! A stand-in for the API server of Kubernetes, for EndpointSlices alone, written from its documented contract.
//!
//! - A listing has a resource version, and comes in pages where `limit` asks for it.
//! - A watch from a resource version tells every change after it that the label selector takes in, one line of JSON each,
//!   until `timeoutSeconds` are over. With `allowWatchBookmarks` it also tells how far it has come.
//! - A resource version that is forgotten is `410 Gone`: the answer to the request, or an event of a watch that is open.
//! - An object that no more has the labels is deleted for the one who watches.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, stream};
use http::{Request, Response, StatusCode};
use hyper::body::{Bytes, Frame, Incoming};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::stand::{Body, Stand, whole};

const PATH: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";

#[derive(Debug, Default)]
pub(crate) struct Objects {
    version: u64,
    now: BTreeMap<String, Value>,
    /// Every change that is not forgotten, with its version.
    history: Vec<(u64, &'static str, Value)>,
    /// What is older cannot be watched from.
    forgotten: u64,
    /// How many listings there were.
    listings: usize,
    /// Watches are refused from a version that is forgotten within the stream, instead of at once.
    late: bool,
}

pub(crate) struct ApiServer(pub(crate) Stand<Objects>);

impl ApiServer {
    pub(crate) async fn start() -> Self {
        let objects = Objects {
            version: 100,
            ..Objects::default()
        };
        let answers =
            |request, objects, changed| async move { answer(&request, objects, changed) }.boxed();
        Self(Stand::start(objects, answers).await)
    }

    /// Makes or changes a slice of a service.
    pub(crate) fn apply(&self, name: &str, service: &str, mut slice: Value) {
        self.0.change(|objects| {
            objects.version += 1;
            slice["metadata"] = json!({
                "name": name, "namespace": "shop",
                "resourceVersion": objects.version.to_string(),
                "labels": {"kubernetes.io/service-name": service},
            });
            let kind = match objects.now.insert(name.to_owned(), slice.clone()) {
                Some(_) => "MODIFIED",
                None => "ADDED",
            };
            objects.history.push((objects.version, kind, slice));
        });
    }

    pub(crate) fn delete(&self, name: &str) {
        self.0.change(|objects| {
            let mut slice = objects.now.remove(name).unwrap();
            objects.version += 1;
            slice["metadata"]["resourceVersion"] = json!(objects.version.to_string());
            objects.history.push((objects.version, "DELETED", slice));
        });
    }

    /// Forgets all that has happened: every watch that is open ends, and one from what was is refused; where `late`, only
    /// once it is open.
    pub(crate) fn forget(&self, late: bool) {
        self.0.change(|objects| {
            objects.version += 1;
            objects.forgotten = objects.version;
            objects.history.clear();
            objects.late = late;
        });
    }

    pub(crate) fn listings(&self) -> usize {
        self.0.change(|objects| objects.listings)
    }
}

fn answer(
    request: &Request<Incoming>,
    objects: Arc<Mutex<Objects>>,
    changed: watch::Receiver<()>,
) -> Response<Body> {
    let query: BTreeMap<String, String> = request
        .uri()
        .query()
        .unwrap_or("")
        .split('&')
        .filter_map(|part| part.split_once('='))
        .map(|(key, value)| {
            (
                key.to_owned(),
                value.replace("%2F", "/").replace("%3D", "="),
            )
        })
        .collect();
    if request.uri().path() != PATH {
        return status(
            StatusCode::FORBIDDEN,
            "Forbidden",
            "endpointslices.discovery.k8s.io is forbidden",
        );
    }
    let selector = query.get("labelSelector").unwrap();
    let wanted = selector
        .strip_prefix("kubernetes.io/service-name=")
        .unwrap()
        .to_owned();
    if query.contains_key("watch") {
        watch_from(&query, wanted, objects, changed)
    } else {
        list(&query, &wanted, &mut objects.lock().unwrap())
    }
}

fn is_of(object: &Value, service: &str) -> bool {
    object["metadata"]["labels"]["kubernetes.io/service-name"] == service
}

fn list(query: &BTreeMap<String, String>, wanted: &str, objects: &mut Objects) -> Response<Body> {
    objects.listings += 1;
    let limit = query
        .get("limit")
        .map_or(usize::MAX, |limit| limit.parse().unwrap());
    let start: usize = query
        .get("continue")
        .map_or(0, |from| from.parse().unwrap());
    let all: Vec<_> = objects
        .now
        .values()
        .filter(|object| is_of(object, wanted))
        .cloned()
        .collect();
    let end = all.len().min(start.saturating_add(limit));
    let more = if end < all.len() {
        end.to_string()
    } else {
        String::new()
    };
    let body = json!({
        "kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"resourceVersion": objects.version.to_string(), "continue": more},
        "items": all[start.min(end)..end],
    });
    json_answer(StatusCode::OK, &body)
}

fn watch_from(
    query: &BTreeMap<String, String>,
    wanted: String,
    objects: Arc<Mutex<Objects>>,
    changed: watch::Receiver<()>,
) -> Response<Body> {
    let from: u64 = query["resourceVersion"].parse().unwrap();
    let bookmarks = query
        .get("allowWatchBookmarks")
        .is_some_and(|value| value == "true");
    {
        let objects = objects.lock().unwrap();
        if from < objects.forgotten && !objects.late {
            return status(StatusCode::GONE, "Expired", "too old resource version");
        }
    }
    let seconds: u64 = query
        .get("timeoutSeconds")
        .map_or(1800, |seconds| seconds.parse().unwrap());
    let deadline = Instant::now() + Duration::from_secs(seconds);
    let state = Some((from, objects, changed));
    let lines = stream::unfold(state, move |state| {
        let wanted = wanted.clone();
        async move {
            let (seen, objects, mut changed) = state?;
            loop {
                changed.mark_unchanged();
                let news = news(&objects.lock().unwrap(), seen, &wanted, bookmarks);
                match news {
                    News::Gone(line) => return Some((line, None)),
                    News::Lines(lines, now) if !lines.is_empty() => {
                        return Some((lines, Some((now, objects, changed))));
                    }
                    News::Lines(..) => {}
                }
                if !matches!(timeout_at(deadline, changed.changed()).await, Ok(Ok(()))) {
                    return None;
                }
            }
        }
    });
    let frames = lines.map(|line| Ok(Frame::data(Bytes::from(line))));
    let body = http_body_util::StreamBody::new(frames.boxed());
    Response::builder()
        .header("Content-Type", "application/json")
        .body(body)
        .unwrap()
}

enum News {
    Gone(String),
    /// Lines, and the version after them.
    Lines(String, u64),
}

fn news(objects: &Objects, seen: u64, wanted: &str, bookmarks: bool) -> News {
    if seen < objects.forgotten {
        let status = status_body(StatusCode::GONE, "Expired", "too old resource version");
        return News::Gone(format!("{}\n", json!({"type": "ERROR", "object": status})));
    }
    let new = objects
        .history
        .iter()
        .filter(|(version, ..)| *version > seen);
    let of_ours = new.filter(|(_, _, object)| is_of(object, wanted));
    let mut lines: String = of_ours
        .map(|(_, kind, object)| format!("{}\n", json!({"type": kind, "object": object})))
        .collect();
    // What happens to others moves a watch on too.
    if bookmarks && objects.version > seen {
        let object = json!({
            "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"resourceVersion": objects.version.to_string()},
            "addressType": "", "endpoints": null,
        });
        lines.push_str(&format!(
            "{}\n",
            json!({"type": "BOOKMARK", "object": object})
        ));
    }
    News::Lines(lines, objects.version)
}

fn status(code: StatusCode, reason: &str, message: &str) -> Response<Body> {
    json_answer(code, &status_body(code, reason, message))
}

fn status_body(code: StatusCode, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code.as_u16(),
    })
}

fn json_answer(code: StatusCode, body: &Value) -> Response<Body> {
    Response::builder()
        .status(code)
        .header("Content-Type", "application/json")
        .body(whole(body.to_string()))
        .unwrap()
}
