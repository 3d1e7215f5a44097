//! Follows discovery: a snapshot, then changes, resumed where they broke off.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use tether_endpoints::{Ages, Endpoint, Removal, Standing, Update};
use tether_proto::{
    common::{Endpoint as Told, EndpointHealth, WorkerRef},
    discovery::{
        WatchEndpointsRequest, WatchEndpointsResponse,
        discovery_service_client::DiscoveryServiceClient,
    },
};
use tether_types::{Address, NodeName, PoolName, WorkerId};
use tonic::transport::{Channel, Endpoint as Server};

use crate::directory::{Directory, Extent};

/// A service whose machine is gone is noticed after this long.
const PING: Duration = Duration::from_secs(5);

/// The protocol of endpoints that only take TLS.
const TLS: &str = "grpcs";

/// How a gateway takes what it is told.
#[derive(Debug, Default)]
pub(crate) struct Terms {
    /// Where it is.
    pub(crate) zone: String,
    /// Whether it speaks TLS to workers.
    pub(crate) tls: bool,
}

/// The last thing discovery said.
#[derive(Debug, Default)]
struct Position {
    instance: String,
    revision: u64,
}

/// Follows discovery for ever. While it is away, the last set known goes on to serve.
pub(crate) async fn follow(
    discovery: Address,
    connect_timeout: Duration,
    terms: Terms,
    directory: Arc<Directory>,
) {
    let delays = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times()
        .with_jitter();
    let mut position = Position::default();
    let mut delay = delays.build();
    let mut told = false;
    loop {
        let before = position.revision;
        let end = watch(
            &discovery,
            connect_timeout,
            &terms,
            &directory,
            &mut position,
        )
        .await;
        directory.on_silence();
        if position.revision != before {
            delay = delays.build();
            told = false;
        }
        if !told {
            tracing::warn!(%discovery, error = format!("{end:#}"), "Discovery is away, its last word stands");
            told = true;
        }
        tokio::time::sleep(delay.next().unwrap_or(PING)).await;
    }
}

/// Follows one stream until it breaks; answers why it did.
async fn watch(
    discovery: &Address,
    connect_timeout: Duration,
    terms: &Terms,
    directory: &Directory,
    position: &mut Position,
) -> anyhow::Error {
    let outcome = async {
        let channel = connect(discovery, connect_timeout).await?;
        // A snapshot is as large as what there is to tell: one that was refused would be told again, for ever.
        let mut client = DiscoveryServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        let request = WatchEndpointsRequest {
            pool: String::new(),
            resume_instance: position.instance.clone(),
            resume_revision: position.revision,
        };
        let mut stream = client.watch_endpoints(request).await?.into_inner();
        tracing::info!(%discovery, "Following discovery");
        while let Some(word) = stream.message().await? {
            take_in(directory, terms, position, word)?;
        }
        bail!("discovery ended the stream")
    };
    match outcome.await {
        Ok(never) => never,
        Err(error) => error,
    }
}

/// A connection that notices when the machine at its other end is gone.
pub(crate) async fn connect(address: &Address, timeout: Duration) -> anyhow::Result<Channel> {
    let uri = match address {
        // It only fills the `:authority` header.
        Address::Unix(_) => "http://localhost".to_owned(),
        Address::Tcp { .. } => format!("http://{address}"),
    };
    let server = Server::from_shared(uri)?
        .connect_timeout(timeout)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true);
    Ok(tether_kit::channel::connect_as(server, address).await?)
}

fn take_in(
    directory: &Directory,
    terms: &Terms,
    position: &mut Position,
    word: WatchEndpointsResponse,
) -> anyhow::Result<()> {
    let extent = match word.snapshot {
        true => Extent::Snapshot,
        false => Extent::Change,
    };
    if extent == Extent::Change && word.instance != position.instance {
        // Its changes are to a set this gateway has never seen, so ask for all of it.
        *position = Position::default();
        bail!("another life of discovery told a change before a snapshot");
    }
    directory.apply(extent, update(&word, terms), ages(&word));
    directory.agents.find(&word.upserts);
    *position = Position {
        instance: word.instance,
        revision: word.revision,
    };
    Ok(())
}

