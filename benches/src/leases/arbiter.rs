//! The arbiter under measurement: a process of its own, spoken to as everybody does.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tether_proto::{
    pool::{
        ApplyPoolRequest, GetPoolRequest, ListPoolsRequest, PoolSpec, Template,
        pool_service_client::PoolServiceClient,
    },
    worker::{Event, WatchEventsRequest, worker_service_client::WorkerServiceClient},
};
use tether_types::Address;
use tokio::time::sleep;
use tonic::{Streaming, transport::Channel};

use super::{BEAT, TTL};
use crate::{
    cpu_time_of_threads,
    etcd::Etcd,
    ground::Ground,
    net::{free_port, local},
    resident_bytes,
};

/// Most workers of one pool.
const POOL_MAX: usize = 10_000;

/// Longest time for a pool to be filled.
const PATIENCE: Duration = Duration::from_secs(300);

/// A running arbiter.
#[derive(Debug)]
pub(super) struct Arbiter {
    child: Child,
    /// Where its state is, where that is a process of its own.
    store: Option<Etcd>,
    address: Address,
    channel: Channel,
}

impl Arbiter {
    /// Starts one with nothing in its store, which for `etcd:` is an etcd of its own.
    pub(super) async fn start(
        ground: &Ground,
        program: &Path,
        store: &str,
        etcd: Result<&Path, &String>,
    ) -> anyhow::Result<Self> {
        let dir = ground.fresh("arbiter")?;
        let (url, store) = match store {
            "memory:" => (store.to_owned(), None),
            "etcd:" => {
                let program = etcd.map_err(|why| anyhow::anyhow!("{why}"))?;
                let etcd = Etcd::start(ground, program).await?;
                (etcd.store(), Some(etcd))
            }
            scheme => (
                format!("{scheme}{}", dir.join("store.redb").display()),
                None,
            ),
        };
        let address = local(free_port()?);
        let log = std::fs::File::create(ground.dir().join("arbiter.log"))?;
        let mut command = Command::new(program);
        let sets = [
            format!("store=\"{url}\""),
            format!("listen.arbiter=[\"{address}\"]"),
            format!("listen.runtime_dir=\"{}\"", dir.display()),
            format!("lease.node_beat=\"{}s\"", BEAT.as_secs()),
            format!("lease.node_ttl=\"{}s\"", TTL.as_secs()),
        ];
        for set in sets {
            command.args(["--set", &set]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?);
        let child = ground.start(command.stderr(log))?;
        let channel = tether_kit::channel::connect(&address);
        let arbiter = Self {
            child,
            store,
            address,
            channel,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = arbiter.ready().await {
            anyhow::ensure!(Instant::now() < deadline, "no answer: {error:#}");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(arbiter)
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn resident(&self) -> anyhow::Result<u64> {
        Ok(resident_bytes(self.pid())?)
    }

    /// What its store takes, where that is a process of its own.
    pub(super) fn store_resident(&self) -> Option<anyhow::Result<u64>> {
        self.store.as_ref().map(Etcd::resident)
    }

    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        Ok(cpu_time_of_threads(self.pid())?)
    }

    fn pools(&self) -> PoolServiceClient<Channel> {
        PoolServiceClient::new(self.channel.clone())
    }

    /// How many workers are ready in all pools.
    pub(super) async fn ready(&self) -> anyhow::Result<usize> {
        let pools = self.pools().list_pools(ListPoolsRequest::default()).await?;
        let ready = pools
            .into_inner()
            .pools
            .iter()
            .map(|pool| pool.ready)
            .sum::<u32>();
        Ok(usize::try_from(ready)?)
    }

    /// Has so many workers started, one pool after the other so that beats are answered meanwhile.
    pub(super) async fn fill(&self, workers: usize) -> anyhow::Result<()> {
        for (number, first) in (0..workers).step_by(POOL_MAX).enumerate() {
            let size = u32::try_from(POOL_MAX.min(workers - first))?;
            let name = format!("pool-{number:03}");
            let spec = PoolSpec {
                name: name.clone(),
                mode: "distributed".to_owned(),
                size,
                template: Some(Template {
                    command: "work".to_owned(),
                    ..Template::default()
                }),
                ..PoolSpec::default()
            };
            let apply = ApplyPoolRequest {
                pool: Some(spec),
                owner: "bench".to_owned(),
                epoch: 0,
            };
            self.pools().apply_pool(apply).await?;
            let deadline = Instant::now() + PATIENCE;
            loop {
                let name = name.clone();
                let pool = self.pools().get_pool(GetPoolRequest { name }).await?;
                let ready = pool.into_inner().pool.map_or(0, |pool| pool.ready);
                if ready == size {
                    break;
                }
                let late = Instant::now() >= deadline;
                anyhow::ensure!(
                    !late,
                    "{ready} of {size} workers of pool `{number}` are ready"
                );
                sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// What happens from here on.
    pub(super) async fn events(
        &self,
    ) -> anyhow::Result<(Streaming<tether_proto::worker::WatchEventsResponse>, u64)> {
        let mut client = WorkerServiceClient::new(self.channel.clone());
        let kept = WatchEventsRequest::default();
        let mut kept = client.watch_events(kept).await?.into_inner();
        let mut newest = 0;
        while let Some(event) = kept.message().await? {
            newest = event.event.map_or(newest, |event: Event| event.revision);
        }
        let on = WatchEventsRequest {
            after_revision: newest,
            follow: true,
            ..WatchEventsRequest::default()
        };
        let stream = client
            .watch_events(on)
            .await
            .context("cannot watch events")?;
        Ok((stream.into_inner(), newest))
    }
}

impl Drop for Arbiter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
