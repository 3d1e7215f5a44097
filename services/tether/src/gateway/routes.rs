//! `tether gateway routes` and `tether gateway orders`: workers as one gateway sees them, and what it was told to do.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use tether_client::Problem;
use tether_proto::{
    common::WorkerRef,
    gateway::{
        BreakerState, GatewayState, PoolRoute, RouteState, SnapshotRequest, StandingOrder,
        WatchRoutesRequest, WatchRoutesResponse, WorkerRoute, drain_scope, limits, standing_order,
    },
};
use tokio::time::sleep;

use super::Control;
use crate::{
    cli,
    output::{Output, Row, worker_name},
    run::{delays, may_pass},
};
use backon::BackoffBuilder as _;

/// A worker as a gateway sees it, or one that is gone.
#[derive(Debug, Serialize)]
struct RouteRow {
    /// What became of it; nothing in a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<&'static str>,
    worker: String,
    state: &'static str,
    under_way: u32,
    capacity: u32,
    breaker: &'static str,
    /// That of its pool, where it has one; only in a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pool_breaker: Option<&'static str>,
    trips: u32,
    node: String,
    address: String,
}

impl RouteRow {
    fn new(route: &WorkerRoute, change: Option<&'static str>) -> Self {
        Self {
            change,
            worker: worker_name(route.worker.as_ref()),
            state: state(route),
            under_way: route.under_way,
            capacity: route.capacity,
            breaker: breaker(route.breaker()),
            pool_breaker: None,
            trips: route.trips,
            node: route.node.clone(),
            address: route.address.clone(),
        }
    }

    fn gone(worker: &WorkerRef) -> Self {
        Self {
            change: Some("gone"),
            worker: worker_name(Some(worker)),
            state: "gone",
            under_way: 0,
            capacity: 0,
            breaker: "unknown",
            pool_breaker: None,
            trips: 0,
            node: String::new(),
            address: String::new(),
        }
    }
}

impl Row for RouteRow {
    const HEAD: &'static [&'static str] =
        &["WORKER", "STATE", "UNDER WAY", "BREAKER", "NODE", "ADDRESS"];

    fn cells(&self) -> Vec<String> {
        let dash = |text: &str| match text {
            "" => "-".to_owned(),
            text => text.to_owned(),
        };
        let cells = [
            self.worker.clone(),
            self.state.to_owned(),
            share(self.under_way, self.capacity),
            match self.pool_breaker {
                None | Some("closed") => self.breaker.to_owned(),
                Some(of_pool) => format!("pool {of_pool}"),
            },
            dash(&self.node),
            dash(&self.address),
        ];
        let change = self.change.map(str::to_owned);
        change.into_iter().chain(cells).collect()
    }
}

/// Whether a worker is given calls, in a word.
pub(super) fn state(route: &WorkerRoute) -> &'static str {
    match route.state() {
        RouteState::Unspecified => "unknown",
        RouteState::Ready => "ready",
        RouteState::Draining => "draining",
        RouteState::Ejected => "ejected",
        RouteState::Doubtful => "doubtful",
        RouteState::Lapsed => "lapsed",
        RouteState::Slow => "slow",
    }
}

fn breaker(state: BreakerState) -> &'static str {
    match state {
        BreakerState::Unspecified => "unknown",
        BreakerState::Closed => "closed",
        BreakerState::Open => "open",
        BreakerState::HalfOpen => "half-open",
    }
}

/// The breaker of a worker's pool, where that has one.
fn pool_breaker(pools: &[PoolRoute], of: &WorkerRoute) -> Option<&'static str> {
    let name = &of.worker.as_ref()?.pool;
    let pool = pools.iter().find(|pool| pool.pool == *name)?;
    let state = pool.breaker();
    (state != BreakerState::Unspecified).then(|| breaker(state))
}

/// Calls under way, of as many as a worker serves at once.
pub(super) fn share(under_way: u32, capacity: u32) -> String {
    match capacity {
        0 => under_way.to_string(),
        capacity => format!("{under_way}/{capacity}"),
    }
}

pub(super) async fn routes(
    mut control: Control,
    args: cli::gateway::Routes,
    out: &Output,
) -> anyhow::Result<()> {
    let pool = args.pool.unwrap_or_default();
    if args.watch {
        return watch(control, pool, out).await;
    }
    let request = SnapshotRequest { pool };
    let answer = control.snapshot(request).await.map_err(Problem::from)?;
    let all = answer.into_inner().routes.unwrap_or_default();
    tell_pools(&all, out);
    let rows = all.workers.iter().map(|route| RouteRow {
        pool_breaker: pool_breaker(&all.pools, route),
        ..RouteRow::new(route, None)
    });
    out.list(&rows.collect::<Vec<_>>())
}

/// Tells each change, over restarts of the gateway too.
async fn watch(mut control: Control, pool: String, out: &Output) -> anyhow::Result<()> {
    let mut request = WatchRoutesRequest {
        pool,
        ..WatchRoutesRequest::default()
    };
    let mut pauses = delays().build();
    let mut is_away = false;
    loop {
        let why = match follow(&mut control, &mut request, &mut is_away, out).await {
            Ok(()) => "it ended the watch".to_owned(),
            Err(error) => match error.downcast_ref::<Problem>() {
                // One that was never there is most likely not where we look.
                Some(problem)
                    if may_pass(problem.reason, problem.code) && request.resume_revision > 0 =>
                {
                    problem.to_string()
                }
                _ => return Err(error),
            },
        };
        if !is_away {
            out.note(&format!("the gateway is away: {why}"));
            is_away = true;
            pauses = delays().build();
        }
        if let Some(pause) = pauses.next() {
            sleep(pause).await;
        }
    }
}

