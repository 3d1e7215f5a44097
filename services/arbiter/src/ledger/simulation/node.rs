//! A node of the model: its agent, which may be gone, and its shims, which hold on to deadlines.

use std::{collections::BTreeMap, time::Duration};

use tether_clock::Tick;
use tether_lease::{Holder, Standing, Terms};
use tether_proto::{
    common::{self, WorkerPhase, WorkerRef},
    node::{
        self, HeartbeatRequest, HeartbeatResponse, Hello, OwnerExit, ResourceUnits, StartWorker,
        WorkerReport, order::Order,
    },
};
use tether_types::{Death, DeathCause, Digest, NodeName, PoolName, WorkerId};

use super::owner::VERSION;

/// How often an agent without a stream tries to open one.
const RECONNECT: Duration = Duration::from_millis(200);

/// One process tree under its shim. It stays, dead, until its death is recorded.
#[derive(Debug, Clone)]
pub(super) struct Worker {
    /// What its agent measures.
    pub(super) memory_bytes: u64,
    pub(super) pid: u32,
    /// Which template it runs.
    pub(super) version: String,
    /// What it has of its node's resources.
    pub(super) units: Vec<ResourceUnits>,
    pub(super) alive: bool,
    pub(super) ready_at: Tick,
    ends_at: Option<(Tick, DeathCause)>,
    pub(super) node_deadline: Tick,
    pub(super) owner_deadline: Tick,
    /// The process it watches, and whether its end, or that of the agent, is its own.
    pub(super) owner_pid: Option<u32>,
    pub(super) kill_on_owner_exit: bool,
    /// Since when that is so.
    pub(super) watches: Tick,
    kill_on_agent_loss: bool,
    pub(super) death: Option<DeathCause>,
    pub(super) died_at: Tick,
}

impl Worker {
    /// As the shim does: nothing runs past a deadline, and nothing is started past one.
    fn keep_deadlines(&mut self, now: Tick) {
        if now >= self.owner_deadline {
            self.die(DeathCause::OwnerGone, now);
        }
        if now >= self.node_deadline {
            self.die(DeathCause::LeaseExpired, now);
        }
    }

    /// Whether it runs and was not asked to end.
    pub(super) fn is_well(&self) -> bool {
        self.alive && self.ends_at.is_none()
    }

    fn die(&mut self, cause: DeathCause, now: Tick) {
        if self.alive {
            self.alive = false;
            self.death = Some(cause);
            self.died_at = now;
        }
    }
}

/// What the arbiter said last of a pool.
#[derive(Debug, Clone)]
struct Told {
    end: Tick,
    owner_pid: Option<u32>,
    kill_on_owner_exit: bool,
    kill_on_agent_loss: bool,
    grace: Duration,
    job_grace: Duration,
    jobs: std::collections::BTreeSet<u64>,
}

impl Told {
    /// As the agent does: what a worker may outlive its node's lease by.
    fn beyond(&self, id: &WorkerId) -> Duration {
        let span = match self.jobs.contains(&id.incarnation.0) {
            true => self.job_grace.max(self.grace),
            false => self.grace,
        };
        let terms = Terms::usual(Duration::from_secs(20)).unwrap();
        terms.holder_beyond(span)
    }
}

