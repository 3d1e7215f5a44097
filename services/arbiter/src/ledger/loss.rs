//! What the loss of a node means: its workers are disabled at once, and their places are filled elsewhere
//! only when nothing of them can live any more.
//!
//! ```text
//! last beat received           lease free               grace over        job's lease over
//!  |--- heard ------------------|--- lost: disabled -----|                 |
//!                               endpoints withdrawn       places filled     those with a job
//! ```
//!
//! Each span is the longest that the node may have been told, as the grantor of a lease counts it. A proof of
//! death ends the wait: the node is back and does not know the worker, or somebody attests that it is dead.
//! Deadlines are kept in memory alone, so that another arbiter begins each wait anew; which places may be held
//! by a job for so long is in the store (`arbiter/holds/`).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tether_clock::Tick;
use tether_history::Freed;
use tether_lease::Tenure;
use tether_proto::{Failure, worker::EventKind};
use tether_types::{DeathCause, NodeName, PoolName, Reason, Slot, WorkerId};

use super::{
    Ledger, Node, Pool,
    nodes::lost,
    slots::{Live, Shown},
};
use crate::effects::keys;

/// What may still live on a lost node, and until when.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Claim {
    /// A worker that is known.
    Worker(WorkerId),
    /// Any worker of a pool: an earlier arbiter placed them, and this one has not heard which.
    Pool(PoolName),
    /// A worker with a job, of which an earlier arbiter wrote.
    Place(PoolName, Slot),
}

/// Few times, and at each of them hundreds of workers.
type Claims = BTreeMap<Tick, Vec<Claim>>;

/// A node whose lease is over.
#[derive(Debug)]
pub(super) struct Loss {
    /// When its lease was free.
    pub(super) since: Tick,
    /// What places wait for, by when that is over; where there is nothing the node is forgotten with the next
    /// check.
    pub(super) claims: Claims,
}

impl Loss {
    /// When the first claim is over.
    pub(super) fn next_deadline(&self) -> Tick {
        let first = self.claims.first_key_value();
        first.map_or(self.since, |(&at, _)| at)
    }

    /// How long until the last one is.
    pub(super) fn remaining(&self, now: Tick) -> Duration {
        let last = self.claims.last_key_value();
        last.map_or(Duration::ZERO, |(last, _)| last.since(now))
    }

    fn holds(&self, pool: &PoolName, slot: Slot) -> bool {
        self.claims.values().flatten().any(|claim| match claim {
            Claim::Pool(held) => held == pool,
            Claim::Place(held, place) => held == pool && *place == slot,
            // Its place is not empty.
            Claim::Worker(_) => false,
        })
    }

    fn holds_any(&self, pool: &PoolName) -> bool {
        self.claims.values().flatten().any(|claim| match claim {
            Claim::Pool(held) | Claim::Place(held, _) => held == pool,
            Claim::Worker(_) => false,
        })
    }
}

impl Ledger {
    /// Whether an empty place may be somebody's of whom this arbiter does not know (A1).
    pub(super) fn awaits(&self, pool: &PoolName, slot: Slot) -> bool {
        // Of a pool that began in this reign nobody else has anything.
        let is_new = || self.pools.get(pool).is_some_and(|pool| pool.never_owned);
        (self.awaits_word() && !is_new()) || self.uncertain(|loss| loss.holds(pool, slot))
    }

    /// Whether a pool may have workers of whom this arbiter does not know.
    pub(super) fn awaits_any_of(&self, pool: &PoolName) -> bool {
        self.awaits_word() || self.uncertain(|loss| loss.holds_any(pool))
    }

    /// Whether a node may yet say which workers it has.
    pub(super) fn awaits_word(&self) -> bool {
        !self.all_heard()
    }

    /// Whether this is so of any lost node with claims of whom nothing is known.
    fn uncertain(&self, held: impl Fn(&Loss) -> bool) -> bool {
        let nodes = self.uncertain.iter();
        let mut losses = nodes.filter_map(|name| self.nodes.get(name)?.loss.as_ref());
        losses.any(held)
    }

