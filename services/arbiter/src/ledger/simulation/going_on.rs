//! Jobs that go on by themselves, and those that are to end, one scene each.

use std::time::Duration;

use tether_proto::job::{
    CancelJobRequest, Job, JobState, PutCheckpointRequest, ReportJobRequest, StartJobRequest,
};
use tether_types::{DeathCause, Orderer, Reason, WorkerId};

use super::{
    jobs::plain,
    owner::{POOLS, Wishes},
    world::World,
};

const SPREAD: usize = 4;

const SPEC: &[u8] = b"{\"steps\": 3}";

/// A world with so many ready workers of one pool.
fn world(size: u32) -> World {
    world_with(size, Wishes::default())
}

fn world_with(size: u32, wishes: Wishes) -> World {
    let mut world = World::with(11, wishes);
    world.open(1, false);
    assert!(world.apply(SPREAD, size));
    world.run(Duration::from_secs(1));
    world
}

fn name() -> &'static str {
    POOLS[SPREAD].0
}

fn job(world: &World) -> Job {
    world.ledger.get_job(name(), "train").unwrap()
}

fn worker(job: &Job) -> WorkerId {
    WorkerId::try_from(job.worker.as_ref().unwrap()).unwrap()
}

fn start(world: &mut World, restarts: u32) -> Job {
    let request = StartJobRequest {
        spec: SPEC.to_vec(),
        restarts: Some(restarts),
        ..plain(name(), "train")
    };
    let (job, _) = world.ledger.start_job(request).unwrap();
    world.settle();
    job
}

fn kill(world: &mut World, id: &WorkerId) {
    end(world, id, DeathCause::Exited(1));
}

fn end(world: &mut World, id: &WorkerId, cause: DeathCause) {
    let now = world.now;
    for node in &mut world.nodes {
        let place = node.workers.keys().position(|known| known == id);
        if let Some(place) = place {
            node.kill_worker(place, cause, now);
        }
    }
}

fn until(world: &mut World, what: &str, is: impl Fn(&Job) -> bool) -> Job {
    let deadline = world.now + Duration::from_secs(60);
    loop {
        let job = job(world);
        if is(&job) {
            return job;
        }
        assert!(world.now < deadline, "never: {what}: {job:?}");
        world.run(super::world::STEP);
    }
}

fn save(world: &mut World, fence: u64, seq: u64) {
    let checkpoint = PutCheckpointRequest {
        pool: name().to_owned(),
        key: "train".to_owned(),
        fence,
        seq,
        uri: "s3://there".to_owned(),
        ..PutCheckpointRequest::default()
    };
    world.ledger.put_checkpoint(checkpoint).unwrap();
    world.settle();
}

fn cancel(world: &mut World, grace: Duration) -> Job {
    let request = CancelJobRequest {
        pool: name().to_owned(),
        key: "train".to_owned(),
        grace_ms: Some(u64::try_from(grace.as_millis()).unwrap()),
        ..CancelJobRequest::default()
    };
    let now = world.now;
    let job = world.ledger.cancel_job(&request, now).unwrap();
    world.settle();
    job
}

#[test]
fn a_job_goes_on_for_as_long_as_it_saves_and_is_lost_after_too_many_deaths_without_that() {
    let mut world = world(1);
    start(&mut world, 2);
    for attempt in 1..=4 {
        let job = until(&mut world, "it is done again", |job| {
            job.attempt == attempt && job.state() == JobState::Running
        });
        assert_eq!(job.failures, 0, "it saved each time");
        save(&mut world, job.fence, u64::from(attempt));
        kill(&mut world, &worker(&job));
    }
    for failures in 0..=2 {
        let job = until(&mut world, "it is done again", |job| {
            job.attempt == 5 + failures && job.state() == JobState::Running
        });
        assert_eq!((job.failures, job.spec.as_slice()), (failures, SPEC));
        kill(&mut world, &worker(&job));
    }
    let lost = until(&mut world, "it is given up", |job| {
        job.state() == JobState::Lost
    });

    assert_eq!((lost.attempt, lost.failures), (7, 3));
    assert_eq!(lost.checkpoint.map(|saved| saved.seq), Some(4));
    assert!(lost.death.is_some());
    world.run(Duration::from_secs(5));
    assert_eq!(job(&world).attempt, 7, "nobody begins it again");
}

