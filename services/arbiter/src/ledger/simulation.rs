//! The ledger against a small model of the world: agents and shims that keep deadlines as the real
//! ones do, owners, a network that delays, loses and cuts, and restarts of everybody.
//!
//! Checked at every step: **A1** to **A3**, **A5** to **A12**, **P1** and **P3**; once quiet, that every pool has its
//! workers, that discovery is told exactly what is ready, and **A4** when everything is deleted.

mod gateway;
mod going_on;
mod grants;
mod growth;
mod invariants;
mod jobs;
mod leaders;
mod masses;
mod node;
mod owner;
mod partitions;
mod pools;
mod rollouts;
mod world;

use std::time::Duration;

use proptest::{collection::vec, prelude::*};
use tether_proto::worker::NodeState;
use tether_types::{DeathCause, Incarnation, WorkerId};

use owner::{POOLS, Wishes};
use world::World;

/// Something that happens to the world.
#[derive(Debug, Clone)]
enum Action {
    Cut(usize),
    Heal(usize),
    LoseStream(usize, bool),
    KillAgent(usize),
    StartAgent(usize),
    Reboot(usize),
    RestartArbiter,
    ChangeLeader(u64),
    KillWorker(usize, usize, i32),
    KillOwner(usize),
    Silence(usize),
    Speak(usize),
    Open(usize, bool),
    Goodbye(usize),
    Apply(usize, u32),
    Scale(usize, u32),
    Drain(usize, bool),
    Delete(usize),
    StopWorker(usize, u32),
    Switch(usize, &'static str),
    Grow(usize, usize),
    Call(usize, usize),
    RestartGateway(usize, bool),
    StartJob(usize, usize),
    AdoptJob(usize, usize),
    ReportJob(usize, usize, bool),
    AcknowledgeJob(usize, usize),
    CancelJob(usize, usize),
    ChangeGrace(u64, u64),
    DeclareDead(usize),
    LoseReports(usize),
    LoseWorker(usize, usize),
    SetNode(usize, NodeState),
    ChangeTemplate(usize),
}

impl Action {
    /// Whether it makes an agent tell something else than what is.
    fn confuses(&self) -> bool {
        matches!(self, Self::LoseReports(_) | Self::LoseWorker(..))
    }
}

fn action() -> impl Strategy<Value = Action> {
    let (node, owner, pool) = (0..3_usize, 0..2_usize, 0..POOLS.len());
    let mode = prop::sample::select(&["coupled", "independent"]);
    prop_oneof![
        2 => node.clone().prop_map(Action::Cut),
        3 => node.clone().prop_map(Action::Heal),
        2 => (node.clone(), any::<bool>()).prop_map(|(node, noticed)| Action::LoseStream(node, noticed)),
        2 => node.clone().prop_map(Action::KillAgent),
        3 => node.clone().prop_map(Action::StartAgent),
        1 => node.clone().prop_map(Action::Reboot),
        2 => Just(Action::RestartArbiter),
        2 => (0..4_000_u64).prop_map(Action::ChangeLeader),
        3 => (node, 0..4_usize, 0..2).prop_map(|(node, nth, code)| Action::KillWorker(node, nth, code)),
        1 => owner.clone().prop_map(Action::KillOwner),
        1 => owner.clone().prop_map(Action::Silence),
        2 => owner.clone().prop_map(Action::Speak),
        3 => (owner.clone(), any::<bool>()).prop_map(|(owner, another)| Action::Open(owner, another)),
        1 => owner.prop_map(Action::Goodbye),
        5 => (pool.clone(), 0..4_u32).prop_map(|(pool, size)| Action::Apply(pool, size)),
        2 => (pool.clone(), 0..4_u32).prop_map(|(pool, size)| Action::Scale(pool, size)),
        1 => (pool.clone(), any::<bool>()).prop_map(|(pool, drain)| Action::Drain(pool, drain)),
        2 => pool.clone().prop_map(Action::Delete),
        1 => (pool.clone(), 0..4_u32).prop_map(|(pool, slot)| Action::StopWorker(pool, slot)),
        2 => (pool, mode).prop_map(|(pool, mode)| Action::Switch(pool, mode)),
        1 => (0..3_usize, 0..4_usize).prop_map(|(node, nth)| Action::Grow(node, nth)),
        4 => (0..2_usize, 0..8_usize).prop_map(|(gateway, nth)| Action::Call(gateway, nth)),
        1 => (0..2_usize, any::<bool>()).prop_map(|(gateway, dies)| Action::RestartGateway(gateway, dies)),
        6 => (0..POOLS.len(), 0..8_usize).prop_map(|(pool, nth)| Action::StartJob(pool, nth)),
        2 => (0..POOLS.len(), 0..8_usize).prop_map(|(pool, nth)| Action::AdoptJob(pool, nth)),
        6 => (0..POOLS.len(), 0..8_usize, prop::bool::weighted(0.2)).prop_map(|(pool, nth, done)| Action::ReportJob(pool, nth, done)),
        1 => (0..POOLS.len(), 0..8_usize).prop_map(|(pool, nth)| Action::AcknowledgeJob(pool, nth)),
        1 => (0..POOLS.len(), 0..8_usize).prop_map(|(pool, nth)| Action::CancelJob(pool, nth)),
        1 => graces().prop_map(|(grace, job)| Action::ChangeGrace(grace, job)),
        1 => (0..3_usize).prop_map(Action::DeclareDead),
        1 => (0..3_usize).prop_map(Action::LoseReports),
        1 => (0..3_usize, 0..4_usize).prop_map(|(node, nth)| Action::LoseWorker(node, nth)),
        2 => (0..3_usize, node_state()).prop_map(|(node, state)| Action::SetNode(node, state)),
        2 => (0..POOLS.len()).prop_map(Action::ChangeTemplate),
    ]
}

fn node_state() -> impl Strategy<Value = NodeState> {
    prop::sample::select(&[NodeState::Open, NodeState::Cordoned, NodeState::Drained])
}

impl World {
    fn act(&mut self, action: &Action) {
        let now = self.now;
        match *action {
            Action::Cut(node) => {
                self.nodes[node].cut = true;
                self.lose_stream(node, false);
            }
            Action::Heal(node) => self.nodes[node].cut = false,
            Action::LoseStream(node, noticed) => self.lose_stream(node, noticed),
            Action::KillAgent(node) => self.nodes[node].kill_agent(now),
            Action::StartAgent(node) => self.nodes[node].start_agent(),
            Action::Reboot(node) => self.nodes[node].reboot(),
            Action::RestartArbiter => self.restart_arbiter(),
            Action::ChangeLeader(pause_ms) => self.change_leader(Duration::from_millis(pause_ms)),
            Action::KillWorker(node, nth, code) => {
                self.nodes[node].kill_worker(nth, DeathCause::Exited(code), now);
            }
            Action::KillOwner(owner) => {
                self.owners[owner].running = false;
                self.owners[owner].changed = now;
            }
            Action::Silence(owner) => self.owners[owner].silent = true,
            Action::Speak(owner) => self.owners[owner].silent = false,
            Action::Open(owner, another) => self.open(owner, another),
            Action::Goodbye(owner) => self.goodbye(owner),
            Action::Apply(pool, size) => drop(self.apply(pool, size)),
            Action::Switch(pool, mode) => drop(self.switch(pool, mode)),
            Action::Grow(node, nth) => {
                if let Some(worker) = self.nodes[node].workers.values_mut().nth(nth) {
                    worker.memory_bytes += 1_000;
                }
            }
            Action::Call(gateway, nth) => self.call(gateway, nth, 3),
            Action::RestartGateway(gateway, dies) => self.restart_gateway(gateway, dies),
            Action::StartJob(pool, nth) => self.start_job(pool, nth),
            Action::AdoptJob(pool, nth) => self.adopt_job(pool, nth),
            Action::ReportJob(pool, nth, done) => self.report_job(pool, nth, done),
            Action::AcknowledgeJob(pool, nth) => self.acknowledge_job(pool, nth),
            Action::CancelJob(pool, nth) => self.cancel_job(pool, nth),
            Action::ChangeGrace(grace, job) => {
                (self.wishes.grace_ms, self.wishes.job_ttl_ms) = (grace, job);
            }
            // A witness says what is so.
            Action::DeclareDead(node) => {
                if self.nodes[node]
                    .workers
                    .values()
                    .all(|worker| !worker.alive)
                {
                    let name = self.nodes[node].name.clone();
                    drop(self.ledger.declare_dead(&name, "a test", now));
                }
            }
            Action::LoseReports(node) => drop(self.lose_reports(node)),
            Action::LoseWorker(node, nth) => {
                let agent = self.nodes[node].agent.as_mut();
                agent.into_iter().for_each(|agent| agent.lose_worker(nth));
            }
            Action::SetNode(node, state) => self.set_node(node, state),
            Action::ChangeTemplate(pool) => self.change_template(pool),
            Action::Scale(pool, size) => {
                drop(self.ledger.scale_pool(POOLS[pool].0, size, None, now))
            }
            Action::Drain(pool, drain) => drop(self.ledger.drain_pool(POOLS[pool].0, drain, now)),
            Action::Delete(pool) => drop(self.ledger.delete_pool(POOLS[pool].0, now)),
            Action::StopWorker(pool, slot) => {
                let id = WorkerId {
                    pool: POOLS[pool].0.parse().unwrap(),
                    slot,
                    incarnation: Incarnation(0),
                };
                self.ledger.stop_worker(&id, None);
            }
        }
        self.settle();
    }