    /// Looks at these nodes: whether their leases are over, and what is held for those that are lost.
    pub(super) fn check_nodes(&mut self, names: Vec<NodeName>, now: Tick) {
        let all_heard_before = self.all_heard();
        for name in &names {
            let Some(node) = self.nodes.get_mut(name) else {
                continue;
            };
            let until = node.lease.next_deadline();
            let free = node.loss.is_none() && node.lease.check(now) == Tenure::Free;
            if let Some(until) = until.filter(|_| free) {
                self.lose_node(name, until, now);
            }
        }
        let released = self.release_claims(&names, now);
        for name in names {
            self.watch_node(name);
        }
        if released || (!all_heard_before && self.all_heard()) {
            self.fill_all(now);
        }
    }

    /// The lease of a node is over at `until`: nothing of it serves from here on.
    fn lose_node(&mut self, name: &NodeName, until: Tick, now: Tick) {
        let claims = self.claims_on(name, until);
        self.tell_loss(name, &claims, now);
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        node.tenancy.note_freed(name, Freed::Expired);
        self.unheard -= usize::from(!node.heard);
        let certain = |claim: &Claim| matches!(claim, Claim::Worker(_));
        if !claims.values().flatten().all(certain) {
            self.uncertain.insert(name.clone());
        }
        node.loss = Some(Loss {
            since: until,
            claims,
        });
        let served = std::mem::take(&mut node.served);
        let workers: Vec<_> = node.workers.iter().collect();
        for id in served {
            self.end_served(name, &id);
        }
        self.disable(name, &workers);
        self.write_loss(name);
        // In the commit that withdraws them, spares serve in their places.
        let pools: BTreeSet<_> = workers.into_iter().map(|id| id.pool).collect();
        for pool in pools {
            let spares = |pool: &Pool| pool.resolved.spec.spares > 0;
            if self.pools.get(&pool).is_some_and(spares) {
                self.publish_pool(&pool);
            }
        }
    }

    /// What has to be over before places are filled that are, or may be, on this node.
    fn claims_on(&self, name: &NodeName, until: Tick) -> Claims {
        let mut claims = Claims::new();
        let Some(node) = self.nodes.get(name) else {
            return claims;
        };
        let at = |span: Duration| until + self.terms.node.grantor_beyond(span);
        let of_worker = |id: &WorkerId| match self.pools.get(&id.pool) {
            Some(pool) if node.jobs.contains_key(id) => {
                pool.longest.with_job(self.terms.node.ttl())
            }
            Some(pool) => pool.longest.grace,
            None => Duration::ZERO,
        };
        let mut claim = |span, claim| claims.entry(at(span)).or_default().push(claim);
        for id in node.workers.iter() {
            claim(of_worker(&id), Claim::Worker(id));
        }
        if !node.heard {
            for pool in self.pools.values() {
                claim(pool.longest.grace, Claim::Pool(pool.name().clone()));
            }
            for id in node.jobs.keys() {
                claim(of_worker(id), Claim::Place(id.pool.clone(), id.slot));
            }
        }
        claims
    }

    fn tell_loss(&mut self, name: &NodeName, claims: &Claims, now: Tick) {
        let mut text = format!("no beat of node `{name}` within its lease");
        let mut held = claims.keys().filter(|&&at| at > now);
        let (first, last) = (held.next(), held.next_back());
        let last = last.or(first);
        let workers = claims.values().flatten();
        let workers = workers.filter(|claim| matches!(claim, Claim::Worker(_)));
        let workers = workers.count();
        if let (Some(first), Some(last)) = (first, last) {
            let who = match workers {
                0 => "its workers, which are not known,".to_owned(),
                1 => "its worker".to_owned(),
                some => format!("its {some} workers"),
            };
            let (first, last) = (first.since(now), last.since(now));
            let when = match first == last {
                true => format!("in {first:.1?}"),
                false => format!("in {first:.1?} to {last:.1?}, those with a job last"),
            };
            text.push_str(&format!(
                ": {who} get no calls, and their places are filled elsewhere {when}, unless the node is back by then; `tether node dead {name}` if it is known to be dead"
            ));
        } else if workers > 0 {
            text.push_str(&format!(": its {workers} workers have ended"));
        }
        self.effects.node_event(EventKind::NodeLost, name, text);
    }

