//! Gateways that take over from each other, as processes.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use tether_proto::gateway::{
    EjectRequest, Limits, Order, PinRequest, QueueLimits, SetLimitsRequest, SnapshotRequest,
    control_service_client::ControlServiceClient, limits,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::UnixStream,
    process::{Child, Command},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::{
    client::{Client, next, soon},
    discovery::{Discovery, worker},
    house::{DIGITS, UNARY},
    worker::Worker,
};

/// How often the gateway is restarted under load.
const RESTARTS: u64 = 20;

/// The files of gateways that follow each other.
struct Site {
    directory: tempfile::TempDir,
    address: String,
    discovery: Discovery,
}

/// A process, which ends with this.
struct Gateway {
    process: Child,
    /// What it has said so far.
    said: watch::Receiver<String>,
}

impl Site {
    fn open() -> Self {
        let directory = tempfile::tempdir().expect("there is a place for files");
        let discovery = Discovery::start(directory.path());
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a port");
        let address = free.local_addr().expect("it is bound").to_string();
        let site = Self {
            directory,
            address,
            discovery,
        };
        site.configure("discovery.sock");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn configure(&self, discovery: &str) {
        let at = |name: &str| self.path(name).display().to_string();
        let text = format!(
            "[listen]\ngateway = [\"{}\", \"unix:{}\"]\n\n[connect]\narbiter = \"unix:/nonexistent/arbiter.sock\"\ndiscovery = \"unix:{}\"\n\n[gateway]\nhandover = \"{}\"\ndrain = \"30s\"\nthreads = 2\n",
            self.address,
            at("gateway.sock"),
            at(discovery),
            at("handover.sock"),
        );
        std::fs::write(self.path("tether.toml"), text).expect("the directory is writable");
    }

    /// Starts one, the first or a successor.
    fn start(&self) -> Gateway {
        let mut process = Command::new(env!("CARGO_BIN_EXE_tether-gateway"))
            .arg("--config")
            .arg(self.path("tether.toml"))
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the program is built");
        let mut lines = BufReader::new(process.stderr.take().expect("it is piped")).lines();
        let (sender, said) = watch::channel(String::new());
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                sender.send_modify(|said| {
                    said.push_str(&line);
                    said.push('\n');
                });
            }
        });
        Gateway { process, said }
    }
}

impl Gateway {
    /// Waits until it has said something.
    async fn says(&mut self, text: &str) {
        let is_heard = {
            let heard = self.said.wait_for(|said| said.contains(text));
            let heard = tokio::time::timeout(Duration::from_secs(20), heard).await;
            matches!(heard, Ok(Ok(_)))
        };
        assert!(is_heard, "`{text}` is not in:\n{}", *self.said.borrow());
    }

    async fn ends(&mut self) -> Option<i32> {
        let status = soon("its end", self.process.wait()).await;
        status.expect("it is ours").code()
    }
}

