//! What is promised to workers and jobs of a node that is cut off, one scene each: two stages, and when a place
//! is filled elsewhere.

use std::time::Duration;

use tether_clock::Tick;
use tether_proto::common::Endpoint;
use tether_proto::job::{JobState, PutCheckpointRequest, ReportJobRequest};
use tether_proto::node::{HeartbeatRequest, Hello};
use tether_types::{DeathCause, NodeName, Reason, WorkerId};

use crate::effects::Ack;

use super::jobs::plain;
use super::{
    owner::{POOLS, Wishes},
    world::{STEP, World},
};

const SPREAD: usize = 4;

/// Of the model's nodes, as the ledger grants it.
const NODE_TTL: Duration = Duration::from_secs(2);

const GRACE: Duration = Duration::from_secs(3);

const JOB_TTL: Duration = Duration::from_secs(20);

/// What a grantor waits for beyond a span: two clocks that are wrong by half a per cent.
fn padded(span: Duration) -> Duration {
    span.mul_f64(1.005 / 0.995)
}

/// When the lease of a node is free, after its last beat was received.
fn lease_free() -> Duration {
    padded(NODE_TTL) + Duration::from_millis(500)
}

/// A world with one worker of a distributed pool, and the node it is on.
fn world(grace: Duration) -> (World, usize, WorkerId) {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap();
    let wishes = Wishes {
        grace_ms: millis(grace),
        job_ttl_ms: millis(JOB_TTL),
        ..Wishes::default()
    };
    let mut world = World::with(11, wishes);
    world.open(1, false);
    assert!(world.apply(SPREAD, 1));
    world.run(Duration::from_secs(1));
    let place = |(node, one): (usize, &super::node::Node)| {
        let id = one.workers.keys().next()?;
        Some((node, id.clone()))
    };
    let (node, id) = world.nodes.iter().enumerate().find_map(place).unwrap();
    (world, node, id)
}

impl World {
    /// Cuts a node off. Tells the latest moment in which the arbiter may have heard it.
    fn cut(&mut self, node: usize) -> Tick {
        self.nodes[node].cut = true;
        self.lose_stream(node, true);
        self.now
    }

    fn heal(&mut self, node: usize) {
        self.nodes[node].cut = false;
    }

    fn lives(&self, id: &WorkerId) -> bool {
        self.workers()
            .any(|(other, worker)| other == id && worker.alive)
    }

    fn ready_workers(&self) -> u32 {
        self.ledger.get_pool(POOLS[SPREAD].0).unwrap().ready
    }

    fn endpoint_is_told(&self) -> bool {
        let of_pool = |endpoint: &Endpoint| endpoint.worker.as_ref().unwrap().pool == "spread-1";
        self.endpoints().any(|endpoint| of_pool(&endpoint))
    }

    /// Runs until something is so; tells when.
    fn await_that(&mut self, what: &str, so: impl Fn(&Self) -> bool) -> Tick {
        let deadline = self.now + Duration::from_secs(60);
        while !so(self) {
            assert!(self.now < deadline, "never: {what}");
            self.run(STEP);
        }
        self.now
    }

    fn job(&self) -> tether_proto::job::Job {
        self.ledger.get_job(POOLS[SPREAD].0, "train").unwrap()
    }

    fn start(&mut self) -> tether_proto::job::Job {
        let (job, found) = self
            .ledger
            .start_job(plain(POOLS[SPREAD].0, "train"))
            .unwrap();
        assert!(!found);
        self.settle();
        job
    }

    fn report(&mut self, id: &WorkerId, fence: u64, result: Option<&[u8]>) -> Result<(), Reason> {
        let report = ReportJobRequest {
            key: "train".to_owned(),
            progress: 0.5,
            fence,
            result: result.map(Into::into),
            ..ReportJobRequest::default()
        };
        let told = self.ledger.report_job(id, report, self.now);
        self.settle();
        told.map_err(|failure| failure.reason())
    }

    fn has_started_another(&self) -> bool {
        self.starts > 1
    }
}

