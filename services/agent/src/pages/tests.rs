//! A1 to A3, on real pages and without a shim.

use std::{collections::BTreeSet, time::Duration};

use tether_shim_protocol::{NO_DEADLINE, OnLinkLoss, OnOwnerExit};
use tether_sys::{Made, View};
use tether_types::{Epoch, Incarnation, OwnerName};

use super::*;
use crate::permission::PoolPermission;

fn at(secs: u64) -> Tick {
    Tick::ZERO + Duration::from_secs(secs)
}

fn pool(name: &str) -> PoolName {
    PoolName::new(name).unwrap()
}

fn worker(pool: &str, incarnation: u64) -> WorkerId {
    format!("{pool}/0.{incarnation}").parse().unwrap()
}

/// A node until one time, and pools until others.
fn granted(node: Tick, pools: &[(&str, Tick)]) -> Permissions {
    let of = |&(name, deadline): &(&str, Tick)| {
        let permission = PoolPermission {
            owner: OwnerName::new("beam@a").unwrap(),
            epoch: Epoch(3),
            deadline,
            process: None,
            on_owner_exit: OnOwnerExit::Ignore,
            on_link_loss: OnLinkLoss::Hold,
            grace: Duration::ZERO,
            job_grace: Duration::from_secs(3600),
            jobs: BTreeSet::new(),
        };
        (pool(name), permission)
    };
    Permissions {
        node,
        pools: pools.iter().map(of).collect(),
        nearer: 0,
    }
}

#[test]
fn who_lives_on_disabled_lives_as_long_as_its_pool_allows_and_loses_its_seat_by_whose_end_it_was() {
    let (pages, made) = (Arc::<Pages>::default(), View::make().unwrap());
    let with_grace = |node| {
        let mut granted = granted(node, &[("a", at(90)), ("b", at(90))]);
        granted.pools.get_mut(&pool("a")).unwrap().grace = Duration::from_secs(10);
        granted
    };
    pages.store(&with_grace(at(20)), at(1));
    let [a, b] = ["a", "b"].map(|name| pages.take(shown(&made), &pool(name), at(1)).unwrap());
    let said = made.view.read(on_page(a.place())).unwrap();
    assert_eq!(said.node.enabled, at(20).as_nanos());
    // Ten seconds, less what a slow clock makes of them.
    assert_eq!(read(&made, &a), Some((29, 90)));
    assert_eq!(read(&made, &b), Some((20, 90)));
    assert_eq!(b.over(at(21)), Some(DeathCause::LeaseExpired));
    assert_eq!(a.over(at(21)), None);

    pages.store(&with_grace(at(45)), at(25));

    assert_eq!(read(&made, &a), Some((54, 90)), "it is enabled again");
    let lost = (read(&made, &b), b.over(at(26)));
    assert_eq!(lost, (None, Some(DeathCause::LeaseExpired)));
}

/// A page as a shim of it shows it.
fn shown(made: &Made) -> Shown {
    (made.view.id(), made.writable.try_clone().ok())
}

/// What a shim in this seat reads, in seconds.
fn read(made: &Made, seat: &Seat) -> Option<(u64, u64)> {
    let said = made.view.read(on_page(seat.place()))?;
    let secs = |nanos: u64| nanos / 1_000_000_000;
    let node = said.node.alive.min(said.owner.alive);
    Some((secs(node), secs(said.owner.enabled)))
}

#[test]
fn one_store_reaches_all_workers_of_a_node_and_each_pool_has_its_own_end() {
    let (pages, made) = (Arc::<Pages>::default(), View::make().unwrap());
    pages.store(&granted(at(20), &[("a", at(30)), ("b", at(40))]), at(1));
    let [first, second] = [0, 1].map(|_| pages.take(shown(&made), &pool("a"), at(1)).unwrap());
    let other = pages.take(shown(&made), &pool("b"), at(1)).unwrap();

    assert_eq!(first.place(), second.place());
    assert_eq!(read(&made, &first), Some((20, 30)));
    assert_eq!(read(&made, &other), Some((20, 40)));
    assert!(!pages.store(&granted(at(25), &[("a", at(35)), ("b", at(40))]), at(2)));
    assert_eq!(read(&made, &second), Some((25, 35)));
    assert_eq!(read(&made, &other), Some((25, 40)));
    assert!(pages.take(shown(&made), &pool("unknown"), at(1)).is_none());
}