/// The agent's memory, which goes with it.
#[derive(Debug, Default)]
pub(super) struct Agent {
    /// The stream it has, and when it tries for one next.
    pub(super) stream: Option<u64>,
    retry_at: Tick,
    seq: u64,
    ack_seen: u64,
    sent: BTreeMap<u64, Tick>,
    last_sent: Tick,
    interval: Duration,
    holder: Option<Holder>,
    pools: BTreeMap<PoolName, Told>,
    known: BTreeMap<WorkerId, WorkerReport>,
    pending: Vec<WorkerReport>,
    /// What it told on its stream, by which it is summed up; and whether it was asked for all of it.
    told: BTreeMap<WorkerId, i32>,
    resync: bool,
    /// Of the node's lease, as it was told; and whether it has yet to say that it was.
    pub(super) epoch: u64,
    unsaid: bool,
    adopted: std::collections::BTreeSet<WorkerId>,
    told_exits: std::collections::BTreeSet<(String, u64)>,
    watched: BTreeMap<(String, u64), u32>,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: NodeName,
    pub(super) boot_id: String,
    pub(super) zone: &'static str,
    pub(super) gpus: u32,
    pub(super) cut: bool,
    pub(super) agent: Option<Agent>,
    pub(super) workers: BTreeMap<WorkerId, Worker>,
    /// Since when it has been connected without a break; never while it is not.
    pub(super) connected: Tick,
}

pub(super) fn report(id: &WorkerId, phase: WorkerPhase, pid: u32) -> WorkerReport {
    WorkerReport {
        worker: Some(WorkerRef::from(id)),
        phase: phase.into(),
        pid,
        address: if pid == 0 {
            String::new()
        } else {
            format!("unix:/{id}")
        },
        ..WorkerReport::default()
    }
}

fn dead(id: &WorkerId, cause: DeathCause) -> WorkerReport {
    let death = Death {
        cause,
        exit_code: None,
        signal: None,
        detail: String::new(),
        stderr_tail: String::new(),
        measures: None,
    };
    WorkerReport {
        death: Some(common::Death::from(&death)),
        ..report(id, WorkerPhase::Dead, 0)
    }
}

impl Agent {
    fn tell(&mut self, report: &WorkerReport) {
        let id = WorkerRef::required(report.worker.as_ref()).unwrap();
        if report.phase() == WorkerPhase::Dead {
            self.told.remove(&id);
        } else {
            self.told.insert(id, report.phase);
        }
    }

    fn tell_all(&mut self) -> Vec<WorkerReport> {
        self.told.clear();
        let all: Vec<_> = self.known.values().cloned().collect();
        all.iter().for_each(|report| self.tell(report));
        all
    }

    /// A fault: it forgets what it has told of one of its workers.
    pub(super) fn lose_worker(&mut self, nth: usize) {
        if let Some(id) = self.told.keys().nth(nth).cloned() {
            self.told.remove(&id);
        }
    }
}

impl Node {
    pub(super) fn new(name: &str, boot_id: &str, zone: &'static str, gpus: u32) -> Self {
        Self {
            name: name.parse().unwrap(),
            boot_id: boot_id.to_owned(),
            zone,
            gpus,
            cut: false,
            agent: Some(Agent::default()),
            workers: BTreeMap::new(),
            connected: Tick::ZERO,
        }
    }

    pub(super) fn hello(&mut self, stream: u64, now: Tick) -> Hello {
        let agent = self.agent.as_mut().unwrap();
        agent.stream = Some(stream);
        (agent.seq, agent.ack_seen) = (0, 0);
        agent.sent.clear();
        agent.pending.clear();
        (agent.resync, agent.unsaid) = (false, false);
        agent.tell_all();
        agent.last_sent = Tick::ZERO;
        agent.interval = Duration::from_millis(100);
        self.connected = now;
        Hello {
            node: self.name.to_string(),
            address: "unix:/agent".to_owned(),
            launchers: vec!["exec".to_owned()],
            boot_id: self.boot_id.clone(),
            pid_namespace: 1,
            workers: agent.known.values().cloned().collect(),
            instance: "one".to_owned(),
            guarantee: "G1".to_owned(),
            labels: [("zone".to_owned(), self.zone.to_owned())].into(),
            resources: [("gpu".to_owned(), self.gpus)].into(),
            epoch: agent.epoch,
            ..Hello::default()
        }
    }

    /// It was refused as one that was followed: it comes again as one that holds nothing.
    pub(super) fn on_fenced(&mut self, now: Tick) {
        self.agent.as_mut().unwrap().epoch = 0;
        self.lose_stream(now);
    }