#[test]
fn a_node_that_is_back_within_the_grace_has_its_worker_again_and_nothing_was_started() {
    let (mut world, node, id) = world(GRACE);

    world.cut(node);
    world.await_that("its endpoint is withdrawn", |world| {
        !world.endpoint_is_told()
    });
    assert_eq!(world.ready_workers(), 0);
    assert!(world.lives(&id), "it is disabled, not dead");
    world.run(Duration::from_secs(2));
    world.heal(node);
    world.await_that("it serves again", World::endpoint_is_told);

    world.run(Duration::from_secs(5));
    assert_eq!((world.ready_workers(), world.starts), (1, 1));
    assert!(world.lives(&id));
}

/// Printed beside its bounds with `--no-capture`.
#[test]
fn beyond_the_grace_the_worker_is_dead_in_time_and_its_place_is_filled_no_sooner_than_is_safe() {
    let (mut world, node, id) = world(GRACE);

    let cut = world.cut(node);
    let withdrawn = world.await_that("withdrawn", |world| !world.endpoint_is_told());
    let dead = world.await_that("it is dead", |world| !world.lives(&id));
    let placed = world.await_that("another is started", World::has_started_another);

    // Beats are up to their interval and their time on the wire old when the cut comes.
    let lag = Duration::from_millis(600);
    let gone = NODE_TTL.mul_f64(0.995) + GRACE.mul_f64(0.995);
    let free = lease_free() + padded(GRACE);
    let told = |what: &str, at: Tick, from: Duration, to: Duration| {
        let after = at.since(cut);
        println!("{what}: {after:?} after the cut, of {from:?} to {to:?}");
        assert!(from <= after && after <= to, "{what}: {after:?}");
    };
    let from = |span: Duration| span.saturating_sub(lag);
    told(
        "disabled",
        withdrawn,
        from(lease_free()),
        lease_free() + STEP * 2,
    );
    told("dead", dead, from(gone), gone + STEP * 2);
    told("placed", placed, from(free), free + lag);
    assert!(dead < placed);
    assert_eq!(world.causes[&id], DeathCause::LeaseExpired);
}

#[test]
fn a_job_lives_on_fenced_and_is_taken_over_only_after_the_grace() {
    let (mut world, node, id) = world(GRACE);
    world.apply(SPREAD, 2);
    world.run(Duration::from_secs(1));
    let first = world.start();
    let doing = WorkerId::try_from(first.worker.as_ref().unwrap()).unwrap();
    assert_eq!(doing, id);
    world.run(Duration::from_secs(1));
    let starts = world.starts;

    world.cut(node);
    world.await_that("it is orphaned", |world| {
        world.job().state() == JobState::Orphaned
    });
    let early = world.ledger.adopt_job(POOLS[SPREAD].0, "train", world.now);
    assert_eq!(early.unwrap_err().reason(), Reason::NoWorkerReady);
    assert_eq!(
        world.report(&id, first.fence, None),
        Ok(()),
        "it is the one that counts"
    );
    world.run(GRACE + Duration::from_secs(1));
    assert!(world.lives(&id), "a job outlives the grace");
    let (second, adopted) = world
        .ledger
        .adopt_job(POOLS[SPREAD].0, "train", world.now)
        .unwrap();
    world.settle();

    assert!(adopted && second.fence > first.fence && second.worker != first.worker);
    let refused = ReportJobRequest {
        key: "train".to_owned(),
        fence: first.fence,
        result: Some(b"stale".to_vec()),
        ..ReportJobRequest::default()
    };
    let refused = world
        .ledger
        .report_job(&id, refused, world.now)
        .unwrap_err();
    let holder = WorkerId::try_from(second.worker.as_ref().unwrap()).unwrap();
    assert_eq!(refused.reason(), Reason::LeaseFenced);
    assert!(
        refused.to_string().contains(&format!("worker `{holder}`")),
        "{refused}"
    );
    assert_eq!(world.report(&holder, second.fence, Some(b"done")), Ok(()));
    world.heal(node);
    world.run(Duration::from_secs(2));
    assert!(world.lives(&id), "and it is a worker like any other again");
    assert_eq!((world.ready_workers(), world.starts), (2, starts));
    assert_eq!(world.job().result, b"done");
}

