//! How workers end: politely, by force, with everything they left behind, and nobody else.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use tether_shim_protocol::{Cause, DEATH_FILE, Message, Orderer};

use crate::harness::{Own, PATIENCE, Process, Shim, in_ms, python, sh};

const BY_SCALE: Cause = Cause::Ordered(Orderer::Scale);

/// A process that left its parent, its session and its manners behind; its pid is an event.
const DAEMON: &str = "
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            tell(os.getpid())
            while True: time.sleep(0.02)
        os._exit(0)
";

fn stop(grace_ms: u64) -> Message {
    Message::Stop {
        cause: BY_SCALE,
        grace_ms,
    }
}

#[test]
fn a_polite_worker_stops_on_sigterm_and_the_shim_leaves_when_told() {
    let mut shim = Shim::start(python(
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\ntell('up')\nwhile True: time.sleep(0.02)",
    ));
    shim.event();
    let since = Instant::now();

    shim.say(&stop(10_000));
    let dead = shim.dead();

    assert!(
        since.elapsed() < Duration::from_secs(5),
        "{:?} {dead:?}",
        since.elapsed()
    );
    assert_eq!(
        (dead.cause, dead.exit_code, dead.signal),
        (BY_SCALE, Some(7), None)
    );
    assert_eq!(shim.death_on_disk(), dead);
    let said: Vec<_> = shim.said.iter().map(std::mem::discriminant).collect();
    let Message::Hello(hello) = shim.said[0].clone() else {
        panic!("{:?}", shim.said)
    };
    let order = [
        Message::Hello(hello),
        Message::Started { pid: 0 },
        Message::Ending { cause: BY_SCALE },
        Message::Dead(Box::new(dead)),
    ];
    assert_eq!(
        said,
        order.iter().map(std::mem::discriminant).collect::<Vec<_>>()
    );

    shim.say(&Message::Acknowledge);
    assert!(shim.left().success());
    assert!(!shim.path(DEATH_FILE).exists());
}

#[test]
fn a_worker_that_is_stopped_and_goes_on_is_told_of_and_to_a_later_agent_too() {
    let mut shim = Shim::start(sh("kill -STOP $$; sleep 600"));

    shim.hear(|said| (*said == Message::Halted { halted: true }).then_some(()));
    shim.reconnect();
    shim.hear(|said| (*said == Message::Halted { halted: true }).then_some(()));
    shim.say(&Message::Signal {
        signo: libc::SIGCONT,
    });
    shim.hear(|said| (*said == Message::Halted { halted: false }).then_some(()));
    shim.say(&stop(0));
    assert_eq!(shim.dead().cause, BY_SCALE);
}

#[test]
fn only_orphans_of_the_end_count_as_reaped_with_it() {
    // Forty that were orphaned and ended long before.
    let mut shim = Shim::start(sh(
        "for i in 1 2 3 4 5 6 7 8 9 10; do (true & true & true & true &); done; sleep 0.5",
    ));

    let dead = shim.dead();

    assert_eq!(dead.exit_code, Some(0));
    assert!(dead.reaped < 10, "{dead:?}");
}

#[test]
fn a_clean_exit_that_is_acknowledged_at_once_leaves_no_record() {
    let mut shim = Shim::start(sh("exit 0"));
    shim.dead();

    shim.say(&Message::Acknowledge);

    assert!(shim.left().success());
    assert!(!shim.path(DEATH_FILE).exists());
}