#[test]
fn an_end_that_moved_nearer_is_told_and_one_that_nobody_spoke_of_stays() {
    let (pages, made) = (Arc::<Pages>::default(), View::make().unwrap());
    pages.store(
        &granted(at(20), &[("a", Tick::from_nanos(NO_DEADLINE))]),
        at(1),
    );
    let seat = pages.take(shown(&made), &pool("a"), at(1)).unwrap();

    assert!(pages.store(&granted(at(21), &[("a", at(19))]), at(2)));
    assert_eq!(read(&made, &seat), Some((21, 19)));
    assert!(!pages.store(&granted(at(22), &[]), at(3)));
    assert_eq!(read(&made, &seat), Some((21, 19)));
}

#[test]
fn a_new_agent_changes_nothing_on_a_page_before_the_arbiter_has_spoken() {
    let (first, made) = (Arc::<Pages>::default(), View::make().unwrap());
    first.store(&granted(at(20), &[("a", at(30))]), at(1));
    let place = first.take(shown(&made), &pool("a"), at(1)).unwrap().place();
    drop(first);

    let second = Arc::<Pages>::default();
    let seat = second
        .find(shown(&made), Some(place), &worker("a", 1), at(2))
        .unwrap();
    assert_eq!(read(&made, &seat), Some((20, 30)));
    second.store(&Permissions::default(), at(2));
    assert_eq!(read(&made, &seat), Some((20, 30)));
    second.store(&granted(at(22), &[]), at(3));
    assert_eq!(
        read(&made, &seat),
        Some((20, 30)),
        "nobody spoke of its pool"
    );
    second.store(&granted(at(24), &[("a", at(33))]), at(4));
    assert_eq!(read(&made, &seat), Some((24, 33)));
    assert_eq!(seat.over(at(5)), None);
}

#[test]
fn who_was_not_gone_by_the_end_of_a_term_sees_nothing_of_the_next() {
    let (pages, made) = (Arc::<Pages>::default(), View::make().unwrap());
    pages.store(&granted(at(20), &[("a", at(50)), ("b", at(10))]), at(1));
    let a = pages.take(shown(&made), &pool("a"), at(1)).unwrap();
    let b = pages.take(shown(&made), &pool("b"), at(1)).unwrap();

    pages.store(&granted(at(20), &[("a", at(50)), ("b", at(60))]), at(10));
    assert_eq!(
        (read(&made, &b), b.over(at(11))),
        (None, Some(DeathCause::OwnerGone))
    );
    assert_eq!(read(&made, &a), Some((20, 50)));

    pages.store(&granted(at(40), &[("a", at(50)), ("b", at(60))]), at(20));
    assert_eq!(
        (read(&made, &a), a.over(at(21))),
        (None, Some(DeathCause::LeaseExpired))
    );
    assert_eq!(b.over(at(21)), Some(DeathCause::OwnerGone));
    let next = pages.take(shown(&made), &pool("a"), at(21)).unwrap();
    assert_ne!(next.place(), a.place());
    assert_eq!(read(&made, &next), Some((40, 50)));
}

#[test]
fn a_worker_of_an_ended_term_that_a_new_agent_finds_is_not_revived() {
    let (first, made) = (Arc::<Pages>::default(), View::make().unwrap());
    first.store(&granted(at(20), &[("a", at(50))]), at(1));
    let place = first.take(shown(&made), &pool("a"), at(1)).unwrap().place();
    first.store(&granted(at(60), &[("a", at(50))]), at(30));
    drop(first);

    let second = Arc::<Pages>::default();
    let late = second
        .find(shown(&made), Some(place), &worker("a", 1), at(35))
        .unwrap();
    second.store(&granted(at(70), &[("a", at(80))]), at(40));

    assert_eq!(read(&made, &late), None);
    assert_eq!(late.over(at(41)), Some(DeathCause::LeaseExpired));
    let next = second.take(shown(&made), &pool("a"), at(41)).unwrap();
    assert!(next.place().generation > place.generation);
}

