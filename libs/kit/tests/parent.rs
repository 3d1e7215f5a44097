//! The end of a parent, tried on real processes: this test starts itself as the parent, and that as the child.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "test helpers outside of test functions"
)]
#![allow(
    clippy::zombie_processes,
    reason = "a child that outlives its parent is what is looked at"
)]

use std::{
    env,
    io::{BufRead as _, BufReader},
    process::{Child, ChildStdout, Command, Stdio},
};

use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};
use tether_kit::{
    parent::{Error, Parent},
    stop,
};
use tokio_util::sync::CancellationToken;

const ROLE: &str = "TETHER_KIT_PARENT_ROLE";

fn start(test: &str, role: &str, out: Stdio) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ROLE, role)
        .stdin(Stdio::piped())
        .stdout(out)
        .spawn()
        .unwrap()
}

fn next(lines: &mut impl Iterator<Item = std::io::Result<String>>, word: &str) -> String {
    let mut lines = lines.map_while(Result::ok);
    lines
        .find_map(|line| line.split_once(word).map(|(_, rest)| rest.to_owned()))
        .unwrap()
}

fn lines(child: &mut Child) -> std::io::Lines<BufReader<ChildStdout>> {
    BufReader::new(child.stdout.take().unwrap()).lines()
}

/// Until somebody kills this process, or who started it has ended.
fn forever() {
    let _ = std::io::stdin().read_line(&mut String::new());
}

#[tokio::test]
async fn the_end_of_a_parent_asks_to_stop_and_is_told_as_the_cause() {
    const TEST: &str = "the_end_of_a_parent_asks_to_stop_and_is_told_as_the_cause";
    match env::var(ROLE).as_deref() {
        Ok("parent") => {
            let _child = start(TEST, "child", Stdio::inherit());
            return forever();
        }
        Ok(_) => {
            let parent = Parent::open().unwrap();
            let asked = CancellationToken::new();
            let fate = parent.watch(asked.clone()).unwrap();
            assert!(fate.check().is_ok());
            println!("watching as {}", std::process::id());
            asked.cancelled().await;
            println!("told: {}", fate.check().unwrap_err());
            std::process::exit(stop::EXIT_PARENT.into());
        }
        Err(_) => {}
    }
    // Whoever is orphaned below can be waited for here.
    set_child_subreaper(Some(getpid())).unwrap();
    let mut parent = start(TEST, "parent", Stdio::piped());
    let mut lines = lines(&mut parent);
    let child: i32 = next(&mut lines, "watching as ").parse().unwrap();

    parent.kill().unwrap();

    let told = next(&mut lines, "told: ");
    assert!(
        told.contains(&format!("(pid {}), has ended", parent.id())),
        "{told}"
    );
    let ended = waitpid(Pid::from_raw(child), WaitOptions::empty())
        .unwrap()
        .unwrap();
    assert_eq!(ended.1.exit_status(), Some(stop::EXIT_PARENT.into()));
    parent.wait().unwrap();
}

#[test]
fn one_that_cannot_be_the_one_that_started_this_is_refused() {
    const TEST: &str = "one_that_cannot_be_the_one_that_started_this_is_refused";
    if env::var(ROLE).is_ok() {
        match Parent::open() {
            Ok(_) => println!("told: nothing"),
            Err(error @ (Error::Orphan(_) | Error::Elsewhere)) => println!("told: {error}"),
            Err(error) => panic!("{error}"),
        }
        return;
    }
    // The first process of a PID namespace has a parent that it cannot see, and its child one that starts no services.
    let own = env::current_exe().unwrap();
    let nested = |command: &str| {
        let mut unshare = Command::new("unshare");
        unshare
            .args([
                "--user",
                "--map-root-user",
                "--pid",
                "--fork",
                "--mount-proc",
            ])
            .args(["sh", "-c", command])
            .env(ROLE, "child")
            .env("OWN", &own)
            .env("TEST", TEST)
            .output()
            .unwrap()
    };
    let probe = nested("exit 0");
    if !probe.status.success() {
        let why = String::from_utf8_lossy(&probe.stderr).into_owned();
        return println!("skipped: no PID namespaces here: {why}");
    }
    let told = |command| {
        let ran = nested(command);
        let said = String::from_utf8_lossy(&ran.stdout).into_owned();
        let told = said.lines().find_map(|line| line.split_once("told: "));
        told.map(|(_, told)| told.to_owned()).unwrap_or(said)
    };

    let outside = told("exec \"$OWN\" --exact \"$TEST\" --nocapture");
    let orphan = told("\"$OWN\" --exact \"$TEST\" --nocapture; :");

    assert!(
        outside.contains("outside of this PID namespace"),
        "{outside}"
    );
    assert!(
        orphan.contains("process 1 (`sh`), which is no service manager"),
        "{orphan}"
    );
}
