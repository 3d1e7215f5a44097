//! Signals, tried on a real process: this test starts itself as the child.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "test helpers outside of test functions"
)]

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tether_kit::stop;

const CHILD: &str = "TETHER_KIT_STOP_CHILD";

fn spawn(test: &str, behaviour: &str) -> (Child, impl Iterator<Item = String>) {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, behaviour)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines.map_while(Result::ok))
}

fn say(word: &str) {
    println!("{word}");
}

async fn child(behaviour: &str) {
    let stopping = stop::on_signals().unwrap();
    say("ready");
    stopping.cancelled().await;
    say("stopping");
    match behaviour {
        "leaves" => {}
        _ => std::future::pending().await,
    }
}

fn signal(child: &Child, signal: Signal) {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&pidfd, signal).unwrap();
}

/// The exit status, or nothing for a process that has to be killed because it does not end. An
/// impatient caller goes on asking.
fn ended(child: &mut Child, impatient: bool) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if impatient {
            signal(child, Signal::INT);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[tokio::test]
async fn the_first_signal_asks_and_the_second_insists() {
    if let Ok(behaviour) = env::var(CHILD) {
        return child(&behaviour).await;
    }
    for (behaviour, expected) in [("leaves", 0), ("hangs", stop::EXIT_FAILURE)] {
        let (mut process, mut lines) =
            spawn("the_first_signal_asks_and_the_second_insists", behaviour);
        assert!(lines.any(|line| line == "ready"));

        signal(&process, Signal::TERM);
        assert!(lines.any(|line| line == "stopping"));
        let asked = Instant::now();

        assert_eq!(
            ended(&mut process, behaviour == "hangs"),
            Some(expected.into())
        );
        // Several signals of one moment are one request.
        assert!(behaviour == "leaves" || asked.elapsed() >= Duration::from_millis(400));
    }
}