    /// Whether its agent is about to open a stream.
    pub(super) fn wants_stream(&self, now: Tick) -> bool {
        let lonely = |agent: &Agent| agent.stream.is_none() && now >= agent.retry_at;
        !self.cut && self.agent.as_ref().is_some_and(lonely)
    }

    pub(super) fn lose_stream(&mut self, now: Tick) {
        self.connected = Tick::NEVER;
        if let Some(agent) = &mut self.agent {
            agent.stream = None;
            agent.retry_at = now + RECONNECT;
        }
    }

    pub(super) fn kill_agent(&mut self, now: Tick) {
        self.agent = None;
        self.connected = Tick::NEVER;
        for worker in self
            .workers
            .values_mut()
            .filter(|worker| worker.kill_on_agent_loss)
        {
            worker.die(DeathCause::AgentGone, now);
        }
    }

    /// A new agent finds what is there, and has reached none of it yet.
    pub(super) fn start_agent(&mut self) {
        if self.agent.is_none() {
            let known = self.workers.iter().map(|(id, worker)| {
                let resources = worker.units.clone();
                let known = WorkerReport {
                    resources,
                    ..report(id, WorkerPhase::Starting, 0)
                };
                (id.clone(), known)
            });
            self.agent = Some(Agent {
                known: known.collect(),
                adopted: self.workers.keys().cloned().collect(),
                ..Agent::default()
            });
        }
    }

    pub(super) fn kill_worker(&mut self, nth: usize, cause: DeathCause, now: Tick) {
        let mut alive = self.workers.values_mut().filter(|worker| worker.alive);
        if let Some(worker) = alive.nth(nth) {
            worker.die(cause, now);
        }
    }

    /// What the shims do by themselves, and what the agent sees of it.
    pub(super) fn tick(&mut self, running: impl Fn(u32) -> bool, now: Tick) {
        for worker in self.workers.values_mut() {
            if let Some((at, cause)) = worker.ends_at
                && now >= at
            {
                worker.die(cause, now);
            }
            if worker.kill_on_owner_exit && worker.owner_pid.is_some_and(|pid| !running(pid)) {
                worker.die(DeathCause::OwnerGone, now);
            }
            worker.keep_deadlines(now);
        }
        let Some(agent) = &mut self.agent else { return };
        for (id, worker) in &self.workers {
            let seen = match worker.death {
                Some(cause) => dead(id, cause),
                None if worker.ends_at.is_some() => report(id, WorkerPhase::Stopping, worker.pid),
                None if now >= worker.ready_at => report(id, WorkerPhase::Ready, worker.pid),
                None => report(id, WorkerPhase::Starting, worker.pid),
            };
            let seen = WorkerReport {
                adopted: agent.adopted.contains(id),
                memory_bytes: worker.memory_bytes,
                resources: worker.units.clone(),
                ..seen
            };
            if let Some(told) = agent.known.get_mut(id)
                && *told != seen
            {
                // As the agent does with one that it finds: that it runs, and at once that it is ready.
                if told.pid == 0 && seen.adopted && seen.phase() == WorkerPhase::Ready {
                    // It says hello first, before it has reached any.
                    if agent.stream.is_none() {
                        continue;
                    }
                    let mut found = seen.clone();
                    found.set_phase(WorkerPhase::Starting);
                    agent.pending.push(found);
                }
                *told = seen.clone();
                agent.pending.push(seen);
            }
        }
    }