#[test]
fn another_arbiter_holds_the_place_of_a_job_for_as_long() {
    let (mut world, node, id) = world(GRACE);
    world.start();
    world.run(Duration::from_secs(1));
    world.cut(node);

    world.restart_arbiter();
    let begun = world.now;
    world.await_that("the worker ends", |world| !world.lives(&id));
    assert!(!world.has_started_another());
    let placed = world.await_that("another is started", World::has_started_another);

    let free = padded(JOB_TTL) + Duration::from_millis(500);
    let after = placed.since(begun);
    assert!(
        free <= after && after <= free + Duration::from_millis(500),
        "{after:?}"
    );
    assert_eq!(world.job().state(), JobState::Lost);
}

#[test]
fn the_death_of_a_worker_with_a_job_is_recorded_although_the_others_of_its_node_died_before_another_arbiter_came()
 {
    let (mut world, node, id) = world(Duration::ZERO);
    assert!(world.apply(SPREAD, 4));
    world.run(Duration::from_secs(1));
    assert!(world.nodes[node].workers.len() > 1, "it is not alone");
    world.start();
    world.run(Duration::from_secs(1));
    world.cut(node);
    world.run(lease_free() + STEP);
    let dead = world.died.len();
    assert!(dead > 0 && !world.died.contains_key(&id), "it lives on");

    world.restart_arbiter();
    world.await_that("it ends", |world| !world.lives(&id));
    world.await_that("it is known", |world| world.died.contains_key(&id));
    world.heal(node);
    world.run(Duration::from_secs(2));

    assert_eq!(world.died.get(&id), Some(&1), "and told once");
    assert_eq!(world.causes[&id], DeathCause::LeaseExpired);
}

#[test]
fn a_job_is_lost_once_it_is_known_that_nobody_does_it_however_late_the_next_worker_is_due() {
    let (mut world, node, _) = world(Duration::ZERO);
    // The death that is written makes another arbiter wait before it starts the next one.
    world.nodes[node].kill_worker(0, DeathCause::Exited(1), world.now);
    world.run(Duration::from_secs(1));
    world.start();
    world.nodes.iter_mut().for_each(super::node::Node::reboot);
    world.restart_arbiter();
    assert_eq!(world.job().state(), JobState::Running);

    let nodes = world.nodes.iter_mut();
    nodes.for_each(super::node::Node::start_agent);
    world.run(STEP);

    assert_eq!(world.job().state(), JobState::Lost);
    world.await_that("another is ready", |world| world.ready_workers() == 1);
}

#[test]
fn a_place_is_held_for_a_job_until_its_node_has_heard_of_the_end() {
    for heard in [Heard::Nothing, Heard::BeatWithoutAnswer, Heard::Answer] {
        let (mut world, node, id) = world(GRACE);
        let job = world.start();
        world.run(Duration::from_secs(1));
        if heard == Heard::Nothing {
            world.cut(node);
        }
        world.report(&id, job.fence, Some(b"done")).unwrap();
        let name = world.nodes[node].name.clone();
        let received = |world: &World| world.ledger.nodes[&name].last.0;
        let before = received(&world);
        match heard {
            Heard::Nothing => {}
            Heard::BeatWithoutAnswer => {
                world.await_that("a beat", |world| received(world) > before);
            }
            Heard::Answer => world.run(Duration::from_secs(1)),
        }
        let cut = world.cut(node);
        let placed = world.await_that("another is started", World::has_started_another);

        let after = placed.since(cut);
        let short = lease_free() + padded(GRACE) + Duration::from_millis(600);
        assert_eq!(
            after < short,
            heard == Heard::Answer,
            "{heard:?}: {after:?}"
        );
        let long = JOB_TTL.saturating_sub(Duration::from_secs(1));
        assert!(
            heard == Heard::Answer || after > long,
            "{heard:?}: {after:?}"
        );
        assert_eq!(world.job().state(), JobState::Done, "a result is kept");
    }
}

