//! Every service exchanged for another process of it, one after the other, while calls go on.

use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tether_tests::{DEADLINE, Steady, kill, program};
use tokio::process::{Child, Command};

use crate::house::{House, say};

/// Processes that the script has started: nobody's children here.
struct Started(Vec<PathBuf>);

impl Drop for Started {
    fn drop(&mut self) {
        for pid in self.0.iter().filter_map(|file| pid_in(file)) {
            kill(pid, Signal::KILL);
        }
    }
}

fn pid_in(file: &Path) -> Option<u32> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// deploy/upgrade/process.sh for the process whose number is in a file.
fn script(house: &House, flags: &[&str], file: &Path, name: &str) -> Command {
    let mut script = Command::new("sh");
    script
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../deploy/upgrade/process.sh"
        ))
        .args(flags)
        .arg(file)
        .arg(program(name))
        .arg("--config")
        .arg(house.path("tether.toml"))
        .env("LOG", house.path("log"));
    script
}

/// Has deploy/upgrade/process.sh exchange a process, and sees the old one leave in good order.
async fn exchange(
    house: &House,
    mut old: Child,
    name: &str,
    more: &[&str],
    flags: &[&str],
) -> PathBuf {
    let file = house.path(&format!("{name}-{}.pid", old.id().unwrap()));
    std::fs::write(&file, old.id().unwrap().to_string()).unwrap();
    let mut script = script(house, flags, &file, name);
    script.args(more);
    let both = async { tokio::join!(script.output(), old.wait()) };
    let (ran, left) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    let ran = ran.unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    assert_eq!(left.unwrap().code(), Some(0), "{name} leaves in good order");
    file
}

#[tokio::test]
async fn everything_is_upgraded_while_calls_go_on_and_nothing_fails_or_dies() {
    let mut house = House::start().await;
    let mut started = Started(Vec::new());
    let mut calls = Steady::calls(&house.client(), "digits");
    calls.go_on(5).await;

    let leader = house.leader().await;
    for number in [1 - leader, leader] {
        let old = house.arbiters[number].take().unwrap();
        let listen = house.listen_of_arbiter(number);
        let set = ["--set", &listen];
        started
            .0
            .push(exchange(&house, old, "tether-arbiter", &set, &[]).await);
        calls.go_on(5).await;
    }
    assert_eq!(house.leader().await, 1 - leader);
    for (name, flags) in [
        ("tether-discovery", &[][..]),
        ("tether-gateway", &["--beside"]),
        ("tether-agent", &[]),
    ] {
        let old = house.take(name);
        started
            .0
            .push(exchange(&house, old, name, &[], flags).await);
        calls.go_on(5).await;
    }

    let tally = calls.end().await;
    let (made, slowest) = (tally.made, tally.slowest);
    assert!(tally.failed.is_empty(), "{:?}", tally.failed);
    say(&format!(
        "0 of {made} calls failed, the slowest took {slowest:?}"
    ));
    house.nothing_was_lost().await;
}

#[tokio::test]
async fn an_upgrade_goes_on_after_a_process_that_is_gone_and_ends_none_that_is_not_ours() {
    let mut house = House::start().await;
    let file = house.path("discovery.pid");
    let name = "tether-discovery";
    let mut other = Command::new("sleep")
        .arg("600")
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    for said in ["-1", "1", "", "x", &other.id().unwrap().to_string()] {
        std::fs::write(&file, said).unwrap();
        let ran = script(&house, &[], &file, name).output().await.unwrap();
        let error = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(
            !ran.status.success() && error.contains("upgrade: "),
            "{error}"
        );
    }
    assert!(other.try_wait().unwrap().is_none(), "it was ended");
    std::fs::write(&file, "2").unwrap();
    let mut unlogged = script(&house, &[], &file, name);
    let ran = unlogged.env_remove("LOG").output().await.unwrap();
    assert!(String::from_utf8_lossy(&ran.stderr).contains("set LOG"));

    let mut old = house.take(name);
    std::fs::write(&file, old.id().unwrap().to_string()).unwrap();
    old.kill().await.unwrap();
    let _started = Started(vec![file.clone()]);
    let ran = tokio::time::timeout(DEADLINE, script(&house, &[], &file, name).output());
    let ran = ran.await.unwrap().unwrap();

    let error = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{error}");
    assert!(pid_in(&file) != old.id());
}