async fn follow(
    control: &mut Control,
    request: &mut WatchRoutesRequest,
    is_away: &mut bool,
    out: &Output,
) -> anyhow::Result<()> {
    let words = control.watch_routes(request.clone()).await;
    let mut words = words.map_err(Problem::from)?.into_inner();
    while let Some(word) = words.message().await.map_err(Problem::from)? {
        if std::mem::take(is_away) {
            out.note("the gateway is back");
        }
        let change = if word.snapshot { "is" } else { "changed" };
        for worker in &word.removed_workers {
            out.item(&RouteRow::gone(worker))?;
        }
        for route in &word.workers {
            out.item(&RouteRow::new(route, Some(change)))?;
        }
        for pool in &word.removed_pools {
            out.note(&format!("pool `{pool}` is no more"));
        }
        tell_pools(&word, out);
        request.resume_instance.clone_from(&word.instance);
        request.resume_revision = word.revision;
    }
    Ok(())
}

/// Tells of pools what is worth a word.
fn tell_pools(word: &WatchRoutesResponse, out: &Output) {
    if word.state() == GatewayState::Draining {
        out.note("this gateway is about to end, and takes no new calls");
    }
    for pool in &word.pools {
        let name = &pool.pool;
        if pool.queued > 0 {
            let (queued, most) = (pool.queued, pool.max_calls);
            out.note(&format!("{queued} calls of pool `{name}` wait, {most} may"));
        }
        if pool.drained {
            out.note(&format!("pool `{name}` is drained by order"));
        }
        if let state @ (BreakerState::Open | BreakerState::HalfOpen) = pool.breaker() {
            let state = breaker(state);
            out.note(&format!("the breaker of pool `{name}` is {state}"));
        }
    }
}

/// An order that holds.
#[derive(Debug, Serialize)]
struct OrderRow {
    order: &'static str,
    whom: String,
    value: String,
    until_unix_ms: u64,
    by: String,
    reason: String,
}

impl OrderRow {
    fn new(standing: &StandingOrder) -> Self {
        let (order, whom, value) = what(standing);
        Self {
            order,
            whom,
            value,
            until_unix_ms: standing.until_unix_ms,
            by: standing.by.clone(),
            reason: standing.reason.clone(),
        }
    }
}

fn what(standing: &StandingOrder) -> (&'static str, String, String) {
    use standing_order::Order;
    match &standing.order {
        None => ("unknown", String::new(), String::new()),
        Some(Order::Drained(scope)) => {
            let whom = match &scope.scope {
                None => String::new(),
                Some(drain_scope::Scope::Worker(worker)) => worker_name(Some(worker)),
                Some(drain_scope::Scope::Node(node)) => format!("node {node}"),
                Some(drain_scope::Scope::Pool(pool)) => format!("pool {pool}"),
            };
            ("drain", whom, String::new())
        }
        Some(Order::Ejected(worker)) => ("eject", worker_name(Some(worker)), String::new()),
        Some(Order::Pinned(pinned)) => {
            let whom = worker_name(pinned.worker.as_ref());
            ("pin", whom, pinned.key.clone())
        }
        Some(Order::Limits(limits)) => match &limits.of {
            None => ("limits", String::new(), String::new()),
            Some(limits::Of::Queue(queue)) => {
                let most = queue.max_calls.map(|most| format!("max_calls {most}"));
                let wait = queue.max_wait_ms.map(Duration::from_millis);
                let wait = wait.map(|wait| format!("max_wait {wait:?}"));
                let both: Vec<_> = most.into_iter().chain(wait).collect();
                ("limits", format!("pool {}", queue.pool), both.join(", "))
            }
            Some(limits::Of::Worker(limit)) => {
                let value = format!("capacity {}", limit.capacity.unwrap_or_default());
                ("limits", worker_name(limit.worker.as_ref()), value)
            }
        },
    }
}

impl Row for OrderRow {
    const HEAD: &'static [&'static str] = &["ORDER", "WHOM", "WHAT", "UNTIL", "BY", "REASON"];

    fn cells(&self) -> Vec<String> {
        let dash = |text: &str| match text {
            "" => "-".to_owned(),
            text => text.to_owned(),
        };
        let until = match self.until_unix_ms {
            0 => "-".to_owned(),
            ms => {
                let at = SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
                humantime::format_rfc3339_seconds(at).to_string()
            }
        };
        vec![
            self.order.to_owned(),
            self.whom.clone(),
            dash(&self.value),
            until,
            self.by.clone(),
            dash(&self.reason),
        ]
    }
}

pub(super) async fn orders(mut control: Control, out: &Output) -> anyhow::Result<()> {
    let answer = control.snapshot(SnapshotRequest::default()).await;
    let orders = answer.map_err(Problem::from)?.into_inner().orders;
    out.list(&orders.iter().map(OrderRow::new).collect::<Vec<_>>())
}
