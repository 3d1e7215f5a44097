//! Permission by the lease page: nobody says a word, and workers live and end by what is stored there.

use std::time::Duration;

use rustix::process::Signal;
use tether_shim_protocol::{Cause, Message, NO_DEADLINE};
use tether_sys::{Page, Seat, Until};

use crate::harness::{PATIENCE, Process, Shim, in_ms, launch, now_ns, python, sh};

const STUBBORN: &str = "trap '' TERM; echo up > $EVENTS; while :; do sleep 0.1; done";

const SEAT: Seat = Seat {
    slot: 2,
    generation: 7,
};

fn both(at: u64) -> Until {
    Until {
        enabled: at,
        alive: at,
    }
}

/// What a slot says: its owner's end, and nothing more of its node.
fn of_owner(at: u64) -> Until {
    Until {
        enabled: at,
        alive: NO_DEADLINE,
    }
}

/// A worker with these ends of its node's and its owner's permission, without a grace.
fn seated(script: &str, node: u64, owner: u64) -> (Shim, Page, Process) {
    seated_with_grace(0, script, node, owner)
}

fn seated_with_grace(ms: u64, script: &str, node: u64, owner: u64) -> (Shim, Page, Process) {
    let mut launch = sh(script);
    launch.kill_grace_ms = ms;
    (launch.node_deadline_ns, launch.owner_deadline_ns) = (node, owner);
    let (mut shim, page) = Shim::start_seated(launch, SEAT, |page| {
        page.set_node(both(node));
        page.open(SEAT, of_owner(owner), 3);
    });
    let worker = shim.started();
    shim.event();
    (shim, page, worker)
}

#[test]
fn a_worker_is_renewed_by_stores_alone_and_gone_by_the_last_of_them() {
    let (mut shim, page, worker) = seated(STUBBORN, in_ms(1_000), NO_DEADLINE);
    shim.hang_up();

    for _ in 0..10 {
        page.set_node(both(in_ms(1_000)));
        worker.lives_for(Duration::from_millis(200));
    }
    let deadline = page.node().alive;
    worker.gone_within(PATIENCE);
    let gone = now_ns();

    assert!(gone >= deadline, "gone before it had to be");
    let late = Duration::from_nanos(gone - deadline);
    assert!(late < Duration::from_millis(500), "gone {late:?} late");
    shim.left();
}

#[test]
fn the_earlier_end_holds_whosever_it_is_and_is_the_cause() {
    // With time to tell, also on a busy machine: after its end a shim that is late is ended by its guard.
    let seated = |node, owner| seated_with_grace(1_000, STUBBORN, in_ms(node), in_ms(owner));
    let (mut shim, _page, _) = seated(60_000, 3_000);
    assert_eq!(shim.dead().cause, Cause::OwnerGone);

    let (mut shim, _page, _) = seated(3_000, 60_000);
    assert_eq!(shim.dead().cause, Cause::LeaseExpired);
}

#[test]
fn an_end_that_moves_nearer_takes_a_word_and_no_more() {
    let (mut shim, page, worker) = seated(STUBBORN, NO_DEADLINE, NO_DEADLINE);

    page.set(SEAT.slot, of_owner(now_ns()), 3);
    shim.say(&Message::Look);

    assert_eq!(shim.dead().cause, Cause::OwnerGone);
    worker.gone_within(PATIENCE);
}

#[test]
fn what_is_stored_for_a_slots_next_owner_renews_nobody_of_the_last() {
    let (mut shim, page, worker) = seated(STUBBORN, NO_DEADLINE, in_ms(1_000));
    let next = Seat {
        generation: SEAT.generation + 1,
        ..SEAT
    };

    page.close(SEAT.slot);
    page.open(next, of_owner(NO_DEADLINE), 4);
    shim.say(&Message::Look);

    worker.gone_within(PATIENCE);
    assert_eq!(shim.dead().cause, Cause::OwnerGone);
}

