//! `kubernetes://default/embed:grpc`: the pods of a service, from its EndpointSlices. Built with the feature `kubernetes`.
//!
//! Without a namespace it is the pod's own, or that of the kubeconfig's context; without a port, the only one there is.
//! Options: `family=ipv4|ipv6` where a service has both (IPv4 otherwise), `kubeconfig=/path` and `context=NAME` where it is
//! not the cluster that this process runs in.
//!
//! Who may `list` and `watch` `endpointslices` of the group `discovery.k8s.io` in the namespace is let in. One listing,
//! then a watch from its revision; one that the API server has forgotten is another listing. A watch is opened anew every
//! half a minute, so that a server that is cut off is found out.

mod slices;

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::sleep;

use self::slices::{Family, Port, Slices};
use super::{
    Answer, Backend, Options, Watch,
    again::{Ask, and_again},
    entry::shown,
};

const CONNECT: Duration = Duration::from_secs(3);
/// How long the API server leaves a watch open, in seconds.
const WATCH_SECONDS: u32 = 30;
/// A connection on which nothing comes for so long is cut off.
const SILENCE: Duration = Duration::from_secs(40);
/// Before another listing: a server that forgets everything at once is not asked without pause.
const GAP: Duration = Duration::from_millis(200);
/// Slices in one answer of a listing; each has up to 1000 endpoints.
const PAGE: u32 = 20;

#[derive(Debug)]
pub(super) struct Kubernetes;

impl Backend for Kubernetes {
    fn scheme(&self) -> &'static str {
        "kubernetes"
    }

    fn usage(&self) -> &'static str {
        "kubernetes://default/embed:grpc"
    }

    fn watch(&self, target: &str, options: &mut Options) -> Result<Watch, String> {
        let (namespace, rest) = match target.split_once('/') {
            Some((namespace, rest)) => (Some(label(namespace, "namespace")?), rest),
            None => (None, target),
        };
        let (service, port) = match rest.split_once(':') {
            Some((service, port)) => (service, Port::parse(port)?),
            None => (rest, Port::Only),
        };
        let service = label(service, "service")?;
        let family = match options.text("family").as_deref() {
            None => None,
            Some("ipv4") => Some(Family::V4),
            Some("ipv6") => Some(Family::V6),
            Some(other) => {
                return Err(format!(
                    "the option `family` is `{}`, and neither `ipv4` nor `ipv6`",
                    shown(other)
                ));
            }
        };
        let kubeconfig = options.text("kubeconfig");
        if kubeconfig
            .as_ref()
            .is_some_and(|path| !path.starts_with('/'))
        {
            return Err("`kubeconfig` has to start with `/`".to_owned());
        }
        Ok(and_again(Service {
            name: format!("`kubernetes://{target}`"),
            namespace,
            service,
            kubeconfig,
            context: options.text("context"),
            slices: Slices::new(port, family),
            events: None,
        }))
    }
}

fn label(text: &str, what: &str) -> Result<String, String> {
    let is_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let ends = text.starts_with('-') || text.ends_with('-');
    if text.is_empty() || text.len() > 63 || ends || !text.chars().all(is_label) {
        return Err(format!("`{}` is no name of a {what}", shown(text)));
    }
    Ok(text.to_owned())
}

struct Service {
    name: String,
    namespace: Option<String>,
    service: String,
    kubeconfig: Option<String>,
    context: Option<String>,
    slices: Slices,
    /// None at first and after an error.
    events: Option<Events>,
}

type Events = BoxStream<'static, watcher::Result<Event<EndpointSlice>>>;

impl Ask for Service {
    fn name(&self) -> String {
        self.name.clone()
    }

    async fn next(&mut self) -> Result<Answer, String> {
        let word = self.follow().await;
        if word.is_err() {
            // A watch that goes on would not tell that the server is there again: it is listed anew.
            self.events = None;
        }
        word
    }
}

impl Service {
    async fn follow(&mut self) -> Result<Answer, String> {
        loop {
            if self.events.is_none() {
                self.events = Some(self.begin().await?);
            }
            let Some(events) = &mut self.events else {
                continue;
            };
            let event = match events.try_next().await {
                Ok(Some(event)) => event,
                Ok(None) => return Err("the watch ended without a reason".to_owned()),
                // Nothing is wrong: it goes on with another listing.
                Err(error) if is_forgotten(&error) => {
                    self.events = None;
                    sleep(GAP).await;
                    continue;
                }
                Err(error) => return Err(words(&error)),
            };
            if self.slices.on_event(event)? {
                return self.slices.answer();
            }
        }
    }

    async fn begin(&mut self) -> Result<Events, String> {
        let options = KubeConfigOptions {
            context: self.context.clone(),
            ..KubeConfigOptions::default()
        };
        let config = match (&self.kubeconfig, &self.context) {
            (Some(path), _) => match Kubeconfig::read_from(path) {
                Ok(kubeconfig) => Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .map_err(|error| words(&error)),
                Err(error) => Err(words(&error)),
            },
            (None, Some(_)) => Config::from_kubeconfig(&options)
                .await
                .map_err(|error| words(&error)),
            (None, None) => Config::infer().await.map_err(|error| words(&error)),
        };
        let mut config = config.map_err(|why| {
            format!("it is not known where the API server is: {why}; give `kubeconfig=/path`, or run in a pod with a service account")
        })?;
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(SILENCE);
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).map_err(|error| words(&error))?;
        let api: Api<EndpointSlice> = Api::namespaced(client, &namespace);
        let wanted = watcher::Config::default()
            .labels(&format!("kubernetes.io/service-name={}", self.service))
            .timeout(WATCH_SECONDS)
            .page_size(PAGE);
        Ok(watcher(api, wanted).boxed())
    }
}

/// Whether the API server does not know any more what came after the revision that it was asked for.
fn is_forgotten(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchError(status) => status.code == 410,
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        _ => false,
    }
}

fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Many of them repeat their cause.
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    if text.contains("forbidden") {
        text.push_str(
            "; let the service account `list` and `watch` `endpointslices.discovery.k8s.io`",
        );
    }
    text
}
