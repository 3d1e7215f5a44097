//! What an earlier arbiter left in the store, taken up again.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message as _;
use tether_clock::Tick;
use tether_lifecycle::Loss;
use tether_proto::{
    common::Endpoint,
    discovery::{EndpointRemoval, NodeLoss},
    worker::{Event, EventKind},
};
use tether_store::{Entry, Listing, keys::ServeKey};
use tether_supervise::Slot as Machine;
use tether_types::{Death, Incarnation, NodeName, OwnerName, PoolName, Slot, WorkerId};

use super::{
    Ledger, Pool,
    losses::death_of,
    pools::Next,
    readable::{self, Unreadable},
    reports::is_clean,
    rollout::Rollout,
    slots::{Last, Place, Shown},
};
use crate::{
    effects::keys,
    record::{CordonRecord, HoldRecord, NodeRecord, OwnerRecord, PoolRecord, RegistrationRecord},
    spec,
};

impl Ledger {
    /// Takes up everything under `arbiter/` and `serve/`. Every lease is taken for one whole term,
    /// as the last renewal is not known.
    ///
    /// # Errors
    /// When what must not be guessed cannot be read.
    pub(crate) fn restore(&mut self, listing: &Listing, now: Tick) -> Result<(), Unreadable> {
        readable::check(listing)?;
        for entry in &listing.entries {
            let key = entry.key.as_str();
            if key == keys::INCARNATION {
                let record = readable::incarnation(entry)?;
                (self.highest, self.reserved) = (record.up_to, record.up_to);
            } else if let Some(name) = key.strip_prefix(keys::OWNERS) {
                match (name.parse(), OwnerRecord::decode(&*entry.value)) {
                    (Ok(owner), Ok(record)) => {
                        self.restore_session(owner, entry.mod_revision, &record, now);
                    }
                    _ => tracing::error!(key, "Cannot read the record of a session"),
                }
            } else if let Some(name) = key.strip_prefix(keys::NODES)
                && let Ok(node) = name.parse()
            {
                let record = NodeRecord::decode(&*entry.value).unwrap_or_default();
                self.restore_node(node, record.instance, entry.mod_revision, now);
            } else if let Some(name) = key.strip_prefix(keys::CORDONS)
                && let Ok(node) = name.parse()
            {
                let record = CordonRecord::decode(&*entry.value).unwrap_or_default();
                self.restore_cordon(node, record);
            } else if let Some(name) = key.strip_prefix(keys::POOLS) {
                let record = PoolRecord::decode(&*entry.value).unwrap_or_default();
                self.restore_pool(name, record, now);
            } else if let Some(rest) = key.strip_prefix(keys::REGISTRATIONS) {
                let record = RegistrationRecord::decode(&*entry.value).unwrap_or_default();
                self.restore_registration(rest, record, now);
            } else if let Some(rest) = key.strip_prefix(keys::JOBS) {
                self.jobs.restore(rest, &entry.value);
            } else if key.starts_with(keys::EVENTS) {
                self.restore_event(&entry.value);
            }
        }
        for entry in &listing.entries {
            if let Some(rest) = entry.key.strip_prefix(keys::JOB_SPECS) {
                let effects = &mut self.effects;
                self.jobs.restore_spec(rest, &entry.value, effects);
            } else if let Some(rest) = entry.key.strip_prefix(keys::HOLDS) {
                let record = HoldRecord::decode(&*entry.value).unwrap_or_default();
                if !self.restore_hold(rest, &record.node, record.incarnation, now) {
                    self.effects.delete(entry.key.clone());
                }
            }
        }
        self.hold_needed();
        // Afterwards, as it is compared with the pools there are.
        let losses = listing.entries.iter().filter_map(read_loss).collect();
        for entry in &listing.entries {
            if !self.restore_registered(entry, now) {
                self.restore_served(entry, &losses, now);
            }
        }
        self.complete_registered(&listing.entries);
        self.restore_losses(&losses);
        // A pool that cannot be taken up, as its template is gone from the configuration, may come back with it.
        let recorded = |pool: &PoolName| {
            let key = keys::pool(pool);
            listing.entries.iter().any(|entry| entry.key == key)
        };
        self.jobs.retain_pools(
            |pool| self.pools.contains_key(pool) || recorded(pool),
            &mut self.effects,
        );
        self.restore_cancels(now);
        self.fill_all(now);
        Ok(())
    }

    fn restore_pool(&mut self, name: &str, record: PoolRecord, now: Tick) {
        let (draining, ending) = (record.draining, record.ending.clone());
        let loss = record.loss.parse::<Loss>().ok();
        let next = record.next.clone();
        let kept = record.clone();
        let next = next.and_then(|next| self.read_pool(name, *next, now));
        let read = self.read_pool(name, record, now);
        self.lost_pools |= read.is_none();
        if let Some(Next {
            resolved, owner, ..
        }) = read
        {
            let mut pool = Pool::new(resolved, owner, now);
            pool.draining = draining;
            pool.loss = loss;
            pool.ending = ending.map(|death| Death::from(&death).cause);
            pool.next = next;
            pool.restore_longest(&kept);
            pool.rollout = Rollout::restored(Incarnation(kept.fresh_after), &kept.extra);
            self.pools.insert(pool.name().clone(), pool);
        }
    }

