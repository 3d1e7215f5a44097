//! One call at the worker on tonic: what its metadata asks for, and what became of it.

use std::{
    collections::HashMap,
    future::pending,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use http::HeaderMap;
use tokio::sync::watch;
use tonic::{Code, Response, Status, Streaming, metadata::MetadataMap};

use super::super::{pattern::pattern, tonic_client::pairs};

pub(super) type BoxStream = Pin<Box<dyn Stream<Item = Result<Bytes, Status>> + Send>>;

/// What became of one call.
#[derive(Debug, Default)]
struct Fate {
    seen: usize,
    how: Option<String>,
}

/// What became of calls, by the name their client gave them.
#[derive(Clone, Default)]
pub(super) struct Fates(Arc<Mutex<HashMap<String, watch::Sender<Fate>>>>);

impl Fates {
    fn of(&self, id: &str) -> watch::Sender<Fate> {
        let mut fates = self.0.lock().expect("no call panicked");
        fates.entry(id.to_owned()).or_default().clone()
    }

    pub(super) async fn tell(&self, call: &Call) -> Bytes {
        let fate = self.of(word(&call.metadata, "do-of").expect("it says of which call"));
        let mut fate = fate.subscribe();
        let least = call.number("do-seen");
        let told = fate.wait_for(|fate| match least {
            Some(least) => fate.seen >= least,
            None => fate.how.is_some(),
        });
        let told = told.await.expect("the call is remembered");
        match least {
            Some(_) => Bytes::from("seen"),
            None => told.how.clone().unwrap_or_default().into(),
        }
    }
}

/// One call under way: what its metadata asks for, and its fate.
pub(super) struct Call {
    metadata: MetadataMap,
    fate: Option<watch::Sender<Fate>>,
    done: bool,
}

impl Drop for Call {
    fn drop(&mut self) {
        let how = match self.done {
            true => "complete",
            false => "cancelled",
        };
        self.change(|fate| fate.how = Some(format!("{how} after {}", fate.seen)));
    }
}

impl Call {
    pub(super) async fn begin(fates: &Fates, metadata: &MetadataMap) -> Self {
        let call = Self {
            metadata: metadata.clone(),
            fate: word(metadata, "do-id").map(|id| fates.of(id)),
            done: false,
        };
        if let Some(wait) = call.number("do-wait") {
            tokio::time::sleep(Duration::from_millis(wait as u64)).await;
        }
        call
    }

    fn change(&self, edit: impl FnOnce(&mut Fate)) {
        if let Some(fate) = &self.fate {
            fate.send_modify(edit);
        }
    }

    pub(super) fn saw(&self) {
        self.change(|fate| fate.seen += 1);
    }

    fn number(&self, key: &str) -> Option<usize> {
        word(&self.metadata, key)?.parse().ok()
    }

    pub(super) fn answers(&self) -> Vec<Bytes> {
        let sizes = word(&self.metadata, "do-sizes").unwrap_or("");
        let sizes = sizes.split(' ').filter_map(|size| size.parse().ok());
        sizes.map(pattern).collect()
    }

    /// The failure that was asked for.
    pub(super) fn failure(&mut self) -> Result<(), Status> {
        self.done = true;
        let Some(code) = self.number("do-code") else {
            return Ok(());
        };
        let words = self.metadata.get_bin("do-message-bin").map(|words| {
            let words = words.to_bytes().expect("it is base64");
            String::from_utf8(words.to_vec()).expect("it is a text")
        });
        let words = words
            .or_else(|| Some(word(&self.metadata, "do-message")?.to_owned()))
            .unwrap_or_default();
        let code = Code::from_i32(i32::try_from(code).unwrap_or(0));
        let details = self.metadata.get_bin("do-details-bin");
        let details = details.and_then(|details| details.to_bytes().ok());
        let mut status = match details {
            Some(details) => Status::with_details(code, words, details),
            None => Status::new(code, words),
        };
        *status.metadata_mut() = trailing(&self.metadata);
        Err(status)
    }

    pub(super) fn respond<T>(&self, answer: T) -> Response<T> {
        let mut response = Response::new(answer);
        *response.metadata_mut() = starting(&self.metadata, "h-");
        response
    }

    /// These messages and the failure that was asked for, after all or as many as it says.
    pub(super) fn stream(
        mut self,
        messages: impl Stream<Item = Bytes> + Send + 'static,
    ) -> BoxStream {
        let after = self.number("do-after").unwrap_or(usize::MAX);
        let mut rest = Box::pin(messages.take(after));
        let mut failed = false;
        let next = move |cx: &mut Context<'_>| {
            if failed {
                return Poll::Ready(None);
            }
            Poll::Ready(match std::task::ready!(rest.as_mut().poll_next(cx)) {
                Some(message) => Some(Ok(message)),
                None => {
                    failed = true;
                    self.failure().err().map(Err)
                }
            })
        };
        Box::pin(stream::poll_fn(next))
    }

    /// Messages as they come. A request that breaks off does not end: that it was cancelled shows otherwise.
    pub(super) fn messages(
        &self,
        requests: Streaming<Bytes>,
    ) -> impl Stream<Item = Bytes> + Send + use<> {
        let fate = self.fate.clone();
        stream::unfold((requests, fate), async |(mut requests, fate)| {
            let message = match requests.message().await {
                Ok(message) => message?,
                Err(_) => pending().await,
            };
            if let Some(fate) = &fate {
                fate.send_modify(|fate| fate.seen += 1);
            }
            Some((message, (requests, fate)))
        })
    }
}

fn word<'a>(metadata: &'a MetadataMap, key: &str) -> Option<&'a str> {
    metadata.get(key)?.to_str().ok()
}

/// Metadata whose keys begin like this.
fn starting(metadata: &MetadataMap, prefix: &str) -> MetadataMap {
    let headers = metadata.clone().into_headers();
    let kept = headers
        .iter()
        .filter(|(key, _)| key.as_str().starts_with(prefix))
        .map(|(key, value)| (key.clone(), value.clone()));
    let mut like_these = HeaderMap::new();
    for (key, value) in kept {
        like_these.append(key, value);
    }
    MetadataMap::from_headers(like_these)
}

pub(super) fn trailing(metadata: &MetadataMap) -> MetadataMap {
    let mut trailing = starting(metadata, "t-");
    let number = |key| word(metadata, key)?.parse::<usize>().ok();
    if let Some(size) = number("do-big") {
        trailing.insert("t-big", "x".repeat(size).parse().expect("it is a value"));
    }
    for at in 0..number("do-many").unwrap_or(0) {
        let key: tonic::metadata::AsciiMetadataKey =
            format!("t-many-{at}").parse().expect("it is a key");
        trailing.insert(key, at.into());
    }
    trailing
}

/// All metadata as it came, but the word of a gateway that it came through; of a deadline only that there is one.
pub(super) fn inspect(metadata: &MetadataMap) -> Bytes {
    let mut seen = pairs(metadata);
    let timed = metadata.contains_key("grpc-timeout");
    seen.retain(|(key, _)| !["grpc-timeout", "tether-via"].contains(&key.as_str()));
    let deadline = if timed { "some" } else { "none" };
    seen.push(("(deadline)".to_owned(), deadline.to_owned()));
    let lines: Vec<String> = seen
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    lines.join("\n").into()
}
