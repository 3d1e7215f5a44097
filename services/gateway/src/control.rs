//! What people on call and their tools ask of a gateway, on a listener of its own: that it can be reached has nothing to
//! do with how much the gateway has to do, and who may give orders nothing with who may make calls.
//!
//! ```text
//!   tether gateway ... --> control --orders--> directory (libs/endpoints decides)
//!                             |  <--moves------    |
//!                             +--> board: routes by revision
//!                             +--> tail: calls as they end
//! ```
//!
//! Every order is carried out once for each request id, and leaves a line in the log: who, what, why.

mod board;
mod drains;
mod dry_run;
mod orders;
mod receipts;

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt as _, stream};
use prost::Message;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_endpoints::Order as Ordered;
use tether_kit::listen::Peer;
use tether_proto::{
    Failure,
    gateway::{
        DrainRequest, DrainResponse, EjectRequest, EjectResponse, ExplainRequest, ExplainResponse,
        Order, PinRequest, PinResponse, RestoreRequest, RestoreResponse, SetLimitsRequest,
        SetLimitsResponse, SnapshotRequest, SnapshotResponse, StandingOrder, TailRequest,
        TailResponse, UndrainRequest, UndrainResponse, UnpinRequest, UnpinResponse,
        WatchRoutesRequest, WatchRoutesResponse,
        control_service_server::{ControlService, ControlServiceServer},
        standing_order,
    },
};
use tether_types::Reason;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::{
    forward::Forwarder,
    record::{Filter, unix_ms},
};

use board::Board;
use receipts::Receipts;

/// The longest that an order to leave a worker alone may last: one that outlives whoever gave it is forgotten.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Answers of one call that keep coming.
type Words<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The control of one gateway.
#[derive(Clone)]
pub(crate) struct Control(Arc<Inner>);

struct Inner {
    forwarder: Arc<Forwarder>,
    board: Mutex<Board>,
    /// Somebody has begun to watch routes.
    watched: Notify,
    receipts: Mutex<Receipts>,
    /// Orders as they were given, beside those that hold.
    given: Mutex<Vec<(Ordered, StandingOrder)>>,
    /// The gateway takes no new calls.
    drains: CancellationToken,
    /// It has ended, and so do watches.
    over: CancellationToken,
}

impl Control {
    pub(crate) fn new(
        forwarder: Arc<Forwarder>,
        drains: CancellationToken,
        over: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            forwarder,
            board: Mutex::default(),
            watched: Notify::new(),
            receipts: Mutex::default(),
            given: Mutex::default(),
            drains,
            over,
        }))
    }

    pub(crate) fn service(&self) -> ControlServiceServer<Self> {
        ControlServiceServer::new(self.clone())
            .max_decoding_message_size(tether_kit::serve::MESSAGE_LIMIT)
    }

    /// Ends orders when their time is over, for ever.
    pub(crate) async fn expire(self) {
        let directory = &self.0.forwarder.directory;
        loop {
            let mut ordered = directory.ordered.subscribe();
            let next = directory.next_order_deadline();
            let wait = next.map(|at| at.since(BootClock.now()));
            tokio::select! {
                // Fails only without a directory, and that is borrowed here.
                _ = ordered.changed() => {}
                () = tokio::time::sleep(wait.unwrap_or(LONGEST)) => {
                    if directory.check_orders() {
                        tracing::info!("An order to the gateway has run out");
                    }
                }
            }
        }
    }

    /// Carries an order out, unless it was before.
    fn once<Q, A>(
        &self,
        request: &Request<Q>,
        order: Option<&Order>,
        act: impl FnOnce(&Given) -> Result<A, Failure>,
    ) -> Result<A, Status>
    where
        Q: Message,
        A: Message + Default,
    {
        let given = Given::of(request, order);
        let mut receipts = lock(&self.0.receipts);
        if let Some(before) = receipts.find(&given.id, request.get_ref())? {
            return Ok(before);
        }
        let answer = act(&given)?;
        receipts.keep(&given.id, request.get_ref(), &answer);
        Ok(answer)
    }

    /// Gives an order to the directory, and notes it.
    fn give(&self, given: &Given, order: Ordered, until: Option<SystemTime>) -> bool {
        let changes = self.0.forwarder.directory.order(order.clone());
        let Given { id, reason, by } = given;
        let order_in_words = orders::in_words(&order);
        tracing::info!(
            by,
            request_id = id,
            order = order_in_words,
            reason,
            changes,
            "An order to the gateway"
        );
        let mut all = lock(&self.0.given);
        let known = self.0.forwarder.directory.lock();
        all.retain(|(other, _)| known.endpoints.stands(other) && !is_same(other, &order));
        if let Some(told) = orders::told(&order) {
            let standing = StandingOrder {
                order: Some(told),
                until_unix_ms: until.map_or(0, unix_ms),
                reason: reason.clone(),
                by: by.clone(),
            };
            all.push((order, standing));
        }
        changes
    }

    /// Carries out what holds in the process whose place this one takes.
    pub(crate) fn inherit(&self, orders: Vec<StandingOrder>) {
        for standing in orders {
            match self.read(&standing) {
                Ok((order, until)) => {
                    let given = Given {
                        id: String::new(),
                        reason: standing.reason,
                        by: standing.by,
                    };
                    self.give(&given, order, until);
                }
                Err(failure) => warn_of(&[standing], &failure.to_string()),
            }
        }
    }

    /// Orders that hold, as they were given.
    pub(crate) fn standing(&self) -> Vec<StandingOrder> {
        let all = lock(&self.0.given);
        let known = self.0.forwarder.directory.lock();
        let stand = all
            .iter()
            .filter(|(order, _)| known.endpoints.stands(order));
        stand.map(|(_, told)| told.clone()).collect()
    }

    fn until_over<T: Send + 'static>(
        &self,
        words: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Response<Words<T>> {
        let over = self.0.over.clone().cancelled_owned();
        Response::new(Box::pin(words.take_until(over)))
    }
}

