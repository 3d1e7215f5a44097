//! When permission ends, with nobody there to say so, and when it does not.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use tether_shim_protocol::{
    Cause, MAX_FRAME_BYTES, Message, NO_DEADLINE, OnLinkLoss, OnOwnerExit, Phase, SOCKET_FILE,
    encode,
};

use crate::harness::{Own, PATIENCE, Shim, in_ms, now_ns, python, sh};

const STUBBORN: &str = "trap '' TERM; echo up > $EVENTS; while :; do sleep 0.1; done";

#[test]
fn a_deadline_that_nobody_renews_is_kept_by_the_shim_alone() {
    let mut launch = sh(STUBBORN);
    let deadline = in_ms(2_500);
    launch.node_deadline_ns = deadline;
    launch.kill_grace_ms = 1_200;
    let mut shim = Shim::start(launch);
    let worker = shim.started();
    shim.event();

    shim.hang_up();
    worker.gone_within(PATIENCE);
    let gone = now_ns();
    shim.left();

    println!(
        "gone {} ms before the deadline",
        (deadline.saturating_sub(gone)) / 1_000_000
    );
    assert!(gone >= deadline - 1_200_000_000, "gone before it had to be");
    assert!(
        gone <= deadline,
        "gone {} ms late",
        (gone - deadline) / 1_000_000
    );
    let dead = shim.death_on_disk();
    assert_eq!((dead.cause, dead.signal), (Cause::LeaseExpired, Some(9)));
    assert_eq!(shim.survivors(), [""; 0]);
}

#[test]
fn a_polite_worker_has_its_whole_grace_before_the_deadline() {
    let mut launch = python(
        "signal.signal(signal.SIGTERM, lambda *_: (tell('term'), sys.exit(0)))\ntell('up')\nwhile True: time.sleep(0.02)",
    );
    let deadline = in_ms(2_500);
    launch.owner_deadline_ns = deadline;
    launch.kill_grace_ms = 1_000;
    let mut shim = Shim::start(launch);
    assert_eq!(shim.event(), "up");

    assert_eq!(shim.event(), "term");
    let told = now_ns();

    assert!(told >= deadline - 1_000_000_000 && told < deadline - 200_000_000);
    let dead = shim.dead();
    assert_eq!((dead.cause, dead.exit_code), (Cause::OwnerGone, Some(0)));
}

#[test]
fn a_worker_tied_to_its_agent_ends_with_the_link() {
    let mut launch = sh(STUBBORN);
    launch.on_link_loss = OnLinkLoss::Kill;
    let mut shim = Shim::start(launch);
    let worker = shim.started();
    shim.event();

    shim.hang_up();

    println!(
        "worker gone {:?} after the link",
        worker.gone_within(PATIENCE)
    );
    assert!(shim.left().success());
    assert_eq!(shim.death_on_disk().cause, Cause::AgentGone);
}

#[test]
fn a_new_agent_finds_the_worker_and_carries_it_past_the_old_deadline() {
    let mut launch = sh(STUBBORN);
    launch.node_deadline_ns = in_ms(2_000);
    launch.kill_grace_ms = 1_000;
    let mut shim = Shim::start(launch);
    let worker = shim.started();
    shim.event();
    shim.hang_up();

    let hello = shim.reconnect();
    shim.say(&Message::Renew {
        node_deadline_ns: in_ms(60_000),
        owner_deadline_ns: NO_DEADLINE,
    });

    assert_eq!(
        (hello.worker.as_str(), hello.phase),
        ("train/0.1", Phase::Running)
    );
    assert_eq!(
        (hello.worker_pid, hello.shim_pid),
        (worker.pid, shim.child.id())
    );
    assert!(hello.started_ns > 0 && hello.started_ns < now_ns());
    worker.lives_for(Duration::from_millis(2_300));

    // Replaced, not only lengthened.
    shim.say(&Message::Renew {
        node_deadline_ns: in_ms(200),
        owner_deadline_ns: NO_DEADLINE,
    });
    assert_eq!(shim.dead().cause, Cause::LeaseExpired);
}

#[test]
fn a_worker_whose_agent_is_gone_before_its_shim_can_be_found_never_starts() {
    let dir = tempfile::tempdir().unwrap();
    let ran = dir.path().join("ran");
    let mut launch = sh(&format!("echo > {}", ran.display()));
    launch.dir = dir.path().as_os_str().as_bytes().to_vec();
    let (mut agent, link) = UnixStream::pair().unwrap();
    agent
        .write_all(&encode(&Message::Launch(Box::new(launch))))
        .unwrap();
    drop(agent);

    let status = Command::new(env!("CARGO_BIN_EXE_tether-shim"))
        .stdin(OwnedFd::from(link))
        .status();

    assert!(status.unwrap().success());
    assert!(!ran.exists());
    assert!(!dir.path().join(SOCKET_FILE).exists());
}

#[test]
fn a_newer_agent_replaces_the_older_without_a_loss() {
    let mut launch = sh(STUBBORN);
    launch.on_link_loss = OnLinkLoss::Kill;
    let mut shim = Shim::start(launch);
    let worker = shim.started();
    shim.event();

    shim.reconnect();

    worker.lives_for(Duration::from_millis(300));
}