    /// Workers of a node get no calls, and their places stay their own.
    fn disable(&mut self, name: &NodeName, workers: &[WorkerId]) {
        let mut served = Vec::with_capacity(workers.len());
        for id in workers {
            let Some(place) = self.place(&id.pool, id.slot) else {
                continue;
            };
            let live = place.live.as_mut();
            let Some(live) = live.filter(|live| live.incarnation == id.incarnation) else {
                continue;
            };
            live.disabled = true;
            place.serves = false;
            if place.shown == Shown::Served {
                served.push(id);
            }
            self.jobs.orphan(id, &mut self.effects);
        }
        self.leave_to_loss(name, served);
    }

    /// The node is back in time: what it still has goes on as it was.
    pub(super) fn enable(&mut self, name: &NodeName, now: Tick) {
        let Some(node) = self.nodes.get(name) else {
            return;
        };
        let workers: Vec<_> = node.workers.iter().collect();
        let mut pools = BTreeSet::new();
        for id in workers {
            let live = self
                .place(&id.pool, id.slot)
                .and_then(|place| place.live.as_mut());
            let lost = |live: &&mut Live| live.incarnation == id.incarnation && live.disabled;
            if let Some(live) = live.filter(lost) {
                live.disabled = false;
                self.jobs.resume(&id, &mut self.effects);
                pools.insert(id.pool);
            }
        }
        for pool in pools {
            self.publish_pool(&pool);
            self.wake_dependents(&pool, now);
            self.may_be_stale(&pool);
            self.roll(&pool, now);
        }
    }

    /// Lets go of what is over on lost nodes, and of a node itself once nothing is held for it. Tells whether
    /// places may be filled of which it was not known who has them.
    fn release_claims(&mut self, names: &[NodeName], now: Tick) -> bool {
        let (mut dead, mut forgotten, mut released) = (Vec::new(), Vec::new(), false);
        for name in names {
            let mut workers = Vec::new();
            while let Some(node) = self.nodes.get_mut(name)
                && let Some(loss) = node.loss.as_mut().filter(|loss| is_due(loss, now))
            {
                let Some((_, over)) = loss.claims.pop_first() else {
                    forgotten.push(name.clone());
                    break;
                };
                for claim in over {
                    match claim {
                        // Its shim has ended it by now: that is what leases are for (A1).
                        Claim::Worker(id) => workers.push(id),
                        Claim::Place(pool, slot) => {
                            self.drop_holds_at(name, &pool, slot);
                            released = true;
                        }
                        Claim::Pool(_) => released = true,
                    }
                }
            }
            if !workers.is_empty() {
                dead.push((name.clone(), workers));
            }
        }
        self.bury_lost(dead, now);
        for name in forgotten {
            self.forget_node(&name);
        }
        released
    }

    /// How long a worker on a lost node may come back as any other may, whatever it does.
    pub(super) fn grace_left(&self, id: &WorkerId, now: Tick) -> Duration {
        let grace = self
            .pools
            .get(&id.pool)
            .map_or(Duration::ZERO, |pool| pool.longest.grace);
        let grace = self.terms.node.grantor_beyond(grace);
        let (_, name) = self.find_worker(id).unzip();
        let node = name.and_then(|name| self.nodes.get(&name));
        let since = node
            .and_then(|node| node.loss.as_ref())
            .map(|loss| loss.since);
        since.map_or(Duration::ZERO, |since| (since + grace).since(now))
    }

