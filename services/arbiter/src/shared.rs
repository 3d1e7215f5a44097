//! The ledger at work: one lock around it, its effects carried out, its deadlines kept.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tether_clock::{Clock, Tick, wall::WallWatch};
use tether_proto::{
    Failure, common,
    node::{HeartbeatRequest, HeartbeatResponse, Hello, Order},
};
use tether_store::{Store, Txn, keys::ServeKey};
use tether_types::{Epoch, NodeName, OwnerName, ProcessIdentity, Reason};
use tokio::{
    sync::{Mutex, Notify, mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::{
    effects::{Ack, Effects, keys},
    events::Events,
    followers::Followers,
    ledger::{Granted, Ledger},
    mandate::Mandate,
    owners::Owners,
    record::OwnerRecord,
};

/// etcd takes 128 writes in one transaction unless told otherwise.
const WRITES_PER_COMMIT: usize = 100;

/// And 1.5 MiB of them, with their keys and what surrounds them.
const BYTES_PER_COMMIT: usize = 1 << 20;

/// The timer does not look more often than this, whatever is due.
const PAUSE_MIN: Duration = Duration::from_millis(1);

/// Nor less often, so that an arbiter that runs never seems to its clock to have been away.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// An arbiter that did not look at its clock for longer was stopped or starved, and heard nothing meanwhile:
/// that silence ends no lease.
pub(crate) const ATTENTION: Duration = Duration::from_secs(3);

/// How long to wait before a store that failed is tried again.
const STORE_RETRY: Duration = Duration::from_millis(500);

/// What every call works on.
///
/// Two locks: `core` is never held over IO, so that beats are answered whatever the store does;
/// `writer` is held while the store is written, so that writes and what follows from them keep
/// their order. Who needs both takes `writer` first.
#[derive(Debug)]
pub(crate) struct Shared {
    store: Arc<dyn Store>,
    pub(crate) events: Events,
    pub(crate) owners: Owners,
    pub(crate) followers: Arc<Followers>,
    clock: Arc<dyn Clock>,
    core: Mutex<Core>,
    writer: Mutex<Writer>,
    /// There is something to write, or an earlier deadline to keep.
    woken: Notify,
    /// How long any of this counts.
    mandate: Arc<Mandate>,
    /// Counts applied pools: each may want its owner to beat more often.
    applied: watch::Sender<u64>,
}

/// A node's way down. Boxed: a channel sets room aside for thirty-two at a time.
pub(crate) type Outbox = mpsc::Sender<Box<HeartbeatResponse>>;

/// A node's open stream: which one, and its way down.
#[derive(Debug)]
struct Link {
    stream: u64,
    outbox: Outbox,
}

#[derive(Debug)]
struct Core {
    ledger: Ledger,
    /// Decided and not carried out yet.
    pending: Effects,
    links: BTreeMap<NodeName, Link>,
    streams: u64,
    /// Those who beat for a session are told of its end here.
    sessions: BTreeMap<OwnerName, (Epoch, watch::Sender<Option<Failure>>)>,
    /// When the timer looks at the deadlines next.
    alarm: Tick,
}

#[derive(Debug)]
struct Writer {
    /// Being written. It stays here when a caller goes away in the middle of its call.
    batch: Effects,
    last_event: u64,
    /// Whether the last commit failed.
    failing: bool,
    /// Looked at each second, with the deadlines.
    wall: WallWatch,
}

impl Core {
    /// Answers beats, keeps the rest for the writer. True when the timer has to be woken.
    fn collect(&mut self) -> bool {
        let mut effects = self.ledger.take_effects();
        for (node, ack) in std::mem::take(&mut effects.acks) {
            if ack.resync {
                tracing::warn!(%node, "What the node has is not what it told; it is asked for all of it");
            }
            self.send(&node, ack, Vec::new());
        }
        let news = !effects.is_empty();
        self.pending.append(effects);
        news || self
            .ledger
            .next_deadline()
            .is_some_and(|next| next < self.alarm)
    }

    /// Sends what is written on its way.
    fn deliver(&mut self, done: Effects, now: Tick) {
        for (node, epoch) in done.epochs {
            // Told with the next answer.
            self.ledger.on_epoch(&node, epoch, now);
        }
        for (owner, epoch, why) in done.ended {
            if let Entry::Occupied(entry) = self.sessions.entry(owner)
                && entry.get().0 == epoch
            {
                entry.remove().1.send_replace(Some(why));
            }
        }
        for (node, mut orders) in done.orders {
            orders.retain(|order| self.ledger.still_stands(&node, order));
            if !orders.is_empty() {
                self.send(&node, Ack::default(), orders);
            }
        }
    }

    fn send(&mut self, node: &NodeName, ack: Ack, orders: Vec<Order>) {
        let Some(link) = self.links.get(node) else {
            return;
        };
        let Some(message) = self.ledger.message_to(node, ack, orders) else {
            return;
        };
        // A node that does not take its messages has to say hello again, and is then compared.
        if link.outbox.try_send(Box::new(message)).is_err() {
            self.links.remove(node);
        }
    }

    fn is_linked(&self, node: &NodeName, stream: u64) -> bool {
        let link = self.links.get(node);
        link.is_some_and(|link| link.stream == stream)
    }
}

impl Shared {
    pub(crate) fn new(
        ledger: Ledger,
        store: Arc<dyn Store>,
        events: Events,
        clock: Arc<dyn Clock>,
        mandate: Arc<Mandate>,
    ) -> Self {
        let owners = Owners::new(ledger.epochs());
        let core = Core {
            ledger,
            pending: Effects::default(),
            links: BTreeMap::new(),
            streams: 0,
            sessions: BTreeMap::new(),
            alarm: Tick::NEVER,
        };
        let writer = Writer {
            batch: Effects::default(),
            last_event: 0,
            failing: false,
            wall: WallWatch::default(),
        };
        Self {
            store,
            events,
            owners,
            followers: Arc::default(),
            clock,
            core: Mutex::new(core),
            writer: Mutex::new(writer),
            woken: Notify::new(),
            mandate,
            applied: watch::Sender::new(0),
        }
    }

    pub(crate) fn now(&self) -> Tick {
        self.clock.now()
    }

    /// Lets the ledger decide, and carries out what follows before it answers: what is acknowledged
    /// is written. While the store fails, nothing is decided.
    pub(crate) async fn act<T>(
        &self,
        decide: impl FnOnce(&mut Ledger, Tick) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut writer = self.writer.lock().await;
        if writer.failing {
            self.flush(&mut writer).await?;
        }
        let decided = self
            .decide(|core, now| decide(&mut core.ledger, now))
            .await?;
        self.flush(&mut writer).await?;
        decided
    }

    /// Reads from the ledger.
    ///
    /// # Errors
    /// When another arbiter may know better.
    pub(crate) async fn read<T>(
        &self,
        look: impl FnOnce(&Ledger, Tick) -> T,
    ) -> Result<T, Failure> {
        let core = self.core.lock().await;
        let now = self.clock.now();
        self.mandate.check()?;
        Ok(look(&core.ledger, now))
    }

    /// Like [`Shared::act`] for what must go on without the store: renewals of owners. What is to be
    /// written waits for the timer's next round, and nothing is ordered before it is.
    ///
    /// # Errors
    /// When another arbiter may decide.
    pub(crate) async fn observe<T>(
        &self,
        decide: impl FnOnce(&mut Ledger, Tick) -> T,
    ) -> Result<T, Failure> {
        self.decide(|core, now| decide(&mut core.ledger, now)).await
    }

    async fn decide<T>(&self, decide: impl FnOnce(&mut Core, Tick) -> T) -> Result<T, Failure> {
        let mut core = self.core.lock().await;
        // Under the lock, and by the clock: whoever was stopped for a while finds out here first.
        let now = self.clock.now();
        self.mandate.check()?;
        let decided = decide(&mut core, now);
        if core.collect() {
            self.woken.notify_one();
        }
        Ok(decided)
    }

    /// Opens a session. The store's revision is the fencing token, as no restart and no other arbiter
    /// can repeat it; under the writer's lock no later session, and no end of an earlier one, can
    /// come between the commit and its effect.
    pub(crate) async fn open_session(
        &self,
        owner: &OwnerName,
        process: Option<common::ProcessIdentity>,
        ttl: Duration,
    ) -> Result<(Epoch, Granted), Failure> {
        // Taken first: a lease is never counted from later than the request for it.
        let received = self.now();
        let mut writer = self.writer.lock().await;
        self.flush(&mut writer).await?;
        let terms = self.read(|ledger, _| ledger.session_terms(ttl)).await??;
        let record = OwnerRecord {
            process: process.clone(),
            ttl_ms: u64::try_from(terms.ttl().as_millis()).unwrap_or(u64::MAX),
        };
        let txn = Txn::new().put(keys::owner(owner), record.encode_to_vec());
        let epoch = Epoch(self.commit(txn).await?);
        let process = process.as_ref().map(ProcessIdentity::from);
        let granted = self
            .observe(|ledger, _| ledger.open_session(owner, epoch, process, terms, received))
            .await?;
        self.owners.opened(owner, epoch);
        self.flush(&mut writer).await?;
        Ok((epoch, granted))
    }

    /// Writes what was decided, then carries it out. What cannot be written is kept, in order.
    async fn flush(&self, writer: &mut Writer) -> Result<(), Failure> {
        let decided = std::mem::take(&mut self.core.lock().await.pending);
        writer.batch.append(decided);
        self.events
            .number(&mut writer.batch, &mut writer.last_event);
        let written = self.write(&mut writer.batch).await;
        writer.failing = written.is_err();
        written?;
        let mut core = self.core.lock().await;
        let mut done = std::mem::take(&mut writer.batch);
        self.events.publish(std::mem::take(&mut done.events));
        let ended = done.ended.iter();
        self.owners
            .ended(ended.map(|(owner, epoch, _)| (owner, *epoch)));
        self.followers.wake(done.jobs.iter());
        core.deliver(done, self.clock.now());
        Ok(())
    }

    /// Commits if no other arbiter has taken over.
    async fn commit(&self, txn: Txn) -> Result<u64, Failure> {
        let committed = self.store.commit(self.mandate.guard(txn)).await;
        committed.map_err(|error| self.mandate.failed(error))
    }

    pub(crate) async fn write(&self, effects: &mut Effects) -> Result<(), Failure> {
        // An order leaves with a commit even where there is nothing to write: one that was decided
        // before this process lost some time it does not know of must not be given.
        if effects.writes.is_empty() && !effects.orders.is_empty() && self.mandate.is_guarded() {
            self.commit(Txn::new()).await?;
        }
        while !effects.writes.is_empty() {
            let keys = next_commit(&effects.writes);
            let mut txn = Txn::new();
            for key in &keys {
                txn = match &effects.writes[key] {
                    Some(value) => txn.put(key, value.clone()),
                    None => txn.delete(key),
                };
            }
            let revision = Epoch(self.commit(txn).await?);
            for key in &keys {
                let written = effects.writes.remove(key).flatten();
                let node = key.strip_prefix(keys::NODES).filter(|_| written.is_some());
                let node = node.and_then(|name| name.parse().ok());
                effects.epochs.extend(node.map(|node| (node, revision)));
            }
        }
        Ok(())
    }

    /// Where to hear of the end of a session that lives.
    ///
    /// # Errors
    /// When it does not live.
    pub(crate) async fn follow_session(
        &self,
        owner: &OwnerName,
        epoch: Epoch,
    ) -> Result<watch::Receiver<Option<Failure>>, Failure> {
        let mut core = self.core.lock().await;
        self.mandate.check()?;
        core.ledger.live_session(owner, epoch)?;
        if let Some((live, told)) = core.sessions.get(owner)
            && *live == epoch
        {
            return Ok(told.subscribe());
        }
        let (told, end) = watch::channel(None);
        core.sessions.insert(owner.clone(), (epoch, told));
        Ok(end)
    }

    /// Comes back when the arbiter stops, or leads no more.
    pub(crate) async fn over(&self) {
        self.mandate.over().cancelled().await;
    }

    /// What to tell whoever has a stream, once it is over.
    pub(crate) fn why_over(&self) -> Status {
        let stops = || Status::unavailable("the arbiter stops");
        self.deposed().unwrap_or_else(stops)
    }

    /// What to tell whoever asks an arbiter that leads no more; none while it leads.
    pub(crate) fn deposed(&self) -> Option<Status> {
        let deposed = self.mandate.check().err();
        deposed.map(Status::from)
    }

    /// A pool was applied.
    pub(crate) fn pool_applied(&self) {
        self.applied.send_modify(|count| *count += 1);
    }

    /// Changes when a pool is applied.
    pub(crate) fn pools_applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// A node's stream opened: from here on its messages go there. In one step with its hello, as an
    /// order that went down before the hello is compared would be taken for lost (A1).
    pub(crate) async fn join(
        &self,
        node: &NodeName,
        hello: &Hello,
        outbox: Outbox,
    ) -> Result<u64, Failure> {
        self.decide(|core, now| {
            core.ledger.admit_node(node, hello, now)?;
            core.streams += 1;
            let stream = core.streams;
            core.links.insert(node.clone(), Link { stream, outbox });
            core.ledger.on_hello(node, hello, now);
            Ok(stream)
        })
        .await?
    }

    /// A beat of a node's stream. False when the stream is the node's no more, because a later one
    /// took over, the node's lease ended, or another arbiter leads: its agent has to begin anew.
    pub(crate) async fn beat(&self, node: &NodeName, stream: u64, beat: &HeartbeatRequest) -> bool {
        self.decide(|core, now| {
            core.is_linked(node, stream) && core.ledger.on_beat(node, beat, now)
        })
        .await
        .unwrap_or(false)
    }

    /// A stream ended. The node keeps its lease.
    pub(crate) async fn unlink(&self, node: &NodeName, stream: u64) {
        let mut core = self.core.lock().await;
        if core.is_linked(node, stream) {
            core.links.remove(node);
        }
    }

    /// Keeps the deadlines, and writes what was observed, until `stop`. Being late here only ever
    /// delays a grant: whoever must be gone by a deadline is ended by its own timer.
    pub(crate) async fn keep_time(&self, stop: CancellationToken) {
        let _over = self.mandate.over().clone().drop_guard();
        loop {
            let pause = self.keep_time_once().await;
            tokio::select! {
                () = self.over() => return,
                () = sleep(pause) => {}
                () = self.woken.notified() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One round: how long until the next, if nothing happens before.
    async fn keep_time_once(&self) -> Duration {
        let mut writer = self.writer.lock().await;
        let stepped = writer.wall.look();
        if let Some(step) = stepped {
            tracing::warn!(
                "The time of day was {step}: leases count by other clocks and are not affected"
            );
        }
        {
            let mut core = self.core.lock().await;
            let now = self.clock.now();
            if self.mandate.check().is_err() {
                // What is pending is of no use to anybody; whoever renews the mandate ends it.
                return STORE_RETRY;
            }
            core.ledger.check(now);
            if let Some(step) = stepped {
                core.ledger.clock_stepped(None, step);
            }
            core.collect();
        }
        let written = self.flush(&mut writer).await;
        let mut core = self.core.lock().await;
        let next = core.ledger.next_deadline().unwrap_or(Tick::NEVER);
        core.alarm = next;
        let pause = next.since(self.clock.now()).clamp(PAUSE_MIN, PAUSE_MAX);
        match written {
            Ok(()) => pause,
            Err(error) => {
                tracing::warn!(%error, "Decisions wait for the store");
                pause.min(STORE_RETRY)
            }
        }
    }
}

/// The keys of the next commit: as many as fit, with the end of each endpoint beside the death that goes with
/// it, so that no gateway hears of one without the other.
fn next_commit(writes: &BTreeMap<String, Option<Bytes>>) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut bytes = 0;
    for (key, value) in writes {
        bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        // What is too large by itself is for the store to refuse.
        let is_full = keys.len() >= WRITES_PER_COMMIT || bytes > BYTES_PER_COMMIT;
        if is_full && !keys.is_empty() {
            break;
        }
        keys.insert(key.clone());
        if let Some(ServeKey::Death(pool, slot)) = ServeKey::parse(key) {
            let endpoint = tether_store::keys::endpoint(&pool, slot);
            keys.extend(Some(endpoint).filter(|endpoint| writes.contains_key(endpoint)));
        }
    }
    keys
}

/// Says that a store failed, with all it said itself.
pub(crate) fn store_failed(error: tether_store::Error) -> Failure {
    let mut text = format!(
        "the store did not take it: {error}; what was decided already is written when it is back, and asking again does no harm"
    );
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Failure::new(Reason::StoreFailed, text)
}

#[cfg(test)]
mod tests;