    fn read_pool(&self, name: &str, record: PoolRecord, now: Tick) -> Option<Next> {
        let spec = record.spec.unwrap_or_default();
        let owner = OwnerName::new(&record.owner);
        match (
            spec::resolve(spec, &self.templates, &self.surroundings),
            owner,
        ) {
            (Ok(mut resolved), Ok(owner)) => {
                resolved.mode_why = record.mode_why;
                Some(Next {
                    resolved,
                    owner,
                    contact: now,
                })
            }
            (Err(error), _) => {
                tracing::error!(pool = name, %error, "Cannot take up a pool of before");
                None
            }
            (_, Err(error)) => {
                tracing::error!(pool = name, %error, "Cannot take up a pool of before");
                None
            }
        }
    }

    fn restore_event(&mut self, value: &[u8]) {
        if let Ok(event) = Event::decode(value)
            && event.kind() == EventKind::WorkerDied
            && let Some(worker) = event.worker
        {
            self.buried.push(Incarnation(worker.incarnation));
        }
    }

    /// A place that served or had a death is made again, so that what is written of it goes when it
    /// goes (A4); and a worker that was not to be started again after its end is not.
    fn restore_served(&mut self, entry: &Entry, losses: &BTreeMap<NodeName, NodeLoss>, now: Tick) {
        let Some(key) = ServeKey::parse(&entry.key) else {
            return;
        };
        let (ServeKey::Pool(name) | ServeKey::Endpoint(name, _) | ServeKey::Death(name, _)) = &key
        else {
            return;
        };
        let Some(pool) = self.pools.get_mut(name) else {
            return self.effects.delete(entry.key.clone());
        };
        let (ServeKey::Endpoint(_, slot) | ServeKey::Death(_, slot)) = key else {
            return;
        };
        let plan = &pool.resolved.plan;
        let endpoint = match &key {
            ServeKey::Endpoint(..) => read_endpoint(entry, name, slot),
            _ => None,
        };
        if let Some((id, node)) = &endpoint
            && let Some(node) = self.nodes.get_mut(node)
        {
            node.served.push(id.clone());
        }
        let place = pool.places.get_or_insert_with(slot, || {
            let seed = now.as_nanos() ^ u64::from(slot);
            let machine = Machine::new(Arc::clone(plan), Incarnation(0), seed, now);
            Place::new(machine)
        });
        let last = match key {
            ServeKey::Death(..) => read_death(entry),
            _ => {
                let ended = endpoint.and_then(|(id, node)| read_ended(&id, node, losses));
                place.shown = match ended {
                    Some(_) => Shown::Lost,
                    None => Shown::Served,
                };
                ended
            }
        };
        if let Some(last) = last {
            if let Some(death) = &last.death {
                let incarnation = last.incarnation;
                let plan = Arc::clone(plan);
                let mut machine = Machine::adopted(plan, incarnation, now, incarnation.0, now);
                machine.on_exit(is_clean(Death::from(&**death).cause), now);
                place.machine = machine;
                self.buried.push(incarnation);
            }
            place.last = Some(Box::new(last));
        }
        let name: PoolName = name.clone();
        self.schedule(&name, slot);
    }
}

fn read_loss(entry: &Entry) -> Option<(NodeName, NodeLoss)> {
    let Some(ServeKey::Loss(node)) = ServeKey::parse(&entry.key) else {
        return None;
    };
    match NodeLoss::decode(&*entry.value) {
        Ok(loss) => Some((node, loss)),
        Err(error) => {
            tracing::error!(%node, %error, "Cannot read the loss of a node");
            None
        }
    }
}

fn read_death(entry: &Entry) -> Option<Last> {
    let removal = EndpointRemoval::decode(&*entry.value).ok()?;
    Some(Last {
        incarnation: Incarnation(removal.worker?.incarnation),
        death: Some(Arc::new(removal.death?)),
        node: None,
    })
}

fn read_endpoint(entry: &Entry, pool: &PoolName, slot: Slot) -> Option<(WorkerId, NodeName)> {
    let endpoint = Endpoint::decode(&*entry.value).ok()?;
    let id = WorkerId {
        pool: pool.clone(),
        slot,
        incarnation: Incarnation(endpoint.worker?.incarnation),
    };
    Some((id, NodeName::new(endpoint.node).ok()?))
}

/// Of an endpoint that the loss of its node has ended.
fn read_ended(
    id: &WorkerId,
    node: NodeName,
    losses: &BTreeMap<NodeName, NodeLoss>,
) -> Option<Last> {
    let loss = losses.get(&node)?;
    let over = id.incarnation.0 <= loss.up_to_incarnation;
    over.then(|| Last {
        incarnation: id.incarnation,
        death: death_of(loss, &id.pool).map(Arc::new),
        node: Some(node),
    })
}