    /// What an operator says of a node, known or not.
    fn set_node(&mut self, node: usize, state: NodeState) {
        self.rolls |= state == NodeState::Drained;
        let name = self.nodes[node].name.clone();
        drop(self.ledger.set_node_state(&name, state, self.now));
        self.settle();
    }

    /// Everybody is back, and every pool is wanted.
    fn calm(&mut self) {
        for node in &mut self.nodes {
            node.cut = false;
            node.start_agent();
        }
        for node in 0..self.nodes.len() {
            self.set_node(node, NodeState::Open);
        }
        self.run(Duration::from_secs(4));
        for owner in 0..self.owners.len() {
            self.open(owner, false);
        }
    }
}

/// A grace and a job's lease, in milliseconds: none, short or long beside a node's lease of 2 s.
fn graces() -> impl Strategy<Value = (u64, u64)> {
    prop_oneof![
        Just((0, 0)),
        Just((0, 6_000)),
        Just((700, 0)),
        Just((700, 5_000)),
        Just((3_000, 9_000)),
    ]
}

fn wishes() -> impl Strategy<Value = Wishes> {
    let depends_on = prop::sample::subsequence(
        vec![
            ("coupled-0", "lasting-0"),
            ("coupled-1", "lasting-1"),
            ("lasting-1", "spread-1"),
        ],
        0..=3,
    );
    let yes = any::<(bool, bool, bool, bool, bool, bool)>();
    let yes = (yes, (0..3_u32, 0..2_u32));
    (depends_on, 0..3_u32, 0..4_u32, yes, graces()).prop_map(
        |(depends_on, spares, rate, yes, (grace_ms, job_ttl_ms))| {
            let ((ages, grows, serves, gpus, zoned, packed), budget) = yes;
            Wishes {
                gpus,
                zoned,
                packed,
                budget,
                grace_ms,
                job_ttl_ms,
                depends_on: depends_on.into_iter().collect(),
                spares,
                starts_per_second: rate * 2,
                max_lifetime_ms: if ages { 3_000 } else { 0 },
                max_memory_bytes: if grows { 2_000 } else { 0 },
                max_calls: if serves { 6 } else { 0 },
                ..Wishes::default()
            }
        },
    )
}

/// Runs one schedule to its quiet end. Tells how many workers it started.
fn run(seed: u64, wishes: Wishes, actions: &[(Action, u64)]) -> u64 {
    let mut world = World::with(seed, wishes);
    world.open(0, false);
    world.open(1, false);
    for (action, wait_ms) in actions {
        world.act(action);
        world.run(Duration::from_millis(*wait_ms));
    }
    world.calm();
    let confused = actions.iter().any(|(action, _)| action.confuses());
    assert!(
        confused || world.resyncs == 0,
        "all is well, and all is asked for"
    );
    // What grows old would not be quiet.
    (world.wishes.max_lifetime_ms, world.wishes.max_memory_bytes) = (0, 0);
    world.wishes.max_calls = 0;
    for name in std::mem::take(&mut world.wishes.modes).into_keys() {
        drop(world.ledger.delete_pool(&name, world.now));
        world.settle();
    }
    world.run(Duration::from_secs(4));
    let sizes = [2, 1, 2, 3, 1];
    // Those that others depend on first.
    for pool in [4, 1, 3, 0, 2] {
        assert!(world.apply(pool, sizes[pool]), "{}", POOLS[pool].0);
    }
    world.end_jobs_of_stand_ins();
    world.run(Duration::from_secs(8));
    world.check_ready(&sizes);

    // Once more in calm weather: a death on each node, a size that changes its mind, ...
    for node in &mut world.nodes {
        node.kill_worker(0, DeathCause::Exited(1), world.now);
    }
    world.act(&Action::Scale(3, 1));
    world.act(&Action::Scale(3, 3));
    world.run(Duration::from_secs(6));
    world.check_ready(&sizes);
    // ... every node away for longer than its lease, so that its workers wait for one, ...
    let before = world.starts;
    for node in 0..world.nodes.len() {
        world.act(&Action::Reboot(node));
        world.lose_stream(node, false);
    }
    world.run(Duration::from_secs(4));
    for node in &mut world.nodes {
        node.start_agent();
    }
    world.run(Duration::from_secs(6));
    world.check_ready(&sizes);
    let spares = world.wishes.spares * 5;
    let all = u64::from(sizes.iter().sum::<u32>() + spares);
    assert_eq!(world.starts - before, all, "each worker is started once");

    // ... and orders to stop that go down a stream nobody hears.
    for node in 0..world.nodes.len() {
        world.lose_stream(node, false);
    }
    for (name, ..) in POOLS {
        world.ledger.delete_pool(name, world.now).unwrap();
        world.settle();
    }
    world.run(Duration::from_secs(2));
    world.goodbye(0);
    world.goodbye(1);
    world.run(Duration::from_secs(2));
    world.check_empty();
    world.starts
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// A1 to A12, P1, P3 and liveness.
    #[test]
    fn whatever_fails_and_comes_back_the_ledger_keeps_its_promises(
        seed in any::<u64>(),
        wishes in wishes(),
        actions in vec((action(), 0..1_500_u64), 0..40),
    ) {
        run(seed, wishes, &actions);
    }
}

#[test]
fn what_an_agent_fails_to_tell_is_found_out_and_asked_for() {
    let mut world = World::new(1);
    world.open(1, false);
    world.apply(4, 1);
    let mut lost = 0;
    for _ in 0..200 {
        world.run(world::STEP);
        lost += u32::from(world.lose_reports(0));
    }
    assert!(lost > 0 && world.resyncs > 0);
    assert_eq!(world.ledger.get_pool("spread-1").unwrap().ready, 1);

    world.resyncs = 0;
    world.act(&Action::LoseWorker(0, 0));
    world.run(Duration::from_secs(2));
    assert_eq!(world.resyncs, 1);
    let ready = world.ledger.get_pool("spread-1").unwrap().ready;
    assert_eq!((ready, world.starts), (1, 1), "and nothing came of it");
}

#[test]
fn what_was_tied_to_a_process_does_not_pass_on_to_another() {
    let mut world = World::new(1);
    world.open(0, false);
    world.apply(0, 1);
    world.apply(1, 1);
    world.run(Duration::from_secs(1));

    world.open(0, true);
    world.run(Duration::from_secs(1));

    assert!(world.ledger.get_pool("coupled-0").is_err());
    assert_eq!(world.ledger.get_pool("lasting-0").unwrap().ready, 1);
    assert_eq!(world.starts, 2, "and the lasting worker is the same");
}

/// P3, where the last word of the owner comes late and the nodes must hear of it in time.
#[test]
fn a_late_word_of_an_owner_keeps_its_workers() {
    for (seed, goodbye) in (1..20).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut world = World::new(seed);
        world.open(1, false);
        world.apply(3, 3);
        world.run(Duration::from_millis(1_000 + seed * 20));
        world.act(&Action::Silence(1));
        world.run(Duration::from_millis(1_400));

        world.act(&if goodbye {
            Action::Goodbye(1)
        } else {
            Action::Speak(1)
        });
        world.run(Duration::from_millis(1_500));

        assert_eq!(world.ledger.get_pool("lasting-1").unwrap().ready, 3);
        assert_eq!(world.starts, 3, "seed {seed}, goodbye {goodbye}");
    }
}