    /// The beat that is due, if one is.
    pub(super) fn beat(
        &mut self,
        running: impl Fn(u32) -> bool,
        now: Tick,
    ) -> Option<HeartbeatRequest> {
        let agent = self.agent.as_mut()?;
        agent.stream?;
        let ended = agent.watched.iter().filter(|(_, pid)| !running(**pid));
        let owner_exits: Vec<_> = ended
            .filter(|(key, _)| !agent.told_exits.contains(*key))
            .map(|((owner, epoch), _)| OwnerExit {
                owner: owner.clone(),
                epoch: *epoch,
            })
            .collect();
        let news = !agent.pending.is_empty() || !owner_exits.is_empty() || agent.resync;
        let in_flight = agent.seq > agent.ack_seen;
        if now < agent.last_sent + agent.interval && (!news || in_flight) {
            return None;
        }
        for exit in &owner_exits {
            agent.told_exits.insert((exit.owner.clone(), exit.epoch));
        }
        agent.seq += 1;
        agent.sent.insert(agent.seq, now);
        agent.last_sent = now;
        let mut reports = std::mem::take(&mut agent.pending);
        let table = std::mem::take(&mut agent.resync).then(|| {
            reports.clear();
            let workers = agent.tell_all();
            node::WorkerTable { workers }
        });
        reports.iter().for_each(|report| agent.tell(report));
        let mut digest = Digest::default();
        agent
            .told
            .iter()
            .for_each(|(id, phase)| digest.add(id, *phase));
        Some(HeartbeatRequest {
            hello: None,
            seq: agent.seq,
            ack_seen: agent.ack_seen,
            reports,
            owner_exits,
            goodbye: false,
            digest: Some(digest.sum()),
            count: digest.count(),
            table,
            clock_step_ms: 0,
            epoch: match std::mem::take(&mut agent.unsaid) {
                true => agent.epoch,
                false => 0,
            },
        })
    }

    /// As the agent's `on_answer`. Tells what it was ordered to start.
    pub(super) fn on_message(&mut self, message: HeartbeatResponse, now: Tick) -> Vec<StartWorker> {
        let Some(agent) = &mut self.agent else {
            return Vec::new();
        };
        agent.resync |= message.resync;
        if message.epoch != 0 {
            assert!(message.epoch >= agent.epoch, "A12: an earlier one is told");
            (agent.epoch, agent.unsaid) = (message.epoch, true);
        }
        if message.seq > 0 {
            let Some(&sent) = agent.sent.get(&message.seq) else {
                return Vec::new();
            };
            agent.ack_seen = agent.ack_seen.max(message.seq);
            agent.sent.retain(|&seq, _| seq >= message.seq);
            agent.interval = Duration::from_millis(message.beat_ms);
            let ttl = Duration::from_millis(message.ttl_ms);
            if !ttl.is_zero() {
                let holder = agent.holder.as_mut();
                if holder.is_none_or(|holder| holder.on_ack(sent, ttl, now) == Standing::Expired) {
                    agent.holder = Some(Holder::granted(Terms::usual(ttl).unwrap(), sent));
                }
            }
            for owner in &message.owners {
                let process = owner.process.as_ref();
                let pid = process
                    .filter(|process| process.boot_id == self.boot_id)
                    .map(|process| process.pid);
                if let Some(pid) = pid {
                    agent
                        .watched
                        .insert((owner.owner.clone(), owner.epoch), pid);
                }
                for pool in &owner.pools {
                    let end = pool
                        .remaining_ms
                        .map_or(Tick::NEVER, |ms| sent + Duration::from_millis(ms));
                    let told = Told {
                        end,
                        owner_pid: pid,
                        kill_on_owner_exit: pool.kill_on_owner_exit,
                        kill_on_agent_loss: pool.kill_on_agent_loss,
                        grace: Duration::from_millis(pool.partition_grace_ms),
                        job_grace: Duration::from_millis(pool.job_grace_ms),
                        jobs: pool.jobs.iter().copied().collect(),
                    };
                    agent.pools.insert(pool.pool.parse().unwrap(), told);
                }
            }
            let told = |pool: &PoolName| {
                let mut pools = message.owners.iter().flat_map(|owner| &owner.pools);
                pools.any(|told| told.pool == pool.as_str())
            };
            let (pools, known) = (&mut agent.pools, &agent.known);
            pools.retain(|pool, _| told(pool) || known.keys().any(|id| id.pool == *pool));
            let lease = agent.holder.as_ref().map_or(Tick::ZERO, Holder::deadline);
            for (id, worker) in &mut self.workers {
                if let Some(told) = agent.pools.get(&id.pool) {
                    worker.node_deadline = match lease > Tick::ZERO {
                        true => lease + told.beyond(id),
                        false => Tick::ZERO,
                    };
                    worker.owner_deadline = told.end;
                    let before = (worker.owner_pid, worker.kill_on_owner_exit);
                    if before != (told.owner_pid, told.kill_on_owner_exit) {
                        worker.watches = now;
                    }
                    worker.owner_pid = told.owner_pid;
                    worker.kill_on_owner_exit = told.kill_on_owner_exit;
                    worker.kill_on_agent_loss = told.kill_on_agent_loss;
                }
            }
        }
        let orders = message.orders.into_iter().filter_map(|order| order.order);
        orders
            .filter_map(|order| self.on_order(order, now))
            .collect()
    }