/// Says of orders that they held in the process before and do not here.
pub(crate) fn warn_of(orders: &[StandingOrder], why: &str) {
    for StandingOrder {
        order, reason, by, ..
    } in orders
    {
        let order = order.as_ref().map(|order| format!("{order:?}"));
        tracing::warn!(
            order,
            reason,
            by,
            why,
            "An order that held in the old process does not hold here"
        );
    }
}

/// Who gave an order, and why.
struct Given {
    id: String,
    reason: String,
    by: String,
}

impl Given {
    fn of<T>(request: &Request<T>, order: Option<&Order>) -> Self {
        let order = order.cloned().unwrap_or_default();
        let by = match request.extensions().get::<Peer>() {
            Some(Peer::Process { uid, pid }) => match pid {
                Some(pid) => format!("process {pid} of user {uid}"),
                None => format!("user {uid}"),
            },
            Some(Peer::Address(address)) => address.to_string(),
            Some(Peer::Unknown) | None => "unknown".to_owned(),
        };
        Self {
            id: order.request_id,
            reason: order.reason,
            by,
        }
    }
}

/// Whether two orders are about the same thing, so that the later one takes the place of the earlier.
fn is_same(one: &Ordered, other: &Ordered) -> bool {
    match (one, other) {
        (Ordered::Eject(a, _), Ordered::Eject(b, _) | Ordered::Restore(b))
        | (Ordered::Capacity(a, ..), Ordered::Capacity(b, ..)) => a == b,
        (Ordered::Pin(key, a), Ordered::Pin(other, b)) => (key, &a.pool) == (other, &b.pool),
        (Ordered::Queue(a, ..), Ordered::Queue(b, ..)) => a == b,
        (one, other) => one == other,
    }
}