#[test]
fn a_job_that_has_failed_pauses_although_a_worker_is_ready_and_longer_each_time() {
    let mut world = world(3);
    start(&mut world, 3);
    for (attempt, pause) in [(1, 1), (2, 2), (3, 4)] {
        let job = until(&mut world, "it is done", |job| {
            job.attempt == attempt && job.state() == JobState::Running
        });
        kill(&mut world, &worker(&job));
        until(&mut world, "it waits", |job| {
            job.state() == JobState::Waiting
        });
        let since = world.now;
        let others = world.ledger.takers(&name().parse().unwrap());
        assert!(!others.is_empty(), "somebody could take it");
        until(&mut world, "it is done again", |job| {
            job.attempt == attempt + 1
        });
        let paused = world.now.since(since);
        let least = Duration::from_secs(pause);
        let step = 4 * super::world::STEP;
        assert!(
            (least - step..least + step).contains(&paused),
            "{paused:?}, not {pause} s"
        );
    }
}

#[test]
fn a_job_whose_workers_are_ended_by_somebody_is_not_given_up_for_that() {
    let mut world = world(1);
    start(&mut world, 1);
    for attempt in 1..=4 {
        let job = until(&mut world, "it is done again", |job| {
            job.attempt == attempt && job.state() == JobState::Running
        });
        assert_eq!(job.failures, 0);
        end(
            &mut world,
            &worker(&job),
            DeathCause::Ordered(Orderer::Operator),
        );
    }
    until(&mut world, "and again", |job| job.attempt == 5);
}

#[test]
fn what_a_job_says_of_itself_is_cut_as_it_is_written_with_each_checkpoint() {
    let mut world = world(1);
    let begun = start(&mut world, 2);
    let report = ReportJobRequest {
        key: "train".to_owned(),
        message: "é".repeat(100_000),
        fence: begun.fence,
        ..ReportJobRequest::default()
    };
    let now = world.now;

    let told = world.ledger.report_job(&worker(&begun), report, now);

    told.unwrap();
    assert_eq!(job(&world).message, "é".repeat(2048));
}

#[test]
fn a_job_on_a_node_that_is_cut_off_is_done_again_once_its_worker_can_live_no_more_and_not_before() {
    let wishes = Wishes {
        grace_ms: 3_000,
        job_ttl_ms: 20_000,
        ..Wishes::default()
    };
    let mut world = world_with(2, wishes);
    let first = start(&mut world, 3);
    let id = worker(&first);
    let has = |node: &super::node::Node| node.workers.contains_key(&id);
    let node = world.nodes.iter().position(has).unwrap();

    world.nodes[node].cut = true;
    world.lose_stream(node, true);
    let cut = world.now;

    until(&mut world, "it is orphaned", |job| {
        job.state() == JobState::Orphaned
    });
    let mut gone = None;
    while job(&world).attempt == 1 {
        assert!(world.now.since(cut) < Duration::from_secs(60), "never");
        let lives = world.workers().any(|(other, it)| *other == id && it.alive);
        if !lives && gone.is_none() {
            gone = Some(world.now);
        }
        world.run(super::world::STEP);
    }
    assert!(gone.is_some_and(|gone| gone < world.now), "A9: both lived");
    assert!(world.now.since(cut) > Duration::from_secs(19));
    let second = job(&world);
    assert_eq!(second.state(), JobState::Running);
    assert!(second.fence > first.fence && worker(&second) != id);
}

#[test]
fn a_job_that_waits_is_known_to_the_next_arbiter_with_what_it_is_to_do() {
    let mut world = world(1);
    let first = start(&mut world, 3);
    kill(&mut world, &worker(&first));
    until(&mut world, "it waits", |job| {
        job.state() == JobState::Waiting
    });

    world.restart_arbiter();

    let second = until(&mut world, "it is done again", |job| {
        job.state() == JobState::Running
    });
    assert!(second.fence > first.fence);
    assert_eq!((second.attempt, second.spec.as_slice()), (2, SPEC));
    let report = ReportJobRequest {
        key: "train".to_owned(),
        fence: second.fence,
        result: Some(b"result".to_vec()),
        ..ReportJobRequest::default()
    };
    let now = world.now;
    let told = world.ledger.report_job(&worker(&second), report, now);
    told.unwrap();
    let listed = &world.ledger.list_jobs(name())[0];
    assert!(
        listed.spec.is_empty() && listed.result.is_empty(),
        "a list of thousands stays small"
    );
    let death = listed.death.as_ref().unwrap();
    assert!(death.stderr_tail.is_empty());
    assert_eq!(job(&world).result, b"result");
}