#[test]
fn a_fence_is_greater_than_any_before_also_where_an_older_worker_takes_over_and_the_arbiter_is_another()
 {
    let (mut world, _, older) = world(GRACE);
    world.apply(SPREAD, 2);
    world.run(Duration::from_secs(1));
    world
        .ledger
        .start_job(plain(POOLS[SPREAD].0, "other"))
        .unwrap();
    let first = world.start();
    let younger = WorkerId::try_from(first.worker.as_ref().unwrap()).unwrap();
    assert!(younger.incarnation > older.incarnation);
    world.restart_arbiter();
    world.run(Duration::from_secs(1));

    let now = world.now;
    for node in &mut world.nodes {
        if node.workers.contains_key(&younger) {
            node.kill_worker(0, DeathCause::Exited(1), now);
        }
    }
    world.await_that("it is lost", |world| world.job().state() == JobState::Lost);
    let second = world.start();

    assert_eq!(
        WorkerId::try_from(second.worker.as_ref().unwrap()).unwrap(),
        older
    );
    assert!(
        second.fence > first.fence,
        "{} after {}",
        second.fence,
        first.fence
    );
}

/// What passes between an arbiter that knows a job's end and the worker's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    Nothing,
    BeatWithoutAnswer,
    Answer,
}

#[test]
fn a_checkpoint_is_kept_for_the_next_attempt_and_an_earlier_one_saves_no_more() {
    let (mut world, node, id) = world(GRACE);
    let first = world.start();
    let save = |world: &mut World, fence, seq, uri: &str| {
        let checkpoint = PutCheckpointRequest {
            pool: POOLS[SPREAD].0.to_owned(),
            key: "train".to_owned(),
            fence,
            seq,
            uri: uri.to_owned(),
            ..PutCheckpointRequest::default()
        };
        let saved = world.ledger.put_checkpoint(checkpoint);
        world.settle();
        saved.map_err(|failure| failure.reason())
    };
    let at = |world: &World| world.job().checkpoint.map(|saved| (saved.seq, saved.uri));

    assert_eq!(save(&mut world, first.fence, 5, "a"), Ok(()));
    assert_eq!(save(&mut world, first.fence, 5, "a"), Ok(()), "told again");
    assert_eq!(
        save(&mut world, first.fence, 5, "b"),
        Err(Reason::ConfigInvalid)
    );
    assert_eq!(
        save(&mut world, first.fence, 4, "b"),
        Err(Reason::ConfigInvalid)
    );
    assert_eq!(
        save(&mut world, first.fence, 9, &"x".repeat(2_049)),
        Err(Reason::ConfigInvalid)
    );
    world.restart_arbiter();
    world.run(Duration::from_secs(2));
    assert_eq!(at(&world), Some((5, "a".to_owned())));

    let now = world.now;
    world.nodes[node].kill_worker(0, DeathCause::Exited(1), now);
    world.await_that("it is lost", |world| world.job().state() == JobState::Lost);
    world.await_that("another is ready", |world| world.ready_workers() == 1);
    let (second, _) = world
        .ledger
        .start_job(plain(POOLS[SPREAD].0, "train"))
        .unwrap();
    world.settle();
    assert!(second.fence > first.fence && second.attempt == 2);
    assert_eq!(
        at(&world),
        Some((5, "a".to_owned())),
        "it goes on from there"
    );
    assert_eq!(
        save(&mut world, first.fence, 6, "stale"),
        Err(Reason::LeaseFenced)
    );
    assert_eq!(
        world.report(&id, first.fence, Some(b"stale")),
        Err(Reason::LeaseFenced)
    );
    assert_eq!(save(&mut world, second.fence, 6, "c"), Ok(()));
    assert_eq!(at(&world), Some((6, "c".to_owned())));
}

#[test]
fn a_grace_that_was_shortened_is_waited_for_as_it_was_told() {
    let (mut world, node, id) = world(Duration::from_secs(8));
    world.cut(node);
    world.wishes.grace_ms = 0;

    assert!(world.apply(SPREAD, 1));
    world.restart_arbiter();
    world.await_that("another is started", World::has_started_another);

    assert!(
        !world.lives(&id),
        "A1, at every step; and it ends by itself"
    );
}