#[test]
fn a_later_agent_finds_the_very_page_its_shim_reads() {
    let (mut shim, first, worker) = seated(STUBBORN, in_ms(1_500), NO_DEADLINE);
    shim.hang_up();
    let id = first.id();
    drop(first);

    shim.connect();
    let page = shim.page();
    let hello = shim.hear_hello();

    assert_eq!((hello.page, page.id()), (id, id));
    let seat = hello.seat.unwrap();
    assert_eq!((seat.slot, seat.generation), (SEAT.slot, SEAT.generation));
    page.set_node(both(NO_DEADLINE));
    worker.lives_for(Duration::from_millis(1_800));
}

#[test]
fn a_renewal_that_comes_as_a_message_takes_a_worker_off_the_page() {
    let (mut shim, page, worker) = seated(STUBBORN, in_ms(1_500), NO_DEADLINE);

    shim.say(&Message::Renew {
        node_deadline_ns: NO_DEADLINE,
        owner_deadline_ns: NO_DEADLINE,
    });
    worker.lives_for(Duration::from_millis(1_800));
    page.set_node(both(0));
    shim.say(&Message::Look);

    worker.lives_for(Duration::from_millis(300));
}

#[test]
fn a_renewal_is_seen_long_before_the_end_also_by_the_guard() {
    let (mut shim, page, worker) = seated(STUBBORN, in_ms(6_000), NO_DEADLINE);
    let first = page.node().alive;
    // The shim has no other reason to wake up any more: after a second it lets go of what its start took.
    worker.lives_for(Duration::from_millis(1_500));

    page.set_node(both(first + 1_000_000_000));
    // More than a quarter of what it knew of.
    worker.lives_for(Duration::from_millis(2_000));
    Process::of(shim.child.id()).signal(Signal::STOP);

    let left = Duration::from_nanos(first.saturating_sub(now_ns()));
    worker.lives_for(left + Duration::from_millis(500));
    worker.gone_within(PATIENCE);
    shim.left();
}

#[test]
fn a_stopped_shim_ends_by_the_last_end_it_read() {
    let (mut shim, page, worker) = seated(STUBBORN, in_ms(1_000), NO_DEADLINE);
    page.set_node(both(in_ms(2_000)));
    let deadline = page.node().alive;
    shim.say(&Message::Look);
    worker.lives_for(Duration::from_millis(200));

    Process::of(shim.child.id()).signal(Signal::STOP);

    worker.gone_within(PATIENCE);
    let late = Duration::from_nanos(now_ns().saturating_sub(deadline));
    assert!(late < Duration::from_millis(500), "gone {late:?} late");
    shim.left();
}

#[test]
fn a_worker_reads_its_own_permission_and_cannot_write_it() {
    let script = "import mmap, struct\n\
        fd, slot, generation = map(int, os.environ['TETHER_LEASE'].split(':'))\n\
        page = mmap.mmap(fd, 0, prot=mmap.PROT_READ)\n\
        node = struct.unpack_from('=2Q', page, 16)\n\
        own = struct.unpack_from('=4Q', page, 64 + 32 * slot)\n\
        try: mmap.mmap(fd, 0); writable = True\n\
        except PermissionError: writable = False\n\
        tell(f'{fd} {node} {own} {generation} {writable} {os.environ.get(\"LISTEN_PID\")}')\n\
        time.sleep(600)\n";
    let (mut shim, _page) = Shim::start_seated(python(script), SEAT, |page| {
        page.set_node(both(NO_DEADLINE));
        let until = Until {
            enabled: NO_DEADLINE - 1,
            alive: NO_DEADLINE,
        };
        page.open(SEAT, until, 5);
    });

    let never = NO_DEADLINE;
    assert_eq!(
        shim.event(),
        format!(
            "3 ({never}, {never}) ({}, {never}, 5, 7) 7 False None",
            never - 1
        )
    );
}

#[test]
fn a_worker_without_a_seat_is_told_of_none() {
    let mut shim = Shim::start(launch(&["sh", "-c", "echo ${TETHER_LEASE-none} > $EVENTS"]));

    assert_eq!(shim.event(), "none");
}
