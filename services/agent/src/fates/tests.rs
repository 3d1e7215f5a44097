//! What gateways are told of workers, in which order, and what an agent waits for before it ends one.

use std::{
    pin::{Pin, pin},
    task::{Context, Waker},
};

use proptest::prelude::*;
use tether_types::DeathCause;

use super::*;

const ALL: [Fate; 6] = [
    Fate::Unspecified,
    Fate::Running,
    Fate::Doubtful,
    Fate::Ending,
    Fate::Dying,
    Fate::Dead,
];

fn board() -> Board {
    Board::new(NodeName::new("n").unwrap())
}

fn id(incarnation: u64) -> WorkerId {
    format!("digits/0.{incarnation}").parse().unwrap()
}

fn killed() -> Death {
    Death {
        cause: DeathCause::Signaled(9),
        exit_code: None,
        signal: Some(9),
        detail: String::new(),
        stderr_tail: String::new(),
        measures: None,
    }
}

/// What a stream knows of who was said what, after all that it was told.
fn known(reading: &mut Reading) -> BTreeMap<WorkerId, Fate> {
    let of = |told: &WorkerFate| {
        let worker = told.worker.as_ref().unwrap();
        (WorkerId::try_from(worker).unwrap(), told.fate())
    };
    let mut known: BTreeMap<_, _> = reading.workers.iter().map(of).collect();
    while let Ok((_, change)) = reading.changes.try_recv() {
        match change {
            Change::Told(told) => known.extend([of(&told)]),
            Change::Gone(id) => {
                known.remove(&id);
            }
        }
    }
    known
}

proptest! {
    /// F1, F2: whenever it begins, a stream ends with what the board says, and nobody comes back from an end.
    #[test]
    fn a_stream_knows_what_the_board_says_and_no_one_comes_back(
        said in prop::collection::vec((1_u64..4, prop::option::of(prop::sample::select(&ALL))), 1..40),
        begins in 0_usize..40,
    ) {
        let board = board();
        let mut reading = None;
        for (step, (worker, fate)) in said.iter().enumerate() {
            if step == begins {
                reading = board.read();
            }
            let before = board.lock().workers.get(&id(*worker)).map(|told| told.fate());
            match fate {
                Some(fate) => board.tell(&id(*worker), *fate, None),
                None => board.forget(&id(*worker)),
            }
            let after = board.lock().workers.get(&id(*worker)).map(|told| told.fate());
            if let (Some(before), Some(after)) = (before, after) {
                prop_assert!(before < Fate::Ending || after >= before, "F1: {before:?} {after:?}");
            }
        }
        let mut reading = reading.unwrap_or_else(|| board.read().unwrap());
        let said = board.lock();
        let told: BTreeMap<_, _> = said.workers.iter().map(|(id, told)| (id.clone(), told.fate())).collect();
        prop_assert_eq!(known(&mut reading), told, "F2");
    }
}

#[test]
fn a_stream_that_does_not_keep_up_is_ended() {
    let board = board();
    let mut slow = board.read().unwrap();
    for _ in 0..QUEUE {
        board.tell(&id(1), Fate::Running, None);
        board.tell(&id(1), Fate::Doubtful, None);
    }

    assert!(board.lock().readers.is_empty());
    while slow.changes.blocking_recv().is_some() {}
}

/// Whether it has nothing to wait for.
fn is_over(future: Pin<&mut impl Future<Output = ()>>) -> bool {
    future
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_ready()
}

#[tokio::test]
async fn an_announced_end_waits_for_all_gateways_and_for_none_for_long() {
    let board = board();
    assert!(is_over(pin!(board.announce(&id(1)))), "nobody listens");

    let (first, second) = (board.read().unwrap(), board.read().unwrap());
    let worker = id(2);
    let mut announced = pin!(board.announce(&worker));
    assert!(!is_over(announced.as_mut()));
    board.on_seen(first.reader, 2);
    // One that has taken in all but the end itself.
    board.on_seen(second.reader, 1);
    assert!(!is_over(announced.as_mut()));
    board.on_seen(second.reader, 2);
    assert!(is_over(announced.as_mut()));

    board.leave(first.reader);
    let began = tokio::time::Instant::now();
    board.announce(&id(3)).await;
    assert!(began.elapsed() >= WITHIN, "one does not hear");
    assert_eq!(board.lock().workers[&id(3)].fate(), Fate::Ending);
}

#[test]
fn nothing_is_allowed_or_refused_before_the_arbiter_has_spoken_and_then_the_earlier_end_counts() {
    let mut granted = Permissions::default();
    let now = Tick::ZERO + Duration::from_secs(100);
    assert_eq!(permissions(&granted, now), []);

    let pool = |deadline| crate::permission::PoolPermission {
        owner: "beam@a".parse().unwrap(),
        epoch: tether_types::Epoch(1),
        deadline,
        process: None,
        on_owner_exit: tether_shim_protocol::OnOwnerExit::Ignore,
        on_link_loss: tether_shim_protocol::OnLinkLoss::Hold,
        grace: Duration::ZERO,
        job_grace: Duration::ZERO,
        jobs: Default::default(),
    };
    let name = |name: &str| PoolName::new(name).unwrap();
    let soon = now + Duration::from_secs(2);
    granted.pools = [(name("a"), pool(Tick::NEVER)), (name("b"), pool(soon))].into();
    assert_eq!(permissions(&granted, now), [], "without a lease");

    granted.node = now + Duration::from_secs(10);
    let left = |granted: &Permissions| -> Vec<u64> {
        let told = permissions(granted, now);
        told.iter().map(|told| told.remaining_ms).collect()
    };
    // Half a per cent less, as a clock may be slow.
    assert_eq!(left(&granted), [9_950, 1_990]);
    granted.node = now;
    assert_eq!(left(&granted), [0, 0]);
    for pool in granted.pools.values_mut() {
        pool.grace = Duration::from_secs(40);
    }
    // They live on without an arbiter, as far as their owner is heard.
    assert_eq!(left(&granted), [39_601, 1_990]);
}

#[test]
fn a_death_is_told_with_what_is_known_of_it_and_then_with_all() {
    let board = board();
    let mut reading = board.read().unwrap();
    board.tell(&id(1), Fate::Dying, Some(&killed()));
    board.tell(&id(1), Fate::Dead, Some(&killed()));
    board.tell(&id(1), Fate::Dead, None);
    board.tell(&id(1), Fate::Running, None);

    let mut told = Vec::new();
    while let Ok((_, Change::Told(fate))) = reading.changes.try_recv() {
        told.push((fate.fate(), fate.death.and_then(|death| death.signal)));
    }
    assert_eq!(told, [(Fate::Dying, Some(9)), (Fate::Dead, Some(9))]);
}
