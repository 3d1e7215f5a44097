//! The one address a BEAM application needs: control calls go to the arbiter and discovery, every
//! other gRPC call goes to a worker of the pool its metadata names.
//!
//! ```text
//!   client --HTTP/2--> server --> route --> forward --> upstream --HTTP/2--> worker
//!                                  pure       |            ^
//!                                             v            |
//!   discovery --watch--> directory: endpoints, breakers, connections
//!   agents ---- fates -------^
//! ```
//!
//! Payloads are never decoded; where a method's rule says so, one field of a call's first message is looked at. Messages,
//! trailers, deadlines, cancellation and backpressure pass through in both directions; a call whose worker dies ends with real trailers that name the cause
//! of the death. The gateway keeps no state that a restart would lose, but what a worker served since it last
//! told the arbiter, and which of them served an affinity key last.

mod affinity;
mod answer;
mod arbiters;
mod attempt;
mod bounds;
mod budget;
mod call;
mod client;
mod config;
mod control;
mod counts;
mod crew;
mod deadline;
mod directory;
mod ending;
mod explain;
mod fates;
mod fields;
mod forward;
mod greeting;
mod handover;
mod hedge;
mod held;
mod lanes;
mod links;
mod meter;
mod methods;
mod own;
mod owners;
mod pool_breaker;
mod pools;
mod pump;
mod questions;
mod record;
mod repeat;
mod room;
mod route;
mod server;
mod slots;
mod timeout;
mod upload;
mod upstream;
mod waiters;
mod wake;
mod watch;
mod wire;

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use tether_types::Address;
use tokio::task::JoinSet;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use affinity::{AffinityFrom, AffinityRule};
pub use config::{Breaker, Config, Control, Keys, Queue, Retries, WhenStale, control_of};
pub use handover::Handover;
pub use methods::{MethodRule, Methods};
pub use pool_breaker::PoolBreaker;
pub use pools::{PoolRule, Pools};
pub use tether_kit::listen::Listener;
use tether_kit::{
    serve::Server,
    tls::{self, Connector},
};
pub use wire::Engine;

use arbiters::Arbiters;
use budget::Budget;
use directory::Directory;
use ending::Ending;
use forward::Forwarder;
use lanes::Lanes;
use links::Links;
use own::OwnServices;
use owners::Owners;
use record::Tail;
use upstream::{Dial, Upstream};
use wake::Wake;

/// How often the gateway looks whether it can do its work.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// How long a successor waits at most until those who watch were told.
const SHORT_NOTICE: Duration = Duration::from_secs(1);

/// How long orders under way may take to be answered at the end.
const CONTROL_DRAIN: Duration = Duration::from_secs(1);

/// A gateway, ready to serve.
pub struct Gateway {
    forwarder: Forwarder,
    control: Option<Listener>,
    admin: Option<Listener>,
    handover: Option<Handover>,
    /// The connections of each lane to workers; none where the gateway serves on the runtime it is called on.
    lanes: Vec<Arc<Links>>,
    /// Certificates that cannot be used.
    wrong: Option<tls::Error>,
}

impl Gateway {
    /// A gateway that knows where the arbiters, at least one, and discovery are, and has not talked to
    /// them yet.
    pub fn build(config: Config, arbiters: Vec<Address>, discovery: Address) -> Self {
        let processors = || std::thread::available_parallelism().map_or(1, usize::from);
        let lanes = match config.threads {
            0 => processors(),
            threads => threads,
        };
        Self::with_lanes(lanes, config, arbiters, discovery)
    }

    /// One that serves on the runtime that `serve` is called on, for a simulation, which has but one thread.
    pub fn build_here(config: Config, arbiters: Vec<Address>, discovery: Address) -> Self {
        Self::with_lanes(0, config, arbiters, discovery)
    }

    fn with_lanes(
        lanes: usize,
        config: Config,
        arbiters: Vec<Address>,
        discovery: Address,
    ) -> Self {
        let dial = Dial {
            timeout: config.connect_timeout,
            engine: config.engine,
        };
        let files = config.worker_tls.clone();
        let tls = files.map(|files| Connector::new(files, "gateway.worker_tls"));
        let (tls, wrong) = match tls.transpose() {
            Ok(tls) => (tls.map(Arc::new), None),
            Err(wrong) => (None, Some(wrong)),
        };
        let links = || Arc::new(Links::new(dial, tls.clone()));
        let here = links();
        let lanes: Vec<_> = std::iter::repeat_with(links).take(lanes).collect();
        let all = lanes.iter().chain([&here]).cloned().collect();
        let arbiters = Arc::new(Arbiters::new(arbiters, dial));
        let wake = Wake::new(
            Arc::clone(&arbiters),
            config.connect_timeout,
            config.pools.clone(),
        );
        Self {
            forwarder: Forwarder {
                directory: Arc::new(Directory::new(&config, all)),
                links: here,
                arbiters,
                wake: Arc::new(wake),
                discovery: Arc::new(Upstream::new(discovery, dial)),
                own: OwnServices::new(),
                owners: Arc::new(Owners::new(&config)),
                budget: Budget::new(config.max_unread_bytes),
                rooms: Forwarder::rooms(),
                tail: Tail::default(),
                ending: Ending::default(),
                own_word: HeaderValue::from(fastrand::u64(..)),
                config,
            },
            lanes,
            wrong,
            control: None,
            admin: None,
            handover: None,
        }
    }

    /// Whether it can do its work: discovery has spoken, and an arbiter can be reached.
    pub fn ready(&self) -> tokio::sync::watch::Receiver<bool> {
        self.forwarder.own.ready()
    }