/// Waits until calls are served at an address.
async fn served(address: &str) {
    let asked = async {
        loop {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                let client = Client::connect(address).await;
                if client.unary(UNARY, DIGITS, "").await.is_ok() {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("the gateway serves", asked).await;
}

/// What became of calls that were made without a pause.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    made: u64,
    refused: u64,
    failed: u64,
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_refused_and_no_call_fails_through_twenty_restarts() {
    let site = Site::open();
    let served_by = Worker::start().await;
    site.discovery
        .up(worker("digits", 0, 1), &served_by.address, false);
    let mut serving = site.start();
    served(&site.address).await;
    let first = serving.process.id();

    // A stream from before, which stays at the first one.
    let client = Client::connect(&site.address).await;
    let (messages, sent) = mpsc::channel(1);
    let stream = client.bidi("/test.Echo/Bidi", DIGITS, ReceiverStream::new(sent));
    messages.send("a".into()).await.unwrap();
    let mut stream = stream.await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().unwrap(), "a");

    let counts = Arc::new(watch::Sender::new(Counts::default()));
    let (over, mut is_over) = watch::channel(false);
    let (address, counted) = (site.address.clone(), Arc::clone(&counts));
    let calls = tokio::spawn(async move {
        while !*is_over.borrow_and_update() {
            let mut now = Counts {
                made: 1,
                ..Counts::default()
            };
            match tokio::net::TcpStream::connect(&address).await {
                Err(_) => now.refused = 1,
                Ok(connection) => drop(connection),
            }
            let endpoint = tonic::transport::Channel::from_shared(format!("http://{address}"));
            match endpoint.expect("it is an address").connect().await {
                Err(_) => now.refused += 1,
                Ok(channel) => {
                    let client = Client::over(channel);
                    let answer = client.unary(UNARY, DIGITS, "a").await;
                    now.failed = u64::from(answer.is_err());
                    if let Err(status) = answer {
                        eprintln!("{status}");
                    }
                }
            }
            counted.send_modify(|counts| {
                counts.made += now.made;
                counts.refused += now.refused;
                counts.failed += now.failed;
            });
        }
    });
    let mut old = Vec::new();
    for _ in 0..RESTARTS {
        let mut next = site.start();
        next.says("Took over").await;
        let before = counts.borrow().made;
        let mut made = counts.subscribe();
        soon(
            "more calls",
            made.wait_for(|counts| counts.made > before + 3),
        )
        .await
        .unwrap();
        old.push(std::mem::replace(&mut serving, next));
    }
    over.send_replace(true);
    calls.await.unwrap();

    let counts = *counts.borrow();
    assert_eq!((counts.refused, counts.failed), (0, 0), "{counts:?}");
    assert!(counts.made > 3 * RESTARTS, "{counts:?}");
    // All but the first have nothing to wait for.
    let mut first_one = old.remove(0);
    assert_eq!(first_one.process.id(), first);
    for gateway in &mut old {
        assert_eq!(gateway.ends().await, Some(0));
    }
    messages.send("b".into()).await.unwrap();
    assert_eq!(next(&mut stream).await.unwrap().unwrap(), "b");
    assert!(first_one.process.try_wait().unwrap().is_none());
    drop(messages);
    assert_eq!(next(&mut stream).await.unwrap(), None, "it ends well");
    drop((client, stream));
    assert_eq!(first_one.ends().await, Some(0));
    assert!(site.path("gateway.sock").exists(), "it is the successor's");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_successor_fails_the_old_one_goes_on() {
    let site = Site::open();
    let served_by = Worker::start().await;
    site.discovery
        .up(worker("digits", 0, 1), &served_by.address, false);
    let mut serving = site.start();
    served(&site.address).await;

    // One that is killed when it has the sockets, and is not ready: it hears nothing of discovery.
    site.configure("nowhere.sock");
    let mut successor = site.start();
    successor.says("Gateway serves").await;
    successor.process.kill().await.unwrap();
    serving.says("did not take over").await;

    // One that speaks something else.
    let mut stranger = UnixStream::connect(site.path("handover.sock"))
        .await
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stranger, b"GET / HTTP/1.1\r\n\r\n")
        .await
        .unwrap();
    served(&site.address).await;
    over_socket(&site.path("gateway.sock")).await;

    site.configure("discovery.sock");
    let mut next = site.start();
    next.says("Took over").await;
    assert_eq!(serving.ends().await, Some(0));
    served(&site.address).await;
    over_socket(&site.path("gateway.sock")).await;
}

/// Makes a call over a unix socket.
async fn over_socket(path: &Path) {
    let address = format!("unix:{}", path.display());
    let channel = tether_kit::channel::connect(&address.parse().expect("it is an address"));
    let answer = Client::over(channel).unary(UNARY, DIGITS, "").await;
    assert_eq!(answer.err().map(|status| status.code()), None::<Code>);
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_that_hold_go_with_the_sockets() {
    let site = Site::open();
    let workers = [Worker::start().await, Worker::start().await];
    for (slot, echo) in (0..).zip(&workers) {
        site.discovery
            .up(worker("digits", slot, 1), &echo.address, false);
    }
    let mut first = site.start();
    served(&site.address).await;
    let address = format!("unix:{}", site.path("gateway-control.sock").display());
    let address = address.parse().expect("it is an address");
    let control = || ControlServiceClient::new(tether_kit::channel::connect(&address));
    let standing = async || {
        let all = control().snapshot(SnapshotRequest::default()).await;
        all.unwrap().into_inner().orders
    };
    let reason = Some(Order {
        request_id: String::new(),
        reason: "a test".to_owned(),
    });
    let eject = EjectRequest {
        order: reason.clone(),
        worker: Some(worker("digits", 0, 1)),
        ttl_ms: 600_000,
    };
    control().eject(eject).await.unwrap();
    let pin = PinRequest {
        order: reason.clone(),
        key: "session-42".to_owned(),
        worker: Some(worker("digits", 1, 1)),
    };
    control().pin(pin).await.unwrap();
    let limits = SetLimitsRequest {
        order: reason,
        limits: Some(Limits {
            of: Some(limits::Of::Queue(QueueLimits {
                pool: "digits".to_owned(),
                max_calls: Some(5),
                max_wait_ms: None,
            })),
        }),
        ttl_ms: 0,
    };
    control().set_limits(limits).await.unwrap();
    let before = standing().await;
    assert_eq!(before.len(), 3);

    let mut second = site.start();
    second.says("Took over").await;
    assert_eq!(first.ends().await, Some(0));

    assert_eq!(standing().await, before);
    let asked = workers[0].calls();
    let client = Client::connect(&site.address).await;
    for _ in 0..10 {
        client.unary(UNARY, DIGITS, "").await.unwrap();
    }
    assert_eq!(workers[0].calls(), asked, "it is left alone there, too");
}
