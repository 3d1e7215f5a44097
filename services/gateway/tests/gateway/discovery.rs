//! A real discovery server whose knowledge the test decides.

use std::{
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::Stream;
use tether_proto::{
    common::{Death, DeathCause, Endpoint, WorkerRef},
    discovery::{
        EndpointRemoval, PoolAge, WatchEndpointsRequest, WatchEndpointsResponse,
        discovery_service_server::{DiscoveryService, DiscoveryServiceServer},
    },
};
use tokio::{net::UnixListener, runtime::Runtime, sync::watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// What is known, kept over restarts of the server.
#[derive(Debug)]
struct Knowledge {
    instance: String,
    endpoints: Vec<Endpoint>,
    pools: Vec<String>,
    /// Every change; the revision is the number of those before and with it.
    log: Vec<WatchEndpointsResponse>,
    asked: Vec<WatchEndpointsRequest>,
}

#[derive(Clone)]
struct Service {
    knowledge: Arc<Mutex<Knowledge>>,
    revision: watch::Sender<u64>,
}

pub(crate) struct Discovery {
    pub(crate) socket: PathBuf,
    service: Service,
    runtime: Option<Runtime>,
}

pub(crate) fn worker(pool: &str, slot: u32, incarnation: u64) -> WorkerRef {
    WorkerRef {
        pool: pool.to_owned(),
        slot,
        incarnation,
    }
}

pub(crate) fn sigkill() -> Death {
    Death {
        cause: DeathCause::Signaled.into(),
        signal: Some(9),
        ..Death::default()
    }
}

impl Discovery {
    pub(crate) fn start(directory: &Path) -> Self {
        let knowledge = Knowledge {
            instance: "first".to_owned(),
            endpoints: Vec::new(),
            pools: vec!["digits".to_owned()],
            log: Vec::new(),
            asked: Vec::new(),
        };
        let mut discovery = Self {
            socket: directory.join("discovery.sock"),
            service: Service {
                knowledge: Arc::new(Mutex::new(knowledge)),
                revision: watch::Sender::new(1),
            },
            runtime: None,
        };
        discovery.service.change(|_| {});
        discovery.run();
        discovery
    }

    /// Starts serving, at first or again.
    pub(crate) fn run(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("the runtime starts");
        let (socket, service) = (self.socket.clone(), self.service.clone());
        let _inside = runtime.enter();
        let listener = UnixListener::bind(socket).expect("the directory is writable");
        runtime.spawn(async move {
            Server::builder()
                .add_service(DiscoveryServiceServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        });
        drop(_inside);
        self.runtime = Some(runtime);
    }

    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let _ = std::fs::remove_file(&self.socket);
    }

    /// A worker is there, or changed.
    pub(crate) fn up(&self, worker: WorkerRef, address: &str, draining: bool) {
        self.tell(Endpoint {
            worker: Some(worker),
            address: address.to_owned(),
            draining,
            ..Endpoint::default()
        });
    }

    /// An endpoint is new, or changed.
    pub(crate) fn tell(&self, endpoint: Endpoint) {
        self.service.change(|(knowledge, change)| {
            knowledge.endpoints.retain(|old| !same_slot(old, &endpoint));
            knowledge.endpoints.push(endpoint.clone());
            change.upserts.push(endpoint);
        });
    }

    /// A source of the pool is away, or is back.
    pub(crate) fn is_old(&self, age: Option<Duration>) {
        self.service.change(|(_, change)| {
            let age = age.map(|age| PoolAge {
                pool: "digits".to_owned(),
                age_ms: u64::try_from(age.as_millis()).expect("no test is that old"),
                why: "nobody answers".to_owned(),
            });
            change.pool_ages.extend(age);
        });
    }

    /// A worker is gone.
    pub(crate) fn gone(&self, worker: WorkerRef, death: Option<Death>) {
        self.service.change(|(knowledge, change)| {
            knowledge
                .endpoints
                .retain(|old| old.worker.as_ref() != Some(&worker));
            change.removals.push(EndpointRemoval {
                worker: Some(worker),
                death,
            });
        });
    }

    /// What watchers have asked for so far.
    pub(crate) fn asked(&self) -> Vec<WatchEndpointsRequest> {
        self.service
            .knowledge
            .lock()
            .expect("no test panicked")
            .asked
            .clone()
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.kill();
    }
}

fn same_slot(one: &Endpoint, other: &Endpoint) -> bool {
    let slot = |endpoint: &Endpoint| {
        endpoint
            .worker
            .as_ref()
            .map(|worker| (worker.pool.clone(), worker.slot))
    };
    slot(one) == slot(other)
}

impl Service {
    fn change(&self, edit: impl FnOnce((&mut Knowledge, &mut WatchEndpointsResponse))) {
        let mut knowledge = self.knowledge.lock().expect("no test panicked");
        let mut change = WatchEndpointsResponse {
            instance: knowledge.instance.clone(),
            revision: knowledge.log.len() as u64 + 1,
            ..WatchEndpointsResponse::default()
        };
        edit((&mut knowledge, &mut change));
        let revision = change.revision;
        knowledge.log.push(change);
        drop(knowledge);
        self.revision.send_replace(revision);
    }
}

#[tonic::async_trait]
impl DiscoveryService for Service {
    type WatchEndpointsStream =
        Pin<Box<dyn Stream<Item = Result<WatchEndpointsResponse, Status>> + Send>>;

    async fn watch_endpoints(
        &self,
        request: Request<WatchEndpointsRequest>,
    ) -> Result<Response<Self::WatchEndpointsStream>, Status> {
        let request = request.into_inner();
        let mut revision = self.revision.subscribe();
        let (mut at, mut waiting) = {
            let mut knowledge = self.knowledge.lock().expect("no test panicked");
            knowledge.asked.push(request.clone());
            let known = request.resume_instance == knowledge.instance;
            match known {
                true => (request.resume_revision, None),
                false => {
                    let at = knowledge.log.len() as u64;
                    let snapshot = WatchEndpointsResponse {
                        instance: knowledge.instance.clone(),
                        revision: at,
                        snapshot: true,
                        upserts: knowledge.endpoints.clone(),
                        pools: knowledge.pools.clone(),
                        ..WatchEndpointsResponse::default()
                    };
                    (at, Some(snapshot))
                }
            }
        };
        let knowledge = Arc::clone(&self.knowledge);
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                if let Some(word) = waiting.take()
                    && sender.send(Ok(word)).await.is_err()
                {
                    return;
                }
                let index = usize::try_from(at).unwrap_or(usize::MAX);
                let change = knowledge
                    .lock()
                    .ok()
                    .and_then(|known| known.log.get(index).cloned());
                match change {
                    Some(change) => {
                        at += 1;
                        waiting = Some(change);
                    }
                    None if revision.changed().await.is_err() => return,
                    None => {}
                }
            }
        });
        let words = tokio_stream::wrappers::ReceiverStream::new(receiver);
        Ok(Response::new(Box::pin(words)))
    }
}