    fn forget_node(&mut self, name: &NodeName) {
        if let Some(node) = self.take_node(name) {
            self.losses.on_gone(name, node.over);
            self.effects.delete(keys::node(name));
            for id in node.jobs.into_keys() {
                self.effects.delete(keys::hold(&id.pool, id.slot));
            }
        }
    }

    /// An agent leaves and says that none of its workers lives: the node is gone as soon as this is answered.
    pub(super) fn on_goodbye(&mut self, name: &NodeName, now: Tick) {
        self.end_lease(name, now);
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        node.tenancy.note_freed(name, Freed::Returned);
        // Ordered after it had looked; none of these was ever started.
        let never: Vec<_> = node.workers.iter().collect();
        self.effects
            .node_event(EventKind::NodeLost, name, format!("node `{name}` left"));
        for id in never {
            let death = lost(DeathCause::Unknown, "its agent left before it was started");
            self.bury(name, &id, death, false, now);
        }
        self.watch_node(name.clone());
    }

    /// A node has no lease any more, and nothing is held for it: nothing else is ordered there.
    fn end_lease(&mut self, name: &NodeName, now: Tick) {
        if let Some(node) = self.nodes.get_mut(name) {
            self.unheard -= usize::from(!node.heard && node.loss.is_none());
            node.lease.release();
            node.loss = Some(Loss {
                since: now,
                claims: Claims::new(),
            });
        }
    }

    /// Somebody attests that a node is dead: its places are filled at once, under new numbers. Tells how
    /// many workers were buried.
    ///
    /// # Errors
    /// When there is no such node, or it was heard a moment ago.
    pub(crate) fn declare_dead(
        &mut self,
        name: &NodeName,
        witness: &str,
        now: Tick,
    ) -> Result<u32, Failure> {
        self.check_nodes(vec![name.clone()], now);
        let Some(node) = self.nodes.get(name) else {
            let known: Vec<_> = self.nodes.keys().take(5).map(NodeName::as_str).collect();
            let text = format!(
                "no node is called `{name}`, there are: {}; one whose lease is over and of which nothing can live is forgotten by itself",
                known.join(", ")
            );
            return Err(Failure::new(Reason::ConfigInvalid, text));
        };
        let silent = now.since(node.last.1);
        let patience = self.terms.node.ttl() / 2;
        if node.heard && node.loss.is_none() && silent < patience {
            let text = format!(
                "node `{name}` was heard {silent:.1?} ago, so it lives: stop its agent and its workers first, or wait until it was silent for {patience:.1?}"
            );
            return Err(Failure::new(Reason::ConfigInvalid, text).retry_after(patience));
        }
        if node.loss.is_none() {
            node.tenancy.note_freed(name, Freed::Proof);
        }
        let workers: Vec<_> = node.workers.iter().collect();
        self.end_lease(name, now);
        let text = format!("node `{name}` was declared dead by {witness}");
        self.effects
            .node_event(EventKind::NodeLost, name, text.clone());
        for id in &workers {
            let death = lost(
                DeathCause::LeaseExpired,
                &format!("its lease was ended: {text}"),
            );
            self.bury(name, id, death, false, now);
        }
        // What an earlier arbiter told of them, and nobody withdrew.
        let served = self.nodes.get_mut(name);
        for id in served.map_or_else(Vec::new, |node| std::mem::take(&mut node.served)) {
            let empty = self.place(&id.pool, id.slot);
            if empty.is_some_and(|place| place.live.is_none()) {
                self.withdraw(&id.pool, id.slot);
            }
        }
        self.fold_back(name);
        self.forget_node(name);
        self.fill_all(now);
        Ok(u32::try_from(workers.len()).unwrap_or(u32::MAX))
    }
}

impl Node {
    /// When something follows from time alone.
    pub(super) fn next_deadline(&self) -> Option<Tick> {
        match &self.loss {
            Some(loss) => Some(loss.next_deadline()),
            None => self.lease.next_deadline(),
        }
    }
}

fn is_due(loss: &Loss, now: Tick) -> bool {
    loss.next_deadline() <= now
}