/// Reads what was told. What cannot be read is left out and reported: one bad endpoint must not
/// keep all others from being known.
fn update(word: &WatchEndpointsResponse, terms: &Terms) -> Update {
    let (tls, plain): (Vec<&Told>, Vec<&Told>) = word
        .upserts
        .iter()
        .partition(|endpoint| endpoint.protocol == TLS && !terms.tls);
    if let Some(one) = tls.first() {
        let pool = one.worker.as_ref().map_or("", |worker| &worker.pool);
        tracing::warn!(
            count = tls.len(),
            pool,
            address = one.address,
            "Endpoints that are to be spoken to with TLS get no calls: `gateway.worker_tls` is not set here"
        );
    }
    let upserts = plain.into_iter().map(|endpoint| {
        Ok(Endpoint {
            worker: worker(endpoint.worker.as_ref())?,
            address: endpoint.address.parse()?,
            tls: endpoint.protocol == TLS,
            node: NodeName::new(&endpoint.node).ok(),
            draining: endpoint.draining,
            counted: endpoint.count_calls,
            unordered: endpoint.node.is_empty(),
            capacity: NonZeroU32::new(endpoint.capacity),
            weight: endpoint.weight,
            standing: standing(endpoint, &terms.zone),
        })
    });
    let removals = word.removals.iter().map(|removal| {
        Ok(Removal {
            worker: worker(removal.worker.as_ref())?,
            death: removal.death.as_ref().map(Into::into),
        })
    });
    // One that was known without is another from here on.
    let left_out = tls.into_iter().map(|endpoint| {
        Ok(Removal {
            worker: worker(endpoint.worker.as_ref())?,
            death: None,
        })
    });
    let names = |names: &[String]| -> Vec<PoolName> {
        readable(names.iter().map(|name| Ok(PoolName::new(name)?)))
    };
    Update {
        upserts: readable(upserts),
        removals: readable(removals.chain(left_out)),
        pools: names(&word.pools),
        removed_pools: names(&word.removed_pools),
        unheard: names(&word.unheard_pools),
        heard: names(&word.heard_pools),
    }
}

fn ages(word: &WatchEndpointsResponse) -> Ages {
    let pools = word.pool_ages.iter();
    let pools = pools.map(|known| {
        let age = Duration::from_millis(known.age_ms);
        Ok((PoolName::new(&known.pool)?, age))
    });
    Ages {
        store: Duration::from_millis(word.source_age_ms),
        pools: readable(pools).into_iter().collect(),
    }
}

/// How gladly an endpoint is given calls by a gateway in `zone`.
fn standing(endpoint: &Told, zone: &str) -> Standing {
    let is_elsewhere = !zone.is_empty() && !endpoint.zone.is_empty() && endpoint.zone != zone;
    match endpoint.health() {
        EndpointHealth::Unspecified | EndpointHealth::Passing if is_elsewhere => Standing::Far,
        EndpointHealth::Unspecified | EndpointHealth::Passing => Standing::Near,
        EndpointHealth::Unchecked | EndpointHealth::Held | EndpointHealth::Failing => {
            Standing::Doubtful
        }
    }
}

fn worker(field: Option<&WorkerRef>) -> anyhow::Result<WorkerId> {
    WorkerRef::required(field).context("the worker is not one")
}

fn readable<T>(items: impl Iterator<Item = anyhow::Result<T>>) -> Vec<T> {
    items
        .filter_map(|item| {
            item.inspect_err(|error| {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "Discovery told something unreadable"
                );
            })
            .ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_wants_tls_is_left_out_where_the_gateway_speaks_none() {
        let told = |slot, protocol: &str| Told {
            worker: Some(WorkerRef {
                pool: "train".to_owned(),
                slot,
                incarnation: 1,
            }),
            address: format!("10.0.0.1:{}", 7_000 + slot),
            protocol: protocol.to_owned(),
            ..Told::default()
        };
        let word = WatchEndpointsResponse {
            upserts: vec![told(0, ""), told(1, "grpc"), told(2, "grpcs")],
            ..WatchEndpointsResponse::default()
        };

        let with = Terms {
            tls: true,
            ..Terms::default()
        };
        let all = update(&word, &with).upserts;
        let tls: Vec<bool> = all.iter().map(|endpoint| endpoint.tls).collect();
        assert_eq!(tls, [false, false, true]);
        let update = update(&word, &Terms::default());

        let slots = |workers: &mut dyn Iterator<Item = &WorkerId>| -> Vec<u32> {
            workers.map(|worker| worker.slot).collect()
        };
        assert_eq!(
            slots(&mut update.upserts.iter().map(|up| &up.worker)),
            [0, 1]
        );
        assert_eq!(
            slots(&mut update.removals.iter().map(|gone| &gone.worker)),
            [2]
        );
    }
}