#[test]
fn what_is_kept_of_seats_and_pages_ends_with_the_last_worker_on_them() {
    let pages = Arc::<Pages>::default();
    let name = |number: u32| format!("pool-{number}");
    for round in 0..3 {
        let made = View::make().unwrap();
        let names: Vec<_> = (0..SLOTS).map(name).collect();
        let pools: Vec<_> = names.iter().map(|name| (name.as_str(), at(30))).collect();
        pages.store(&granted(at(20), &pools), at(1));
        let seats: Vec<_> = names
            .iter()
            .map(|name| pages.take(shown(&made), &pool(name), at(1)).unwrap())
            .collect();
        pages.store(&granted(at(20), &[("one-more", at(30))]), at(1));
        assert!(pages.take(shown(&made), &pool("one-more"), at(1)).is_none());

        let last = seats.last().map(Seat::place).unwrap();
        seats.into_iter().for_each(Seat::leave);
        let seat = pages.take(shown(&made), &pool("one-more"), at(1)).unwrap();
        assert_eq!((seat.place().slot, last.slot), (0, SLOTS - 1));
        assert!(seat.place().generation > last.generation);
        seat.leave();
        let all = pages.lock();
        assert_eq!(all.sheets.len(), 1, "round {round}");
        assert!(all.sheets.values().all(|sheet| sheet.slots.is_empty()));
    }
}

#[test]
fn without_a_page_there_is_no_seat_and_a_page_that_is_known_needs_no_descriptor() {
    let (pages, made) = (Arc::<Pages>::default(), View::make().unwrap());
    pages.store(&granted(at(20), &[("a", at(30))]), at(1));

    assert!(
        pages
            .take((made.view.id(), None), &pool("a"), at(1))
            .is_none()
    );
    let another = View::make().unwrap();
    let mismatched = (another.view.id(), made.writable.try_clone().ok());
    assert!(pages.take(mismatched, &pool("a"), at(1)).is_none());
    assert!(pages.take(shown(&made), &pool("a"), at(1)).is_some());
    assert!(
        pages
            .take((made.view.id(), None), &pool("a"), at(1))
            .is_some()
    );
}

#[test]
fn a_page_that_has_lain_there_since_its_node_expired_is_good_for_new_workers_alone() {
    let (first, made) = (Arc::<Pages>::default(), View::make().unwrap());
    first.store(&granted(at(20), &[("a", at(90))]), at(1));
    let old = first.take(shown(&made), &pool("a"), at(1)).unwrap();
    let place = old.place();

    let second = Arc::<Pages>::default();
    second.store(&granted(at(70), &[("a", at(90))]), at(50));
    let new = second.take(shown(&made), &pool("a"), at(50)).unwrap();

    assert_eq!(read(&made, &new), Some((70, 90)));
    assert_eq!(read(&made, &old), None, "nobody had told of it yet");
    let late = second
        .find(shown(&made), Some(place), &worker("a", 1), at(51))
        .unwrap();
    assert_eq!(late.over(at(51)), Some(DeathCause::LeaseExpired));
}

#[test]
fn a_worker_that_is_found_after_the_arbiter_has_spoken_need_not_wait_for_its_next_word() {
    let (first, made) = (Arc::<Pages>::default(), View::make().unwrap());
    first.store(&granted(at(20), &[("a", at(12))]), at(1));
    let place = first.take(shown(&made), &pool("a"), at(1)).unwrap().place();

    let second = Arc::<Pages>::default();
    second.store(&granted(at(30), &[("a", at(40))]), at(11));
    let seat = second
        .find(shown(&made), Some(place), &worker("a", 1), at(11))
        .unwrap();

    assert_eq!(read(&made, &seat), Some((30, 40)));
}

/// The same, with a grace of ten seconds, and a minute for one that has a job.
fn with_job(node: Tick, jobs: &[u64]) -> Permissions {
    let mut granted = granted(node, &[("a", at(500))]);
    let of_pool = granted.pools.get_mut(&pool("a")).unwrap();
    of_pool.grace = Duration::from_secs(10);
    of_pool.job_grace = Duration::from_secs(60);
    of_pool.jobs = jobs.iter().copied().map(Incarnation).collect();
    granted
}

/// Until when a worker in this seat is enabled, and alive.
fn ends(made: &Made, seat: &Seat) -> Option<(u64, u64)> {
    let said = made.view.read(on_page(seat.place()))?;
    let secs = |nanos: u64| nanos / 1_000_000_000;
    let alive = said.node.alive.min(said.owner.alive);
    Some((secs(said.node.enabled), secs(alive)))
}

