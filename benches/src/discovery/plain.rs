//! etcd's own watch, as a gateway would use it that asks etcd itself.

use std::time::Instant;

use anyhow::Context as _;
use etcd_client::{Client, GetOptions, WatchOptions, WatchStream};
use prost::Message as _;
use tether_proto::common::Endpoint;
use tokio::sync::watch;

use super::{
    Asked,
    watched::{Seen, Watchers, enough, late},
};
use crate::{cpu_time_of_threads, etcd::Etcd};

/// Where endpoints are in a store without a name of its own.
const PREFIX: &str = "/tether/v1/serve/";

/// Reads of all, one after the other.
const READS: u32 = 20;

/// Reads all there is, on a connection of its own each time: what that takes, and how many bytes it is.
pub(super) async fn snapshots(etcd: &Etcd) -> anyhow::Result<(Asked, usize)> {
    let (before, began) = (cpu_time_of_threads(etcd.pid())?, Instant::now());
    let mut bytes = 0;
    for _ in 0..READS {
        let mut client = Client::connect([etcd.url()], None).await?;
        let options = GetOptions::new().with_prefix();
        let all = client.get(PREFIX, Some(options)).await?;
        anyhow::ensure!(!all.kvs().is_empty(), "nothing is under `{PREFIX}` in etcd");
        bytes = all
            .kvs()
            .iter()
            .map(|kv| kv.key().len() + kv.value().len())
            .sum();
        for kv in all.kvs() {
            let _ = Endpoint::decode(kv.value());
        }
    }
    let cpu = cpu_time_of_threads(etcd.pid())?.saturating_sub(before);
    let asked = Asked {
        seconds: began.elapsed().as_secs_f64() / f64::from(READS),
        cpu: cpu.as_secs_f64() / f64::from(READS),
    };
    Ok((asked, bytes))
}

/// So many watchers, each on a connection of its own.
pub(super) async fn watch(etcd: &Etcd, watchers: usize) -> anyhow::Result<Watchers> {
    let wanted = watch::Sender::new(None);
    let mut tasks = Vec::new();
    for _ in 0..watchers {
        let mut client = Client::connect([etcd.url()], None).await?;
        let options = WatchOptions::new().with_prefix();
        let stream = client.watch(PREFIX, Some(options)).await?;
        tasks.push(tokio::spawn(follow(client, stream, wanted.subscribe())));
    }
    Ok(Watchers { wanted, tasks })
}

async fn follow(
    _client: Client,
    mut stream: WatchStream,
    mut wanted: watch::Receiver<Option<usize>>,
) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let over = late(wanted.clone());
    tokio::pin!(over);
    loop {
        tokio::select! {
            message = stream.message() => {
                let message = message?.context("the watch ended")?;
                for kv in message.events().iter().filter_map(|event| event.kv()) {
                    if let Ok(endpoint) = Endpoint::decode(kv.value()) {
                        seen.note(&endpoint.zone);
                    }
                }
            }
            () = enough(&mut wanted, seen.0.len()) => return Ok(seen),
            () = &mut over => return Ok(seen),
        }
    }
}