#[test]
fn a_key_is_one_job_whatever_else_is_asked_of_it() {
    let mut world = world(1);
    let job = start(&mut world, 3);
    let asked = |world: &mut World, spec: &[u8]| {
        let request = StartJobRequest {
            spec: spec.to_vec(),
            restarts: Some(9),
            ..plain(name(), "train")
        };
        let started = world.ledger.start_job(request);
        world.settle();
        started.map_err(|failure| failure.reason())
    };

    assert_eq!(asked(&mut world, b""), Ok((job.clone(), true)));
    assert_eq!(asked(&mut world, SPEC), Ok((job, true)));
    assert_eq!(asked(&mut world, b"other"), Err(Reason::ConfigInvalid));
    let large = StartJobRequest {
        spec: vec![0; (64 << 10) + 1],
        ..plain(name(), "large")
    };
    let refused = world.ledger.start_job(large).map_err(|it| it.reason());
    assert_eq!(refused, Err(Reason::MessageTooLarge));
}

#[test]
fn a_cancelled_job_ends_with_the_word_of_its_worker_or_the_end_of_that() {
    for stops in [true, false] {
        let mut world = world(1);
        let begun = start(&mut world, 3);
        let told = cancel(&mut world, Duration::from_secs(2));
        assert_eq!(told.state(), JobState::Running, "its worker has its grace");
        // Another arbiter gives it all of that again, and forgets nothing.
        world.restart_arbiter();
        world.run(Duration::from_secs(1));
        assert_eq!(job(&world).state(), JobState::Running);
        if stops {
            let report = ReportJobRequest {
                key: "train".to_owned(),
                fence: begun.fence,
                cancelled: true,
                ..ReportJobRequest::default()
            };
            let now = world.now;
            let ended = world.ledger.report_job(&worker(&begun), report, now);
            ended.unwrap();
            world.settle();
        }
        let job = until(&mut world, "it is cancelled", |job| {
            job.state() == JobState::Cancelled
        });
        assert_eq!((job.attempt, job.cancelled_by.as_str()), (1, "an operator"));
        world.run(Duration::from_secs(10));
        let lives = world
            .workers()
            .any(|(id, it)| *id == worker(&begun) && it.alive);
        assert_eq!(lives, stops, "one that does not stop is ended");
        assert_eq!(self::job(&world).state(), JobState::Cancelled);
        world.ledger.acknowledge_job(name(), "train").unwrap();
    }
}

#[test]
fn a_later_job_of_the_same_key_has_its_own_grace() {
    let mut world = world(1);
    let earlier = start(&mut world, 3);
    cancel(&mut world, Duration::from_secs(2));
    let report = ReportJobRequest {
        key: "train".to_owned(),
        fence: earlier.fence,
        cancelled: true,
        ..ReportJobRequest::default()
    };
    let now = world.now;
    let ended = world.ledger.report_job(&worker(&earlier), report, now);
    ended.unwrap();
    world.settle();
    world.ledger.acknowledge_job(name(), "train").unwrap();

    let later = start(&mut world, 3);
    cancel(&mut world, Duration::from_secs(60));
    world.run(Duration::from_secs(10));

    assert_eq!(job(&world).state(), JobState::Running);
    assert_eq!(worker(&job(&world)), worker(&later));
}

#[test]
fn a_cancelled_job_whose_worker_dies_or_that_waits_is_not_done_again() {
    let mut world = world(1);
    let begun = start(&mut world, 3);
    cancel(&mut world, Duration::from_secs(600));
    kill(&mut world, &worker(&begun));
    until(&mut world, "it is cancelled", |job| {
        job.state() == JobState::Cancelled
    });
    world.ledger.acknowledge_job(name(), "train").unwrap();

    until_ready(&mut world);
    let begun = start(&mut world, 3);
    kill(&mut world, &worker(&begun));
    until(&mut world, "it waits", |job| {
        job.state() == JobState::Waiting
    });
    assert_eq!(
        cancel(&mut world, Duration::ZERO).state(),
        JobState::Cancelled
    );
    world.run(Duration::from_secs(5));
    assert_eq!(job(&world).state(), JobState::Cancelled);
}

fn until_ready(world: &mut World) {
    let deadline = world.now + Duration::from_secs(60);
    while world.ledger.get_pool(name()).unwrap().ready == 0 {
        assert!(world.now < deadline, "no worker is ready");
        world.run(super::world::STEP);
    }
}