#[test]
fn who_has_a_job_keeps_a_seat_when_the_others_of_its_pool_lose_theirs_and_is_enabled_again_in_it() {
    let (pages, made) = (Arc::<Pages>::default(), View::make().unwrap());
    pages.store(&with_job(at(20), &[]), at(1));
    let [mut busy, idle] = [0, 1].map(|_| pages.take(shown(&made), &pool("a"), at(1)).unwrap());
    pages.store(&with_job(at(21), &[7]), at(2));
    busy.move_apart(&worker("a", 7));

    assert!(busy.is_own() && !idle.is_own());
    // Sixty seconds and ten, less what a slow clock makes of them.
    assert_eq!(ends(&made, &busy), Some((21, 80)));
    assert_eq!(ends(&made, &idle), Some((21, 30)));
    assert_eq!(busy.over(at(40)), None, "disabled is not over");

    pages.store(&with_job(at(65), &[7]), at(45));

    assert_eq!(ends(&made, &busy), Some((65, 124)));
    let lost = (read(&made, &idle), idle.over(at(46)));
    assert_eq!(lost, (None, Some(DeathCause::LeaseExpired)));
    let moved = busy.place();
    busy.move_apart(&worker("a", 7));
    assert_eq!(busy.place(), moved, "once is enough");

    // Its job done it has the grace of all others, but no seat of theirs.
    assert!(pages.store(&with_job(at(66), &[]), at(46)));
    assert_eq!(ends(&made, &busy), Some((66, 75)));
    busy.leave();
    idle.leave();
    assert!(
        !pages
            .lock()
            .sheets
            .values()
            .next()
            .unwrap()
            .page
            .is_open(moved.slot)
    );
}

#[test]
fn a_job_whose_own_end_has_come_is_not_revived_either() {
    let (pages, made) = (Arc::<Pages>::default(), View::make().unwrap());
    pages.store(&with_job(at(20), &[7]), at(1));
    let mut busy = pages.take(shown(&made), &pool("a"), at(1)).unwrap();
    busy.move_apart(&worker("a", 7));

    pages.store(&with_job(at(220), &[7]), at(200));

    let lost = (read(&made, &busy), busy.over(at(201)));
    assert_eq!(lost, (None, Some(DeathCause::LeaseExpired)));
    let mut late = pages.take(shown(&made), &pool("a"), at(201)).unwrap();
    pages.store(&with_job(at(520), &[7]), at(500));
    let before = late.place();
    late.move_apart(&worker("a", 8));
    assert_eq!(late.place(), before, "who is over is not moved");
}

#[test]
fn a_new_agent_finds_who_sits_alone_whether_its_shim_was_told_or_not() {
    let (first, made) = (Arc::<Pages>::default(), View::make().unwrap());
    first.store(&with_job(at(20), &[7]), at(1));
    let mut busy = first.take(shown(&made), &pool("a"), at(1)).unwrap();
    let of_pool = busy.place();
    busy.move_apart(&worker("a", 7));
    let own = busy.place();
    drop((first, busy));

    for shims in [None, Some(of_pool)] {
        let second = Arc::<Pages>::default();
        let seat = second.find(shown(&made), shims, &worker("a", 7), at(40));
        let seat = seat.unwrap();
        assert_eq!(seat.place(), own);
        assert_eq!(ends(&made, &seat), Some((20, 79)), "nobody has spoken yet");
        let other = second.find(shown(&made), None, &worker("a", 8), at(40));
        assert!(other.is_none(), "whose shim reads nothing has no seat");
    }
    let third = Arc::<Pages>::default();
    let seat = third.find(shown(&made), None, &worker("a", 7), at(45));
    third.store(&with_job(at(65), &[7]), at(45));
    assert_eq!(ends(&made, &seat.unwrap()), Some((65, 124)));
}

#[test]
fn workers_with_jobs_leave_slots_for_pools_and_without_one_see_the_end_of_their_pool() {
    let (pages, made) = (Arc::<Pages>::default(), View::make().unwrap());
    let jobs: Vec<u64> = (1..=u64::from(SLOTS)).collect();
    pages.store(&with_job(at(20), &jobs), at(1));
    let mut seats = Vec::new();
    for &job in &jobs {
        let mut seat = pages.take(shown(&made), &pool("a"), at(1)).unwrap();
        seat.move_apart(&worker("a", job));
        seats.push(seat);
    }

    let own = seats.iter().filter(|seat| seat.is_own()).count();
    assert_eq!(own, (SLOTS - OWN_FROM) as usize);
    assert_eq!(ends(&made, seats.last().unwrap()), Some((20, 29)));
    pages.store(&granted(at(20), &[("b", at(30))]), at(1));
    assert!(pages.take(shown(&made), &pool("b"), at(1)).is_some());
}
