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
            self.put(pool, next.2, node);
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
            let starts_at = entry.starts.next_deadline();
            entry.starts_at = starts_at;
            // Nobody need be told anything in this moment: it may be a mere beat of a node that takes workers again.
            if let (Some(due), Some(at)) = (&mut self.pools_due, starts_at) {
                *due = at.min(*due);
            }
            return None;
        }
        Some(node)
    }

    /// Orders the start of a place's worker on a node.
    fn put(&mut self, pool: &PoolName, slot: Slot, node: NodeName) {
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
        let Some(place) = entry.places.get_mut(slot) else {
            return;
        };
        let Some(live) = &mut place.live else { return };
        live.node = Some(node.clone());
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
            launcher: policy.launcher.name().to_owned(),
        };
        self.effects.order(&node, Order::Start(order));
        self.seat(&node, &id);
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use tether_lifecycle::Surroundings;
    use tether_proto::{
        common::WorkerPhase,
        node::{HeartbeatRequest, Hello, WorkerReport},
        pool::{PoolSpec, Template},
    };
    use tether_types::{Epoch, OwnerName};

    use super::*;
    use crate::Config;

    #[test]
    fn who_may_not_be_started_yet_is_started_in_time_although_nothing_was_told_when_that_was_found_out()
     {
        let terms = Config::default().terms().unwrap();
        let mut ledger = Ledger::new(terms, BTreeMap::new(), Surroundings::default());
        let node = NodeName::new("n1").unwrap();
        let start = Tick::from_nanos(1_000_000_000);
        let hello = Hello {
            launchers: vec!["exec".to_owned()],
            ..Hello::default()
        };
        let beat = HeartbeatRequest {
            seq: 1,
            ..HeartbeatRequest::default()
        };
        let spec = PoolSpec {
            name: "work".to_owned(),
            mode: "distributed".to_owned(),
            template: Some(Template {
                command: "work".to_owned(),
                ..Template::default()
            }),
            size: 1,
            starts_per_second: 1,
            ..PoolSpec::default()
        };
        let owner = OwnerName::new("beam").unwrap();
        ledger.on_hello(&node, &hello, start);
        assert!(ledger.on_beat(&node, &beat, start));
        ledger.apply_pool(spec, owner, Epoch(0), start).unwrap();
        let orders = |ledger: &mut Ledger| ledger.take_effects().orders.len();
        assert_eq!(orders(&mut ledger), 1, "it is started");

        // Its node has another stream and takes nothing before it beats there.
        let again = start + Duration::from_millis(200);
        let running = WorkerReport {
            worker: Some(WorkerRef {
                pool: "work".to_owned(),
                slot: 0,
                incarnation: 1,
            }),
            phase: WorkerPhase::Ready.into(),
            pid: 7,
            ..WorkerReport::default()
        };
        let hello = Hello {
            workers: vec![running],
            ..hello
        };
        ledger.on_hello(&node, &hello, again);
        ledger.scale_pool("work", 2, None, again).unwrap();
        assert_eq!(orders(&mut ledger), 0);
        let second = start + Duration::from_secs(1);
        ledger.check(again);
        assert!(ledger.next_deadline().is_none_or(|next| next > second));
        assert!(ledger.on_beat(&node, &beat, again));
        assert!(ledger.take_effects().is_empty(), "nothing follows");

        assert!(ledger.next_deadline().is_some_and(|next| next <= second));
        ledger.check(second);
        assert_eq!(orders(&mut ledger), 1, "the other one");
    }
}