#[test]
fn a_pool_that_was_deleted_stays_deleted_when_the_arbiter_is_another() {
    let mut world = World::new(1);
    world.open(0, false);
    world.apply(1, 1);
    world.run(Duration::from_secs(1));
    world.nodes.iter_mut().for_each(|node| node.cut = true);
    (0..3).for_each(|node| world.lose_stream(node, true));
    world.ledger.delete_pool("lasting-0", world.now).unwrap();
    world.settle();

    world.restart_arbiter();
    assert!(world.ledger.get_pool("lasting-0").unwrap().ending);
    world.nodes.iter_mut().for_each(|node| node.cut = false);
    world.run(Duration::from_secs(2));

    assert!(world.ledger.get_pool("lasting-0").is_err());
    assert_eq!((world.workers().count(), world.starts), (0, 1));
}

#[test]
fn who_dies_with_a_machine_while_no_arbiter_is_there_serves_no_more_once_the_machine_is_heard() {
    let mut world = World::new(1);
    world.open(1, false);
    world.apply(4, 1);
    world.run(Duration::from_secs(1));
    let has_it = |node: &node::Node| !node.workers.is_empty();
    let node = world.nodes.iter().position(has_it).unwrap();
    let id = world.nodes[node].workers.keys().next().cloned().unwrap();
    // Another one is away, which might have it as far as anybody knows: nobody takes its place yet.
    let other = (node + 1) % world.nodes.len();
    world.nodes[other].cut = true;
    world.lose_stream(other, true);

    world.nodes[node].reboot();
    world.restart_arbiter();
    world.nodes[node].start_agent();
    world.run(Duration::from_millis(300));

    assert_eq!(world.died.get(&id), Some(&1));
    assert_eq!(world.starts, 1);
    assert_eq!(
        world
            .store
            .keys()
            .filter(|key| key.starts_with("serve/endpoints/"))
            .count(),
        0
    );
}

/// More than a few where somebody has the time: `TETHER_SIM_CASES=100000`.
fn cases() -> u32 {
    let wished = std::env::var("TETHER_SIM_CASES").ok();
    wished.and_then(|wished| wished.parse().ok()).unwrap_or(200)
}