#[test]
fn a_witness_ends_the_wait_and_is_not_believed_of_a_node_that_was_just_heard() {
    let (mut world, node, id) = world(GRACE);
    let name = world.nodes[node].name.clone();
    let declare = |world: &mut World| {
        let told = world.ledger.declare_dead(&name, "the operator", world.now);
        told.map_err(|failure| failure.to_string())
    };
    let refused = declare(&mut world).unwrap_err();
    assert!(refused.contains("so it lives"), "{refused}");

    world.cut(node);
    world.await_that("it is lost", |world| !world.endpoint_is_told());
    world.run(GRACE - Duration::from_secs(1));
    assert!(world.lives(&id) && !world.has_started_another());
    world.nodes[node].reboot();
    assert_eq!(declare(&mut world), Ok(1));
    world.settle();
    world.run(Duration::from_secs(1));

    assert_eq!(world.ready_workers(), 1);
    assert_eq!(world.causes[&id], DeathCause::LeaseExpired);
    let nodes = world.ledger.list_nodes(world.now);
    assert!(nodes.iter().all(|node| !node.lost));
    let unknown = declare(&mut world).unwrap_err();
    assert!(unknown.contains("no node is called"), "{unknown}");
}

#[test]
fn what_is_started_for_a_node_that_is_declared_dead_within_its_lease_is_started_elsewhere() {
    let (mut world, node, _) = world(Duration::ZERO);
    let name = world.nodes[node].name.clone();
    world.cut(node);
    world.nodes[node].reboot();
    // Its place is to go with its worker, and to come back: it is filled in the moment of the death.
    for size in [0, 1] {
        assert!(world.apply(SPREAD, size));
    }
    world.run(Duration::from_millis(1_200));
    assert!(world.ledger.nodes[&name].loss.is_none(), "it has its lease");

    let told = world.ledger.declare_dead(&name, "the operator", world.now);
    assert_eq!(told.ok(), Some(1));
    world.settle();
    world.run(Duration::from_secs(1));

    assert_eq!(world.ready_workers(), 1);
    assert!(world.nodes[node].workers.is_empty(), "it is elsewhere");
}

#[test]
fn a_node_that_says_goodbye_is_gone_at_once_and_what_was_ordered_there_is_started_elsewhere() {
    let (mut world, node, id) = world(GRACE);
    let name = world.nodes[node].name.clone();
    let seq = world.ledger.nodes[&name].last.0 + 1;
    world.cut(node);
    world.nodes[node].reboot();
    let goodbye = HeartbeatRequest {
        seq,
        ack_seen: seq - 1,
        goodbye: true,
        ..HeartbeatRequest::default()
    };

    assert!(world.ledger.on_beat(&name, &goodbye, world.now));
    let answer = world.ledger.message_to(&name, Ack::default(), Vec::new());
    assert!(answer.is_some(), "it is answered");
    world.settle();
    world.run(STEP);

    assert!(!world.ledger.nodes.contains_key(&name));
    assert_eq!(world.causes[&id], DeathCause::Unknown);
    world.await_that("another is ready", |world| world.ready_workers() == 1);
}

#[test]
fn another_agent_of_the_same_name_waits_for_what_may_live() {
    let (mut world, node, id) = world(GRACE);
    let name: NodeName = world.nodes[node].name.clone();
    let stranger = Hello {
        instance: "another".to_owned(),
        ..Hello::default()
    };
    world.cut(node);
    world.await_that("it is lost", |world| !world.endpoint_is_told());

    let refused = world.ledger.admit_node(&name, &stranger, world.now);
    assert_eq!(refused.unwrap_err().reason(), Reason::NodeTaken);
    assert!(world.lives(&id));
    world.await_that("another is started", World::has_started_another);
    assert!(world.ledger.admit_node(&name, &stranger, world.now).is_ok());
}
