//! `tether endpoints` and `tether discover`: who serves a pool, as gateways hear it.

mod following;

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use tether_client::Client;
use tether_proto::{
    common::{Endpoint, EndpointHealth, WorkerRef},
    discovery::{EndpointRemoval, WatchEndpointsResponse},
};

use following::Following;

use crate::{
    cli,
    output::{Output, Row, cause},
};

/// An endpoint, or one that is gone.
#[derive(Debug, Serialize)]
struct EndpointRow {
    /// What became of it; nothing in a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<&'static str>,
    worker: String,
    incarnation: u64,
    address: String,
    state: &'static str,
    node: String,
    zone: String,
    weight: u32,
    capacity: u32,
    protocol: String,
    epoch: u64,
}

impl EndpointRow {
    fn new(endpoint: &Endpoint, change: Option<&'static str>) -> Self {
        let worker = endpoint.worker.clone().unwrap_or_default();
        let protocol = match endpoint.protocol.as_str() {
            "" => "grpc",
            known => known,
        };
        Self {
            change,
            worker: place(&worker),
            incarnation: worker.incarnation,
            address: endpoint.address.clone(),
            state: state(endpoint),
            node: endpoint.node.clone(),
            zone: endpoint.zone.clone(),
            weight: endpoint.weight.max(1),
            capacity: endpoint.capacity,
            protocol: protocol.to_owned(),
            epoch: endpoint.epoch,
        }
    }

    fn gone(removal: &EndpointRemoval) -> Self {
        let worker = removal.worker.clone().unwrap_or_default();
        Self {
            change: Some("gone"),
            worker: place(&worker),
            incarnation: worker.incarnation,
            address: String::new(),
            state: removal.death.as_ref().map_or("left", cause),
            node: String::new(),
            zone: String::new(),
            weight: 0,
            capacity: 0,
            protocol: String::new(),
            epoch: 0,
        }
    }
}

impl Row for EndpointRow {
    const HEAD: &'static [&'static str] = &[
        "WORKER", "ADDRESS", "STATE", "NODE", "ZONE", "WEIGHT", "CAPACITY", "PROTOCOL",
    ];

    fn cells(&self) -> Vec<String> {
        let known = |text: &str| match text {
            "" => "-".to_owned(),
            text => text.to_owned(),
        };
        let count = |count: u32| match count {
            0 => "-".to_owned(),
            count => count.to_string(),
        };
        let cells = [
            self.worker.clone(),
            known(&self.address),
            self.state.to_owned(),
            known(&self.node),
            known(&self.zone),
            count(self.weight),
            count(self.capacity),
            known(&self.protocol),
        ];
        let change = self.change.map(str::to_owned);
        change.into_iter().chain(cells).collect()
    }
}

fn place(worker: &WorkerRef) -> String {
    format!("{}/{}", worker.pool, worker.slot)
}

fn state(endpoint: &Endpoint) -> &'static str {
    match endpoint.health() {
        _ if endpoint.draining => "draining",
        EndpointHealth::Unspecified => "serving",
        EndpointHealth::Passing => "passing",
        EndpointHealth::Unchecked => "unchecked",
        EndpointHealth::Held => "held",
        EndpointHealth::Failing => "failing",
    }
}

/// `tether endpoints`
pub(crate) async fn endpoints(
    client: &Client,
    args: &cli::Endpoints,
    out: &Output,
) -> anyhow::Result<()> {
    let pool = args.pool.as_deref().unwrap_or_default();
    let (first, _) = Following::begin(client, pool).await?;
    tell_ages(&first, out);
    tell_left_out(&first, out);
    tell_held(&first.upserts, out);
    list(&first, out)
}

/// `tether discover`
pub(crate) async fn discover(
    client: &Client,
    args: &cli::Discover,
    out: &Output,
) -> anyhow::Result<()> {
    let (first, mut following) = Following::begin(client, &args.pool).await?;
    if !first.pools.contains(&args.pool) && first.upserts.is_empty() {
        let pool = &args.pool;
        out.note(&format!(
            "discovery knows no pool `{pool}`: apply it, or name its source under `[discovery.pools.{pool}]`"
        ));
    }
    if first.unheard_pools.contains(&args.pool) {
        let pool = &args.pool;
        out.note(&format!(
            "no source of pool `{pool}` has said yet who serves it"
        ));
    }
    tell_ages(&first, out);
    tell_left_out(&first, out);
    if !args.watch {
        tell_held(&first.upserts, out);
        return list(&first, out);
    }
    let mut ages = first.clone();
    let mut word = first;
    loop {
        let change = if word.snapshot { "serves" } else { "changed" };
        for removal in &word.removals {
            out.item(&EndpointRow::gone(removal))?;
        }
        for endpoint in &word.upserts {
            out.item(&EndpointRow::new(endpoint, Some(change)))?;
        }
        tell_held(&word.upserts, out);
        for pool in &word.removed_pools {
            out.note(&format!("pool `{pool}` is no more"));
        }
        if is_away(&word) != is_away(&ages) {
            tell_ages(&word, out);
        }
        ages = word;
        word = following.next(out).await?;
    }
}

fn list(snapshot: &WatchEndpointsResponse, out: &Output) -> anyhow::Result<()> {
    let rows = snapshot.upserts.iter();
    let rows: Vec<_> = rows.map(|known| EndpointRow::new(known, None)).collect();
    out.list(&rows)
}

/// Tells why endpoints are there that no source names any more, and what ends that.
fn tell_held(endpoints: &[Endpoint], out: &Output) {
    let mut held: BTreeMap<&str, usize> = BTreeMap::new();
    for endpoint in endpoints {
        if let (EndpointHealth::Held, Some(worker)) = (endpoint.health(), &endpoint.worker) {
            *held.entry(&worker.pool).or_default() += 1;
        }
    }
    for (pool, count) in held {
        out.note(&format!(
            "{count} endpoints of pool `{pool}` are held: its source names them no more, together with too many others to be believed at once; they go after `discovery.pools.{pool}.hold`, or stay where it names them again"
        ));
    }
}

fn is_away(word: &WatchEndpointsResponse) -> (bool, Vec<&str>) {
    let pools = word.pool_ages.iter().map(|age| age.pool.as_str());
    (word.source_age_ms > 0, pools.collect())
}

/// Tells what sources name and nobody can call.
fn tell_left_out(word: &WatchEndpointsResponse, out: &Output) {
    for left_out in &word.left_out {
        let (pool, source, count) = (&left_out.pool, &left_out.source, left_out.count);
        let reasons = left_out.reasons.iter();
        let reasons: String = reasons.map(|why| format!("\n  {why}")).collect();
        out.note(&format!(
            "{count} entries of `{source}` are left out of pool `{pool}`, mend or delete them there; the first ones:{reasons}"
        ));
    }
}

/// Tells what is not known by now, and for how long.
fn tell_ages(word: &WatchEndpointsResponse, out: &Output) {
    let span = |millis| format!("{:.1?}", Duration::from_millis(millis));
    if word.source_age_ms > 0 {
        let age = span(word.source_age_ms);
        out.note(&format!(
            "discovery has not reached the store for {age}: this is what it knew then"
        ));
    }
    for age in &word.pool_ages {
        let (pool, why, age) = (&age.pool, &age.why, span(age.age_ms));
        out.note(&format!(
            "a source of pool `{pool}` has not answered for {age}, this is what it said last: {why}"
        ));
    }
}
