//! Numbered workers on their way to a node: what they wait for, and the order that starts them.

use tether_clock::Tick;
use tether_lease::Margins;
use tether_lifecycle::OnAgentLoss;
use tether_proto::{
    common::WorkerRef,
    node::{StartWorker, order::Order},
    worker::EventKind,
};
use tether_types::{Incarnation, NodeName, PoolName, Slot, WorkerId};

use super::{Ledger, millis};

impl Ledger {
    /// Something changed that workers of any pool may have waited for.
    pub(super) fn place_waiting(&mut self, now: Tick) {
        let mut after = self.waiting.first().map(|(pool, ..)| pool.clone());
        while let Some(pool) = after {
            self.place_waiting_of(&pool, now);
            let last = (pool, Incarnation(u64::MAX), Slot::MAX);
            after = self
                .waiting
                .range(last..)
                .next()
                .map(|(pool, ..)| pool.clone());
        }
        self.roll_all(now);
    }

    /// Starts the workers of a pool that wait, in the order of their numbers, for as long as nothing
    /// stands in their way: whatever does is the same for all of them.
    pub(super) fn place_waiting_of(&mut self, pool: &PoolName, now: Tick) {
        if let Some(entry) = self.pools.get_mut(pool) {
            entry.starts_at = None;
        }
        loop {
            let first = (pool.clone(), Incarnation(0), 0);
            let next = self.waiting.range(first..).next();
            let Some(next) = next.filter(|next| next.0 == *pool).cloned() else {
                return self.note_no_node(pool, None);
            };
            let Some(node) = self.way_clear(pool, now) else {
                return;
            };
            self.waiting.remove(&next);
            self.put(pool, next.2, node, now);
        }
    }

    /// The node for the next worker of a pool, where nothing keeps it from being started.
    fn way_clear(&mut self, pool: &PoolName, now: Tick) -> Option<NodeName> {
        let missing = self.missing_dependency(pool).cloned();
        let entry = self.pools.get_mut(pool)?;
        if entry.waits_for != missing {
            entry.waits_for.clone_from(&missing);
            if let Some(missing) = &missing {
                let text =
                    format!("pool `{pool}` waits for pool `{missing}`, which has no ready worker");
                self.effects
                    .owner_event(EventKind::PoolChanged, entry.owner(), text);
            }
        }
        if missing.is_some() {
            return None;
        }
        let chosen = self.choose_node(pool);
        self.note_no_node(pool, chosen.as_ref().err());
        let node = chosen.ok()?;
        let entry = self.pools.get_mut(pool)?;
        if !entry.starts.try_take(now) {
            entry.starts_at = entry.starts.next_deadline();
            return None;
        }
        Some(node)
    }

    /// Orders the start of a place's worker on a node.
    fn put(&mut self, pool: &PoolName, slot: Slot, node: NodeName, now: Tick) {
        self.unfold(pool, slot);
        // Numbered before the node's last loss, it would be taken for one of those that died with it; numbered
        // before the template changed, for one of the earlier template.
        let over = self
            .nodes
            .get(&node)
            .and_then(|node| node.over.get(pool).copied())
            .unwrap_or_default();
        let stale = self.pools.get(pool).map(|pool| pool.rollout.fresh_after);
        let over = over.max(stale.unwrap_or_default());
        let number = self.place(pool, slot).and_then(|place| place.live.as_ref());
        if number.is_some_and(|live| live.incarnation <= over) {
            let incarnation = self.next_incarnation();
            let live = self.place(pool, slot).and_then(|place| place.live.as_mut());
            live.into_iter()
                .for_each(|live| live.incarnation = incarnation);
        }
        let Some(entry) = self.pools.get_mut(pool) else {
            return;
        };
        let policy = *entry.policy();
        let shortest = self.terms.node.ttl().min(policy.heartbeat_timeout);
        let grace = entry.resolved.plan.stop.grace;
        let lease_grace = grace.min(Margins::usual(shortest).kill_budget);
        let kill_on_owner_exit = entry.dies_with_owner();
        let (owner, template) = (entry.owner().to_string(), entry.resolved.template.clone());
        let Some(place) = entry.places.get_mut(&slot) else {
            return;
        };
        let Some(live) = &mut place.live else { return };
        live.node = Some(node.clone());
        live.started = now;
        let id = WorkerId {
            pool: pool.clone(),
            slot,
            incarnation: live.incarnation,
        };
        let resources = self.nodes.get_mut(&node).map(|node| {
            let wanted = &entry.resolved.wishes.resources;
            node.units.give(&id, wanted, &node.resources)
        });
        let order = StartWorker {
            resources: resources.unwrap_or_default(),
            worker: Some(WorkerRef::from(&id)),
            template: Some(template),
            owner,
            kill_on_owner_exit,
            kill_on_agent_loss: policy.on_agent_loss == OnAgentLoss::Kill,
            lease_grace_ms: millis(lease_grace),
        };
        self.effects.order(&node, Order::Start(order));
        self.seat(&node, &id);
    }
}
