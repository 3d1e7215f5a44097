//! The discovery service under measurement: a process of its own.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use prost::Message as _;
use tether_proto::discovery::{
    WatchEndpointsRequest, WatchEndpointsResponse, discovery_service_client::DiscoveryServiceClient,
};
use tether_types::Address;
use tokio::{sync::watch, time::sleep};
use tonic::Streaming;

use super::{
    Asked,
    watched::{Seen, Watchers, enough, late},
};
use crate::{
    cpu_time_of_threads,
    etcd::Etcd,
    ground::Ground,
    net::{free_port, local},
    resident_bytes,
};

/// Snapshots that are asked for, one after the other.
const SNAPSHOTS: u32 = 20;

pub(super) struct Discovery {
    child: Child,
    address: Address,
}

impl Drop for Discovery {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Discovery {
    pub(super) async fn start(
        ground: &Ground,
        program: &Path,
        etcd: &Etcd,
    ) -> anyhow::Result<Self> {
        let dir = ground.fresh("discovery")?;
        let address = local(free_port()?);
        let log = std::fs::File::create(ground.dir().join("discovery.log"))?;
        let mut command = Command::new(program);
        let sets = [
            format!("store=\"{}\"", etcd.store()),
            format!("listen.discovery=[\"{address}\"]"),
            format!("listen.runtime_dir=\"{}\"", dir.display()),
        ];
        for set in sets {
            command.args(["--set", &set]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?);
        let child = ground.start(command.stderr(log))?;
        let discovery = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = discovery.open().await {
            anyhow::ensure!(Instant::now() < deadline, "no answer: {error:#}");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(discovery)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn resident(&self) -> anyhow::Result<u64> {
        Ok(resident_bytes(self.pid())?)
    }

    /// A watch on a connection of its own, and its snapshot.
    async fn open(
        &self,
    ) -> anyhow::Result<(Streaming<WatchEndpointsResponse>, WatchEndpointsResponse)> {
        let channel = tether_kit::channel::connect(&self.address);
        let mut client = DiscoveryServiceClient::new(channel).max_decoding_message_size(1 << 28);
        let request = WatchEndpointsRequest::default();
        let mut stream = client.watch_endpoints(request).await?.into_inner();
        let first = stream.message().await?.context("the watch ended")?;
        Ok((stream, first))
    }

    /// Waits until it knows so many endpoints; what it has in memory then, in bytes.
    pub(super) async fn filled(&self, endpoints: usize) -> anyhow::Result<u64> {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.open().await?.1.upserts.len() < endpoints {
            anyhow::ensure!(Instant::now() < deadline, "it never knows all endpoints");
            sleep(Duration::from_millis(200)).await;
        }
        self.resident()
    }

    /// Snapshots, one after the other: what each takes, and how large it is.
    pub(super) async fn snapshots(&self) -> anyhow::Result<(Asked, usize)> {
        let (before, began) = (cpu_time_of_threads(self.pid())?, Instant::now());
        let mut bytes = 0;
        for _ in 0..SNAPSHOTS {
            bytes = self.open().await?.1.encoded_len();
        }
        let cpu = cpu_time_of_threads(self.pid())?.saturating_sub(before);
        let asked = Asked {
            seconds: began.elapsed().as_secs_f64() / f64::from(SNAPSHOTS),
            cpu: cpu.as_secs_f64() / f64::from(SNAPSHOTS),
        };
        Ok((asked, bytes))
    }

    /// So many watchers, each with its snapshot.
    pub(super) async fn watch(&self, watchers: usize) -> anyhow::Result<Watchers> {
        let wanted = watch::Sender::new(None);
        let mut tasks = Vec::new();
        for _ in 0..watchers {
            let (stream, _) = self.open().await?;
            tasks.push(tokio::spawn(follow(stream, wanted.subscribe())));
        }
        Ok(Watchers { wanted, tasks })
    }
}

async fn follow(
    mut stream: Streaming<WatchEndpointsResponse>,
    mut wanted: watch::Receiver<Option<usize>>,
) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let over = late(wanted.clone());
    tokio::pin!(over);
    loop {
        tokio::select! {
            message = stream.message() => {
                let message = message?.context("the watch ended")?;
                for endpoint in &message.upserts {
                    seen.note(&endpoint.zone);
                }
            }
            () = enough(&mut wanted, seen.0.len()) => return Ok(seen),
            () = &mut over => return Ok(seen),
        }
    }
}
