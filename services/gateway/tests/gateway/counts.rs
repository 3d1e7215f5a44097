//! How many calls a worker has served, as the arbiter is told.

use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use tether_gateway::Config;
use tether_proto::{
    common::Endpoint,
    gateway::{
        ReportCallsRequest, ReportCallsResponse, WatchOwnersRequest, WatchOwnersResponse,
        gateway_service_server::{GatewayService, GatewayServiceServer},
    },
};
use tokio::{net::UnixListener, runtime::Runtime, sync::watch};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::{
    client::soon,
    discovery::worker,
    house::{DIGITS, House, UNARY},
    worker::{Worker, reached},
};

/// An arbiter that writes down what it is told, over restarts too.
struct Arbiter {
    directory: TempDir,
    told: Told,
    runtime: Option<Runtime>,
}

#[derive(Clone, Default)]
struct Told {
    /// One list for each stream.
    streams: Arc<Mutex<Vec<Vec<ReportCallsRequest>>>>,
    news: Arc<watch::Sender<u64>>,
}

#[tonic::async_trait]
impl GatewayService for Told {
    async fn report_calls(
        &self,
        request: Request<Streaming<ReportCallsRequest>>,
    ) -> Result<Response<ReportCallsResponse>, Status> {
        let mut reports = request.into_inner();
        self.streams
            .lock()
            .expect("no test panicked")
            .push(Vec::new());
        while let Some(report) = reports.message().await? {
            let mut streams = self.streams.lock().expect("no test panicked");
            streams.last_mut().expect("it has begun").push(report);
            drop(streams);
            self.news.send_modify(|count| *count += 1);
        }
        Ok(Response::new(ReportCallsResponse {}))
    }

    type WatchOwnersStream = tokio_stream::Empty<Result<WatchOwnersResponse, Status>>;

    async fn watch_owners(
        &self,
        _: Request<Streaming<WatchOwnersRequest>>,
    ) -> Result<Response<Self::WatchOwnersStream>, Status> {
        Err(Status::unimplemented("this one knows no owners"))
    }
}

impl Arbiter {
    fn start() -> Self {
        let mut arbiter = Self {
            directory: tempfile::tempdir().expect("there is a place for files"),
            told: Told::default(),
            runtime: None,
        };
        arbiter.run();
        arbiter
    }

    fn run(&mut self) {
        let socket = self.directory.path().join("arbiter.sock");
        let _ = std::fs::remove_file(&socket);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("the runtime starts");
        let _inside = runtime.enter();
        let listener = UnixListener::bind(socket).expect("the directory is writable");
        let service = GatewayServiceServer::new(self.told.clone());
        let server = Server::builder().add_service(service);
        runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        self.runtime = Some(runtime);
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    fn address(&self) -> String {
        format!(
            "unix:{}",
            self.directory.path().join("arbiter.sock").display()
        )
    }

    /// What each stream was told, in order, as `slot.incarnation` and the count.
    fn streams(&self) -> Vec<Vec<(String, u64)>> {
        let streams = self.told.streams.lock().expect("no test panicked");
        let counts = |report: &ReportCallsRequest| -> Vec<_> {
            let workers = report.workers.iter().map(|counted| {
                let worker = counted.worker.as_ref().expect("it names a worker");
                let name = format!("{}.{}", worker.slot, worker.incarnation);
                (name, counted.calls)
            });
            workers.collect()
        };
        let stream = |reports: &Vec<_>| reports.iter().flat_map(counts).collect();
        streams.iter().map(stream).collect()
    }

    /// Waits until it was told this, last of all.
    async fn is_told(&self, worker: &str, calls: u64) {
        let mut news = self.told.news.subscribe();
        let told = async {
            loop {
                news.borrow_and_update();
                let streams = self.streams();
                let last = streams.last().and_then(|stream| stream.last());
                if last == Some(&(worker.to_owned(), calls)) {
                    return;
                }
                news.changed().await.expect("the arbiter is there");
            }
        };
        soon("the count", told).await;
    }

    fn instances(&self) -> Vec<String> {
        let streams = self.told.streams.lock().expect("no test panicked");
        let reports = streams.iter().flatten();
        let mut instances: Vec<_> = reports.map(|report| report.instance.clone()).collect();
        instances.dedup();
        instances
    }
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        self.kill();
    }
}

fn counted(slot: u32, address: &str) -> Endpoint {
    Endpoint {
        worker: Some(worker("digits", slot, 1)),
        address: address.to_owned(),
        count_calls: true,
        ..Endpoint::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_are_told_whole_where_they_are_wanted_and_again_to_another_arbiter() {
    let mut arbiter = Arbiter::start();
    let house = House::with_arbiter(Config::default(), &arbiter.address()).await;
    // Which costs one call, and another for each try that was too early.
    let echo = house.worker(0).await;
    let client = house.client().await;
    client.unary(UNARY, DIGITS, "").await.unwrap();
    assert_eq!(arbiter.streams().len(), 0, "nobody asked for counts");

    // A worker that is counted from its middle on is told with all it has served.
    house.discovery.tell(counted(0, &echo.address));
    house
        .until("it is told", async || {
            !arbiter.streams().concat().is_empty()
        })
        .await;
    let before = arbiter.streams()[0][0].1;
    assert!(before >= 2, "{before}");
    for _ in 0..20 {
        client.unary(UNARY, DIGITS, "").await.unwrap();
    }
    client
        .unary("/test.Echo/None", DIGITS, "")
        .await
        .unwrap_err();
    arbiter.is_told("0.1", before + 21).await;
    assert_eq!(arbiter.streams().len(), 1);
    assert!(
        arbiter.streams()[0].len() < 10,
        "not for each call: {:?}",
        arbiter.streams()
    );

    arbiter.kill();
    client.unary(UNARY, DIGITS, "").await.unwrap();
    arbiter.run();

    arbiter.is_told("0.1", before + 22).await;
    assert_eq!(arbiter.instances().len(), 1, "it is the same gateway");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_counts_when_it_is_over_and_where_it_went() {
    let arbiter = Arbiter::start();
    let house = House::with_arbiter(Config::default(), &arbiter.address()).await;
    let echo = Worker::start().await;
    // Nobody listens there, so that a call which is tried there first is sent to the other alone.
    house
        .discovery
        .tell(counted(0, "unix:/nonexistent/worker.sock"));
    house.discovery.tell(counted(1, &echo.address));
    let client = house.client().await;
    house
        .until("the workers are known", async || {
            client.unary(UNARY, DIGITS, "").await.is_ok()
        })
        .await;
    let hanging = {
        let client = house.client().await;
        tokio::spawn(async move { client.unary("/test.Echo/Hang", DIGITS, "").await })
    };
    reached(&echo.seen.calls, 2).await;
    arbiter.is_told("1.1", echo.calls() - 1).await;

    // A client that goes away ends its call, which the worker has had all the same.
    hanging.abort();
    arbiter.is_told("1.1", echo.calls()).await;
    let told = arbiter.streams().concat();
    assert!(told.iter().all(|(worker, _)| worker == "1.1"), "{told:?}");
}
