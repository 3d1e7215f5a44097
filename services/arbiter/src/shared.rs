//! The ledger at work: one lock around it, its effects carried out, its deadlines kept.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tether_clock::{Clock, Tick};
use tether_proto::{Failure, node::HeartbeatResponse};
use tether_store::{Store, Txn};
use tether_types::{Epoch, NodeName, OwnerName, Reason};
use tokio::{
    sync::{Mutex, MutexGuard, Notify, mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{effects::Effects, events::Events, ledger::Ledger};

/// etcd takes 128 writes in one transaction unless told otherwise.
const WRITES_PER_COMMIT: usize = 100;

/// How long to wait before a store that failed is tried again.
const STORE_RETRY: Duration = Duration::from_millis(500);

/// What every call works on.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) events: Events,
    clock: Arc<dyn Clock>,
    core: Mutex<Core>,
    /// The timer is to look at the deadlines again.
    woken: Notify,
}

/// A node's open stream: which one, and its way down.
#[derive(Debug)]
struct Link {
    stream: u64,
    outbox: mpsc::Sender<HeartbeatResponse>,
}

#[derive(Debug)]
struct Core {
    ledger: Ledger,
    /// Decided and not carried out, because the store could not be written.
    pending: Effects,
    last_event: u64,
    links: BTreeMap<NodeName, Link>,
    /// Those who beat for a session are told of its end here.
    sessions: BTreeMap<OwnerName, (Epoch, watch::Sender<Option<Failure>>)>,
}

impl Shared {
    pub(crate) fn new(
        ledger: Ledger,
        store: Arc<dyn Store>,
        events: Events,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let core = Core {
            ledger,
            pending: Effects::default(),
            last_event: 0,
            links: BTreeMap::new(),
            sessions: BTreeMap::new(),
        };
        Self {
            store,
            events,
            clock,
            core: Mutex::new(core),
            woken: Notify::new(),
        }
    }

    pub(crate) fn now(&self) -> Tick {
        self.clock.now()
    }

    /// Lets the ledger decide, and carries out what follows before it answers: what is acknowledged
    /// is written.
    pub(crate) async fn act<T>(
        &self,
        decide: impl FnOnce(&mut Ledger, Tick) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut core = self.core.lock().await;
        let decided = decide(&mut core.ledger, self.clock.now());
        self.settle(&mut core).await?;
        decided
    }

    /// Reads from the ledger.
    pub(crate) async fn read<T>(&self, look: impl FnOnce(&Ledger, Tick) -> T) -> T {
        let core = self.core.lock().await;
        look(&core.ledger, self.clock.now())
    }

    /// Like [`Shared::act`] for what must go on without the store: renewals, and what agents report.
    /// What cannot be written waits, and nothing is ordered before it is.
    pub(crate) async fn observe(&self, decide: impl FnOnce(&mut Ledger, Tick)) {
        let mut core = self.core.lock().await;
        decide(&mut core.ledger, self.clock.now());
        if let Err(error) = self.settle(&mut core).await {
            tracing::warn!(%error, "Decisions wait for the store");
        }
    }

    async fn settle(&self, core: &mut MutexGuard<'_, Core>) -> Result<(), Failure> {
        let core = &mut **core;
        let mut effects = core.ledger.take_effects();
        let acks = std::mem::take(&mut effects.acks);
        core.pending.append(effects);
        self.events.number(&mut core.pending, &mut core.last_event);

        let written = self.write(&mut core.pending).await;
        let done = if written.is_ok() {
            std::mem::take(&mut core.pending)
        } else {
            Effects::default()
        };
        self.events.publish(done.events);
        for (owner, epoch, why) in done.ended {
            if core
                .sessions
                .get(&owner)
                .is_some_and(|(live, _)| *live == epoch)
                && let Some((_, told)) = core.sessions.remove(&owner)
            {
                told.send_replace(Some(why));
            }
        }
        let mut orders = done.orders;
        let nodes: Vec<_> = acks.keys().chain(orders.keys()).cloned().collect();
        for node in nodes {
            let Some(mut message) = core.ledger.message_to(&node) else {
                continue;
            };
            message.ttl_ms = acks.get(&node).map_or(0, |ack| ack.ttl_ms);
            message.orders = orders.remove(&node).unwrap_or_default();
            if message.orders.is_empty() && !acks.contains_key(&node) {
                continue; // Told already: listed twice.
            }
            // A node that does not take its messages has to say hello again, and is then compared.
            if let Some(link) = core.links.get(&node)
                && link.outbox.try_send(message).is_err()
            {
                core.links.remove(&node);
            }
        }
        self.woken.notify_one();
        written
    }

    async fn write(&self, effects: &mut Effects) -> Result<(), Failure> {
        while !effects.writes.is_empty() {
            let keys: Vec<_> = effects
                .writes
                .keys()
                .take(WRITES_PER_COMMIT)
                .cloned()
                .collect();
            let mut txn = Txn::new();
            for key in &keys {
                txn = match &effects.writes[key] {
                    Some(value) => txn.put(key, value.clone()),
                    None => txn.delete(key),
                };
            }
            self.store.commit(txn).await.map_err(store_failed)?;
            effects.writes.retain(|key, _| !keys.contains(key));
        }
        Ok(())
    }

    /// Whom to tell when the session of this epoch ends.
    pub(crate) async fn follow_session(
        &self,
        owner: &OwnerName,
        epoch: Epoch,
    ) -> watch::Receiver<Option<Failure>> {
        let mut core = self.core.lock().await;
        match core.sessions.get(owner) {
            Some((live, told)) if *live == epoch => told.subscribe(),
            _ => {
                let (told, end) = watch::channel(None);
                core.sessions.insert(owner.clone(), (epoch, told));
                end
            }
        }
    }

    /// A node's stream opened: from here on its messages go there.
    pub(crate) async fn link(
        &self,
        node: NodeName,
        outbox: mpsc::Sender<HeartbeatResponse>,
    ) -> u64 {
        static STREAMS: AtomicU64 = AtomicU64::new(1);

        let stream = STREAMS.fetch_add(1, Ordering::Relaxed);
        self.core
            .lock()
            .await
            .links
            .insert(node, Link { stream, outbox });
        stream
    }

    /// Whether this stream is still the node's.
    pub(crate) async fn is_linked(&self, node: &NodeName, stream: u64) -> bool {
        self.core
            .lock()
            .await
            .links
            .get(node)
            .is_some_and(|link| link.stream == stream)
    }

    /// A stream ended. The node keeps its lease.
    pub(crate) async fn unlink(&self, node: &NodeName, stream: u64) {
        let mut core = self.core.lock().await;
        if core
            .links
            .get(node)
            .is_some_and(|link| link.stream == stream)
        {
            core.links.remove(node);
        }
    }

    /// Keeps the deadlines until `stop`. Being late here only ever delays a grant: whoever must be
    /// gone by a deadline is ended by its own timer.
    pub(crate) async fn keep_time(&self, stop: CancellationToken) {
        loop {
            let next = {
                let mut core = self.core.lock().await;
                let now = self.clock.now();
                core.ledger.check(now);
                match self.settle(&mut core).await {
                    Ok(()) => core
                        .ledger
                        .next_deadline()
                        .map(|deadline| deadline.since(now)),
                    Err(error) => {
                        tracing::warn!(%error, "Decisions wait for the store");
                        Some(STORE_RETRY)
                    }
                }
            };
            // `settle` above woke us too; that permit is spent by looking once more.
            let sleep = Instant::now()
                + next
                    .unwrap_or(Duration::from_secs(3600))
                    .max(Duration::from_millis(1));
            tokio::select! {
                () = sleep_until(sleep) => {}
                () = self.next_deadline_changed() => {}
                () = stop.cancelled() => return,
            }
        }
    }

    async fn next_deadline_changed(&self) {
        self.woken.notified().await;
    }
}

/// Says that a store failed, with all it said itself.
pub(crate) fn store_failed(error: tether_store::Error) -> Failure {
    let mut text = format!("nothing was changed for good: {error}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    Failure::new(Reason::StoreFailed, text)
}