    /// Answers probes on `listener`, where there is one.
    #[must_use]
    pub fn probed_at(mut self, listener: Option<Listener>) -> Self {
        self.admin = listener;
        self
    }

    /// Takes orders on `listener`, where there is one.
    #[must_use]
    pub fn controlled_at(mut self, listener: Option<Listener>) -> Self {
        self.control = listener;
        self
    }

    /// Takes the place of another process with it, where there is one, and makes place for another.
    #[must_use]
    pub fn handing_over(mut self, handover: Option<Handover>) -> Self {
        self.handover = handover;
        self
    }

    /// Takes calls on `listeners` until told to stop; then takes no more, and ends when the calls
    /// under way have, or after the configured drain time.
    ///
    /// # Errors
    /// When its certificates cannot be used, or it stopped without being told to.
    pub async fn serve(
        self,
        listeners: Vec<Listener>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        let Self {
            forwarder,
            lanes,
            control,
            admin,
            mut handover,
            wrong,
        } = self;
        if let Some(wrong) = wrong {
            return Err(wrong.into());
        }
        let ending = forwarder.ending.clone();
        let on_lane = |links| Forwarder {
            links,
            rooms: Forwarder::rooms(),
            ending: ending.on_lane(),
            ..forwarder.clone()
        };
        let on_lanes = lanes.into_iter().map(on_lane).collect();
        let forwarder = Arc::new(forwarder.clone());
        forwarder.own.set_serving(false).await;
        let mut background = JoinSet::new();
        background.spawn(watch::follow(
            forwarder.discovery.address().clone(),
            forwarder.config.connect_timeout,
            watch::Terms {
                zone: forwarder.config.zone.clone(),
                tls: forwarder.config.worker_tls.is_some(),
            },
            Arc::clone(&forwarder.directory),
        ));
        background.spawn(fates::follow(
            Arc::clone(&forwarder.directory),
            forwarder.config.connect_timeout,
        ));
        background.spawn(counts::report(
            Arc::clone(&forwarder.arbiters),
            forwarder.config.connect_timeout,
            Arc::clone(&forwarder.directory),
        ));
        let arbiters = Arc::clone(&forwarder.arbiters);
        background.spawn(async move { arbiters.follow().await });
        background.spawn(owners::follow(
            Arc::clone(&forwarder.arbiters),
            forwarder.config.connect_timeout,
            Arc::clone(&forwarder.owners),
        ));
        background.spawn(report_health(Arc::clone(&forwarder), ending.notice.clone()));

        let connections = TaskTracker::new();
        let over = CancellationToken::new();
        let orders =
            control::Control::new(Arc::clone(&forwarder), ending.notice.clone(), over.clone());
        let control = control.map(|listener| {
            let control = orders.clone();
            background.spawn(control.clone().expire());
            background.spawn(control.clone().look_out());
            let server = Server::new(tether_proto::DESCRIPTORS).service(control.service());
            tokio::spawn(server.serve(listener, over.clone(), CONTROL_DRAIN))
        });
        if let Some(handover) = &mut handover {
            handover.fit(&forwarder.directory).await?;
            let inherited = handover.inherited_orders();
            match control {
                Some(_) => orders.inherit(inherited),
                // Nobody could undo them.
                None => control::warn_of(&inherited, "no orders are taken here"),
            }
        }
        // Not before a successor is one: whoever asks meanwhile is answered by the predecessor.
        let probes = admin.map(|listener| {
            let parts = vec![forwarder.own.ready()];
            let (stop, over) = (ending.notice.clone(), over.clone());
            tokio::spawn(tether_kit::admin::serve(listener, parts, stop, over))
        });
        let lanes = Lanes::start(Arc::clone(&forwarder), on_lanes, &connections, &ending)?;
        for listener in listeners {
            background.spawn(server::accept(
                listener,
                lanes.clone(),
                ending.drain.clone(),
                connections.token(),
            ));
        }
        let successor = async {
            match handover {
                Some(handover) => handover.succeed(|| orders.standing()).await,
                None => std::future::pending().await,
            }
        };

        let handed_over = tokio::select! {
            () = stop.cancelled() => None,
            done = successor => Some(done),
            Some(ended) = background.join_next() => {
                anyhow::bail!("a part of the gateway ended by itself: {ended:?}");
            }
        };
        ending.notice.cancel();
        forwarder.own.set_serving(false).await;
        let notice = forwarder.config.drain_notice;
        match handed_over {
            None => tokio::time::sleep(notice).await,
            // There is another one already, which orders are for from here on.
            Some(done) => {
                tokio::time::sleep(notice.min(SHORT_NOTICE)).await;
                over.cancel();
                ending.drain.cancel();
                done.say();
            }
        }
        ending.run(&connections, &forwarder.config).await;
        over.cancel();
        for other in control.into_iter().chain(probes) {
            other.await??;
        }
        Ok(())
    }
}

/// Keeps the health of the gateway true: it serves once discovery has spoken and while an arbiter
/// can be reached. Whether one leads passes, and is no reason to take calls to workers elsewhere.
async fn report_health(forwarder: Arc<Forwarder>, stop: CancellationToken) {
    let mut was = false;
    while !stop.is_cancelled() {
        let informed = forwarder.directory.informed(HEALTH_INTERVAL).await;
        let serving = informed && forwarder.arbiters.current().ready().await.is_ok();
        if serving != was && !stop.is_cancelled() {
            forwarder.own.set_serving(serving).await;
            tracing::info!(serving, "Gateway's health changed");
            was = serving;
        }
        let pause = tokio::time::sleep(HEALTH_INTERVAL);
        let _ = stop.run_until_cancelled(pause).await;
    }
    // The end of this task is not the end of the gateway.
    std::future::pending().await
}