#[test]
fn a_worker_that_ignores_sigterm_is_killed_when_its_grace_is_over() {
    let mut shim = Shim::start(sh(
        "trap '' TERM; echo up > $EVENTS; while :; do sleep 1; done",
    ));
    shim.event();
    let since = Instant::now();

    shim.say(&stop(400));
    let dead = shim.dead();

    let took = since.elapsed();
    assert!(
        took >= Duration::from_millis(400) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert_eq!((dead.cause, dead.signal), (BY_SCALE, Some(9)));
    assert_eq!(shim.survivors(), [""; 0]);
}

#[test]
fn a_shell_that_dies_of_sigterm_leaves_its_child_the_rest_of_the_grace() {
    let mut shim = Shim::start(sh("python3 -c 'import os, signal, time
def bye(*_):
    time.sleep(0.5); open(os.environ[\"EVENTS\"], \"w\").write(\"saved\\n\"); os._exit(0)
signal.signal(signal.SIGTERM, bye)
open(os.environ[\"EVENTS\"], \"w\").write(\"up\\n\")
while True: time.sleep(0.02)' & wait"));
    assert_eq!(shim.event(), "up");

    shim.say(&stop(10_000));
    let dead = shim.dead();

    assert_eq!(shim.event(), "saved");
    assert_eq!(
        (dead.cause, dead.signal, dead.reaped),
        (BY_SCALE, Some(15), 1)
    );
}

#[test]
fn a_daemonised_grandchild_is_gone_with_its_worker() {
    let mut shim = Shim::start(python(&format!(
        "{DAEMON}\ndaemon()\nwhile True: time.sleep(0.02)"
    )));
    let daemon = shim.process();

    shim.say(&stop(0));
    let dead = shim.dead();

    daemon.gone_within(Duration::ZERO);
    assert!(dead.reaped >= 1, "{dead:?}");
    assert_eq!((dead.survivors, shim.survivors()), (0, vec![]));
}

#[test]
fn what_a_worker_leaves_behind_when_it_exits_dies_with_it() {
    let mut shim = Shim::start(python(&format!(
        "{DAEMON}\nsignal.signal(signal.SIGUSR1, lambda *_: os._exit(3))\ndaemon()\nwhile True: time.sleep(0.02)"
    )));
    let daemon = shim.process();

    shim.say(&Message::Signal {
        signo: Signal::USR1.as_raw(),
    });
    let dead = shim.dead();

    daemon.gone_within(Duration::ZERO);
    assert_eq!((dead.cause, dead.exit_code), (Cause::Exited, Some(3)));
    assert_eq!(shim.survivors(), [""; 0]);
}

#[test]
fn fork_chains_converge() {
    let mut shim = Shim::start(python(
        "
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(8):
    if os.fork() == 0:
        while True:
            if os.fork(): os._exit(0)
tell('up')
while True: time.sleep(0.02)",
    ));
    shim.event();
    let since = Instant::now();

    shim.say(&stop(0));
    let dead = shim.dead();

    println!("8 fork chains ended in {:?}", since.elapsed());
    assert_eq!((dead.survivors, shim.survivors()), (0, vec![]));
}

#[test]
fn a_stopped_worker_still_takes_its_sigterm() {
    let mut shim = Shim::start(sh("echo up > $EVENTS; exec sleep 600"));
    let worker = shim.started();
    shim.event();
    worker.signal(Signal::STOP);
    let since = Instant::now();

    shim.say(&stop(15_000));
    let dead = shim.dead();

    assert!(
        since.elapsed() < Duration::from_secs(10),
        "waited for the whole grace"
    );
    assert_eq!(dead.signal, Some(15));
}

#[test]
fn a_stopped_worker_is_killed() {
    let mut shim = Shim::start(sh("echo up > $EVENTS; exec sleep 600"));
    let worker = shim.started();
    shim.event();
    worker.signal(Signal::STOP);

    shim.say(&stop(0));

    assert_eq!(shim.dead().signal, Some(9));
}

#[test]
fn a_worker_that_crashes_tells_its_signal_and_its_last_words() {
    let mut shim = Shim::start(sh("echo out; echo oh no >&2; kill -SEGV $$"));

    let dead = shim.dead();

    assert_eq!((dead.cause, dead.signal), (Cause::Signaled, Some(11)));
    assert_eq!(dead.stderr_tail, b"oh no\n");
}

#[test]
fn a_signal_reaches_the_main_process() {
    let mut shim = Shim::start(python(
        "signal.signal(signal.SIGUSR1, lambda *_: tell('heard'))\ntell('up')\nwhile True: time.sleep(0.02)",
    ));
    shim.event();

    shim.say(&Message::Signal {
        signo: Signal::USR1.as_raw(),
    });

    assert_eq!(shim.event(), "heard");
}

#[test]
fn sigterm_to_the_shim_is_an_operators_order() {
    let mut shim = Shim::start(sh("echo up > $EVENTS; exec sleep 600"));
    shim.event();

    Process::of(shim.child.id()).signal(Signal::TERM);

    assert_eq!(shim.dead().cause, Cause::Ordered(Orderer::Operator));
}

#[test]
fn a_killed_shim_takes_its_worker_along() {
    let mut shim = Shim::start(sh(
        "trap '' TERM; echo up > $EVENTS; while :; do sleep 1; done",
    ));
    let worker = shim.started();
    shim.event();

    shim.child.kill().unwrap();

    let took = worker.gone_within(PATIENCE);
    println!("worker gone {took:?} after its shim");
}

#[test]
fn a_stopped_shim_cannot_keep_its_worker_past_the_deadline() {
    let mut launch = sh("echo up > $EVENTS; exec sleep 600");
    launch.node_deadline_ns = in_ms(1_500);
    launch.kill_grace_ms = 200;
    let mut shim = Shim::start(launch);
    let worker = shim.started();
    shim.event();

    let held = Process::of(shim.child.id());
    held.signal(Signal::STOP);

    worker.gone_within(Duration::from_secs(5));
}

#[test]
fn a_bystander_in_the_same_session_is_never_signalled() {
    let bystander = Own::sleeper();
    let mut shim = Shim::start(sh(
        "trap '' TERM; echo up > $EVENTS; while :; do sleep 1; done",
    ));
    shim.event();

    shim.say(&stop(100));
    shim.dead();
    shim.say(&Message::Acknowledge);
    shim.left();

    bystander.process().lives_for(Duration::from_millis(100));
}