    fn on_order(&mut self, order: Order, now: Tick) -> Option<StartWorker> {
        let agent = self.agent.as_mut()?;
        let id = |worker: &Option<WorkerRef>| WorkerRef::required(worker.as_ref()).unwrap();
        match order {
            Order::Start(start) => {
                let id = id(&start.worker);
                if agent.known.contains_key(&id) {
                    return None;
                }
                let (owner_deadline, owner_pid) = agent
                    .pools
                    .get(&id.pool)
                    .map_or((Tick::ZERO, None), |told| (told.end, told.owner_pid));
                let lease = agent.holder.as_ref().map_or(Tick::ZERO, Holder::deadline);
                let told = agent.pools.get(&id.pool);
                // Nothing is begun by a node without a lease, whatever runs on there.
                let node_deadline = match (told, now < lease) {
                    (Some(told), true) => lease + told.beyond(&id),
                    (None, _) | (_, false) => Tick::ZERO,
                };
                let pid = u32::try_from(id.incarnation.0).unwrap() + 1000;
                let mut worker = Worker {
                    kill_on_owner_exit: start.kill_on_owner_exit,
                    kill_on_agent_loss: start.kill_on_agent_loss,
                    memory_bytes: 0,
                    version: start.template.as_ref().unwrap().env[VERSION].clone(),
                    units: start.resources.clone(),
                    pid,
                    alive: true,
                    ready_at: now + Duration::from_millis(100 + u64::from(pid % 7) * 40),
                    ends_at: None,
                    node_deadline,
                    owner_deadline,
                    owner_pid,
                    watches: now,
                    death: None,
                    died_at: Tick::ZERO,
                };
                worker.keep_deadlines(now);
                let known = WorkerReport {
                    resources: start.resources.clone(),
                    ..report(&id, WorkerPhase::Waiting, 0)
                };
                agent.known.insert(id.clone(), known);
                self.workers.insert(id, worker);
                return Some(start);
            }
            Order::Stop(stop) => {
                if let Some(worker) = self.workers.get_mut(&id(&stop.worker)) {
                    let at = now + Duration::from_millis(stop.grace_ms);
                    let cause = stop.cause().to_cause(None, None);
                    let first = worker.ends_at.map_or(cause, |(_, cause)| cause);
                    worker.ends_at =
                        Some((worker.ends_at.map_or(at, |(end, _)| end.min(at)), first));
                }
            }
            Order::Forget(node::ForgetWorker { worker }) => {
                let id = id(&worker);
                assert!(
                    self.workers.get(&id).is_none_or(|worker| !worker.alive),
                    "A3: {id} is forgotten alive"
                );
                agent.known.remove(&id);
                agent.told.remove(&id);
                self.workers.remove(&id);
            }
            Order::Signal(_) => {}
        }
        None
    }

    pub(super) fn reboot(&mut self) {
        self.agent = None;
        self.connected = Tick::NEVER;
        self.workers.clear();
    }
}