#[test]
fn an_agent_that_comes_after_the_death_is_told_of_it() {
    let mut shim = Shim::start(sh("exit 4"));
    shim.dead();

    let hello = shim.reconnect();
    let dead = shim.dead();

    assert_eq!((hello.phase, hello.worker_pid), (Phase::Dead, 0));
    assert_eq!((dead.cause, dead.exit_code), (Cause::Exited, Some(4)));
}

#[test]
fn nonsense_on_the_link_costs_the_link_and_nothing_else() {
    let mut shim = Shim::start(sh(STUBBORN));
    let worker = shim.started();
    shim.event();

    shim.write(&(MAX_FRAME_BYTES as u32 + 1).to_le_bytes());
    worker.lives_for(Duration::from_millis(200));
    shim.reconnect();

    shim.say(&Message::Stop {
        cause: Cause::NeverReady,
        grace_ms: 0,
    });
    assert_eq!(shim.dead().cause, Cause::NeverReady);
}

#[test]
fn a_message_from_a_later_version_is_passed_over() {
    let mut shim = Shim::start(sh(STUBBORN));
    shim.event();

    shim.write(&[1, 0, 0, 0, 250]);
    shim.say(&Message::Stop {
        cause: Cause::NeverReady,
        grace_ms: 0,
    });

    assert_eq!(shim.dead().cause, Cause::NeverReady);
}

#[test]
fn a_worker_does_not_outlive_its_owners_process() {
    let mut owner = Own::sleeper();
    let mut launch = sh(STUBBORN);
    launch.owner = Some(owner.process().identity());
    let mut shim = Shim::start(launch);
    let worker = shim.started();
    shim.event();

    owner.0.kill().unwrap();

    println!(
        "worker gone {:?} after its owner",
        worker.gone_within(PATIENCE)
    );
    assert_eq!(shim.dead().cause, Cause::OwnerGone);
    owner.0.wait().unwrap();
}

#[test]
fn an_owner_can_end_and_another_take_its_place_where_the_policy_says_so() {
    let mut first = Own::sleeper();
    let second = Own::sleeper();
    let mut launch = sh(STUBBORN);
    launch.owner = Some(first.process().identity());
    launch.on_owner_exit = OnOwnerExit::Ignore;
    let mut shim = Shim::start(launch);
    let worker = shim.started();
    shim.event();

    first.0.kill().unwrap();
    first.0.wait().unwrap();
    worker.lives_for(Duration::from_millis(200));
    shim.say(&Message::Ties {
        owner: Some(second.process().identity()),
        on_owner_exit: OnOwnerExit::Kill,
        on_link_loss: OnLinkLoss::Hold,
    });
    worker.lives_for(Duration::from_millis(200));
    second.process().signal(Signal::KILL);

    assert_eq!(shim.dead().cause, Cause::OwnerGone);
}

#[test]
fn an_owner_that_could_not_be_looked_at_is_looked_at_again() {
    let owner = Own::sleeper();
    let mut shim = Shim::start(sh(STUBBORN));
    let worker = shim.started();
    shim.event();
    let pid = shim.child.id();
    let free = (0..).find(|number| !Path::new(&format!("/proc/{pid}/fd/{number}")).exists());
    let process = Pid::from_raw(pid.cast_signed());
    let none = Rlimit {
        current: free,
        ..getrlimit(Resource::Nofile)
    };
    let before = prlimit(process, Resource::Nofile, none).unwrap();

    shim.say(&Message::Ties {
        owner: Some(owner.process().identity()),
        on_owner_exit: OnOwnerExit::Kill,
        on_link_loss: OnLinkLoss::Hold,
    });
    worker.lives_for(Duration::from_millis(200));
    prlimit(process, Resource::Nofile, before).unwrap();
    worker.lives_for(Duration::from_millis(500));
    owner.process().signal(Signal::KILL);

    assert_eq!(shim.dead().cause, Cause::OwnerGone);
}

#[test]
fn a_stranger_with_the_owners_pid_is_not_the_owner() {
    let stranger = Own::sleeper();
    let mut identity = stranger.process().identity();
    identity.start_ticks -= 1;
    let mut launch = sh("echo up > $EVENTS");
    launch.owner = Some(identity);
    let mut shim = Shim::start(launch);

    let dead = shim.dead();

    assert_eq!(
        (dead.cause, dead.exit_code, dead.signal),
        (Cause::OwnerGone, None, None)
    );
    let started = |message: &Message| matches!(message, Message::Started { .. });
    assert!(!shim.said.iter().any(started), "{:?}", shim.said);
}

#[test]
fn a_worker_whose_permission_is_over_is_never_started() {
    let mut launch = sh("echo up > $EVENTS");
    launch.node_deadline_ns = now_ns() - 1;
    let mut shim = Shim::start(launch);

    let dead = shim.dead();

    assert_eq!(
        (dead.cause, dead.exit_code, dead.signal),
        (Cause::LeaseExpired, None, None)
    );
    let started = |message: &Message| matches!(message, Message::Started { .. });
    assert!(!shim.said.iter().any(started), "{:?}", shim.said);
}
