//! Every service exchanged for another process of it, one after the other, while calls go on: by the commands of
//! docs/how-to/upgrade.md.

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

const GUIDE: &str = include_str!("../../../docs/how-to/upgrade.md");

/// A command of the guide that exchanges a process.
struct Exchange {
    /// With this house's paths and programs for those of the guide.
    line: String,
    /// Where it has the process's number.
    file: PathBuf,
    program: &'static str,
    /// Which arbiter, as the guide counts them.
    number: Option<&'static str>,
}

impl Exchange {
    /// All of them, in the order of the guide.
    fn of_guide(house: &House) -> Vec<Self> {
        let block = GUIDE.split("```sh\n").nth(1).unwrap();
        let mut lines = block.split("```").next().unwrap().lines();
        let log = lines.next().unwrap();
        assert_eq!(log, "export LOG=/var/log/tether.log");
        let all = lines.map(|line| Self::read(house, log, line));
        all.collect()
    }

    fn read(house: &House, log: &str, line: &'static str) -> Self {
        let words: Vec<_> = line.split(' ').collect();
        let at = words.iter().position(|word| word.ends_with(".pid"));
        let at = at.unwrap_or_else(|| panic!("`{line}` names no process"));
        let (file, name) = (words[at], words[at + 1]);
        let dir = house.path("");
        let dir = dir.display().to_string();
        let here = |text: &str| {
            text.replace("/run/tether/", &dir)
                .replace("/etc/tether/", &dir)
                .replace("/var/log/", &dir)
        };
        let path = program(name).display().to_string();
        let line = here(line).replace(&format!(" {name} "), &format!(" {path} "));
        let number = file.strip_prefix("/run/tether/arbiter-");
        Self {
            line: format!("{}\n{line}", here(log)),
            file: here(file).into(),
            program: name,
            number: number.and_then(|rest| rest.strip_suffix(".pid")),
        }
    }
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

/// Has a command of the guide exchange a process, and sees the old one leave in good order.
async fn exchange(mut old: Child, by: &Exchange) {
    std::fs::write(&by.file, old.id().unwrap().to_string()).unwrap();
    let mut shell = Command::new("sh");
    shell
        .args(["-ec", &by.line])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let both = async { tokio::join!(shell.output(), old.wait()) };
    let (ran, left) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    let ran = ran.unwrap();
    assert!(
        ran.status.success(),
        "{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    assert_eq!(left.unwrap().code(), Some(0), "{} leaves in order", by.line);
}

/// What the guide says of it: those that do not lead first, agents last.
const ORDER: [(&str, Option<&str>); 5] = [
    ("tether-arbiter", Some("2")),
    ("tether-arbiter", Some("1")),
    ("tether-discovery", None),
    ("tether-gateway", None),
    ("tether-agent", None),
];

#[tokio::test]
async fn everything_is_upgraded_while_calls_go_on_and_nothing_fails_or_dies() {
    let mut house = House::start().await;
    let mut started = Started(Vec::new());
    let mut calls = Steady::calls(&house.client(), "digits");
    calls.go_on(5).await;

    let leader = house.leader().await;
    // The guide's first arbiter is the one that leads.
    let of_guide = |number: &str| match number {
        "1" => leader,
        _ => 1 - leader,
    };
    for number in ["1", "2"] {
        house.configure_arbiter(of_guide(number), &format!("arbiter-{number}.toml"));
    }
    let all = Exchange::of_guide(&house);
    let order: Vec<_> = all.iter().map(|one| (one.program, one.number)).collect();
    assert_eq!(order, ORDER);
    for one in &all {
        let old = match one.number {
            Some(number) => house.arbiters[of_guide(number)].take().unwrap(),
            None => house.take(one.program),
        };
        started.0.push(one.file.clone());
        exchange(old, one).await;
        calls.go_on(5).await;
        if one.number.is_some_and(|number| of_guide(number) == leader) {
            assert_eq!(house.leader().await, 1 - leader);
        }
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