/// A time from now on, on both clocks.
fn after(ttl: Duration) -> (Tick, SystemTime) {
    (BootClock.now() + ttl, SystemTime::now() + ttl)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refuse(text: impl Into<String>) -> Failure {
    Failure::new(Reason::ConfigInvalid, text.into())
}

#[tonic::async_trait]
impl ControlService for Control {
    type WatchRoutesStream = Words<WatchRoutesResponse>;
    type DrainStream = Words<DrainResponse>;
    type TailStream = Words<TailResponse>;

    async fn watch_routes(
        &self,
        request: Request<WatchRoutesRequest>,
    ) -> Result<Response<Self::WatchRoutesStream>, Status> {
        let words = self.routes(request.into_inner());
        Ok(self.until_over(words.map(Ok)))
    }

    async fn snapshot(
        &self,
        request: Request<SnapshotRequest>,
    ) -> Result<Response<SnapshotResponse>, Status> {
        let pool = request.into_inner().pool;
        Ok(Response::new(SnapshotResponse {
            routes: Some(self.all_routes(&pool)),
            orders: self.standing(),
        }))
    }

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<Self::DrainStream>, Status> {
        let words = self.order_drain(&request)?;
        Ok(self.until_over(words.map(Ok)))
    }

    async fn undrain(
        &self,
        request: Request<UndrainRequest>,
    ) -> Result<Response<UndrainResponse>, Status> {
        let order = request.get_ref();
        let answer = self.once(&request, order.order.as_ref(), |given| {
            let scope = self.scope(order.scope.as_ref(), false)?;
            let was = self.give(given, Ordered::Undrain(scope), None);
            Ok(UndrainResponse { was })
        })?;
        Ok(Response::new(answer))
    }

    async fn eject(
        &self,
        request: Request<EjectRequest>,
    ) -> Result<Response<EjectResponse>, Status> {
        let order = request.get_ref();
        let answer = self.once(&request, order.order.as_ref(), |given| {
            let worker = self.living(order.worker.as_ref())?;
            let ttl = orders::ttl(order.ttl_ms)?;
            let (tick, until) = after(ttl);
            self.give(given, Ordered::Eject(worker.clone(), tick), Some(until));
            Ok(EjectResponse {
                ready: self.ready(&worker.pool),
                worker: Some((&worker).into()),
                until_unix_ms: unix_ms(until),
            })
        })?;
        Ok(Response::new(answer))
    }

    async fn restore(
        &self,
        request: Request<RestoreRequest>,
    ) -> Result<Response<RestoreResponse>, Status> {
        let order = request.get_ref();
        let answer = self.once(&request, order.order.as_ref(), |given| {
            let worker = self.living(order.worker.as_ref())?;
            let was = self.give(given, Ordered::Restore(worker), None);
            Ok(RestoreResponse { was })
        })?;
        Ok(Response::new(answer))
    }

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<PinResponse>, Status> {
        let order = request.get_ref();
        let answer = self.once(&request, order.order.as_ref(), |given| {
            let worker = self.living(order.worker.as_ref())?;
            let key = orders::key(&order.key)?;
            self.give(given, Ordered::Pin(key, worker.clone()), None);
            Ok(PinResponse {
                worker: Some((&worker).into()),
            })
        })?;
        Ok(Response::new(answer))
    }

    async fn unpin(
        &self,
        request: Request<UnpinRequest>,
    ) -> Result<Response<UnpinResponse>, Status> {
        let order = request.get_ref();
        let answer = self.once(&request, order.order.as_ref(), |given| {
            let key = orders::key(&order.key)?;
            let pool = self.pool(&order.pool)?;
            let was = self.give(given, Ordered::Unpin(key, pool), None);
            Ok(UnpinResponse { was })
        })?;
        Ok(Response::new(answer))
    }

    async fn set_limits(
        &self,
        request: Request<SetLimitsRequest>,
    ) -> Result<Response<SetLimitsResponse>, Status> {
        let order = request.get_ref();
        let answer = self.once(&request, order.order.as_ref(), |given| {
            let until = (order.ttl_ms > 0).then(|| after(Duration::from_millis(order.ttl_ms)));
            let limits = self.limits(order.limits.as_ref(), until.map(|(tick, _)| tick))?;
            let limits_told = match orders::told(&limits) {
                Some(standing_order::Order::Limits(limits)) => Some(limits),
                _ => order.limits.clone(),
            };
            let until = until.map(|(_, until)| until);
            self.give(given, limits, until);
            Ok(SetLimitsResponse {
                limits: limits_told,
                until_unix_ms: until.map_or(0, unix_ms),
            })
        })?;
        Ok(Response::new(answer))
    }

    async fn explain(
        &self,
        request: Request<ExplainRequest>,
    ) -> Result<Response<ExplainResponse>, Status> {
        let answer = self.dry_run(&request.into_inner()).await;
        Ok(Response::new(answer))
    }

    async fn tail(
        &self,
        request: Request<TailRequest>,
    ) -> Result<Response<Self::TailStream>, Status> {
        let filter: Filter = orders::filter(request.get_ref())?;
        let watch = self.0.forwarder.tail.watch(filter);
        let words = stream::unfold(watch, async |mut watch| {
            let call = watch.next().await?;
            Some((Ok(call), watch))
        });
        Ok(self.until_over(words))
    }
}
