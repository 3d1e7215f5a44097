//! `tether choose`, driven as somebody would: what it writes is taken by the programs that it is for.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

const TETHER: &str = env!("CARGO_BIN_EXE_tether");

/// Nothing here takes as long, on a busy machine either.
const DEADLINE: Duration = Duration::from_secs(60);

/// Runs it in `dir`, with these lines on standard input.
fn choose(dir: &Path, args: &[&str], lines: &str) -> Output {
    let mut child = Command::new(TETHER)
        .arg("choose")
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that needs no answers may have ended already.
    let _ = child.stdin.take().unwrap().write_all(lines.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

#[test]
fn every_way_through_the_questions_ends_with_files_that_the_programs_take() {
    let ways = [
        ("no\n", "coupled"),
        ("yes\nno\nhost\nshop@web-1\n", "supervised"),
        ("yes\nyes\nno\nkubernetes\nshop\n", "independent"),
        (
            "yes\nyes\nyes\nnomad\netcd://etcd-1:2379\nshop\n",
            "distributed",
        ),
        (
            "yes\nyes\nyes\nhost\netcd://etcd-1:2379\nshop\n",
            "distributed",
        ),
    ];
    for (answers, mode) in ways {
        let dir = tempfile::tempdir().unwrap();
        let chosen = choose(dir.path(), &[], answers);
        assert!(chosen.status.success(), "{}", text(&chosen.stderr));
        assert!(text(&chosen.stdout).contains(&format!("mode `{mode}`: ")));

        assert!(read(dir.path(), "pool.toml").contains(&format!("mode = \"{mode}\"")));
        let exs = read(dir.path(), "tether.exs");
        assert!(exs.contains(&format!("worker_lifecycle_mode: :{mode}")));
        let scheduler = ["kubernetes", "nomad"]
            .into_iter()
            .find(|it| answers.contains(it));
        if let Some(scheduler) = scheduler {
            // Its manifests have a file that would be another one than this.
            assert!(exs.contains(&format!("deploy/{scheduler} ")), "{exs}");
            assert!(!dir.path().join("tether.toml").exists());
            continue;
        }
        let checked = Command::new(TETHER)
            .args(["config", "check", "--config", "tether.toml"])
            .current_dir(dir.path())
            .env_remove("TETHER_CONFIG")
            .output()
            .unwrap();
        assert!(
            checked.status.success(),
            "{mode}: {}",
            text(&checked.stderr)
        );
    }
}

#[test]
fn answers_come_from_flags_and_from_a_file_and_the_rest_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let file = "outlive_crash = \"yes\"\noutlive_restart = \"yes\"\nplace = \"host\"\n";
    fs::write(dir.path().join("answers.toml"), file).unwrap();
    let given = ["--answers", "answers.toml", "--outlive-node", "no"];

    let short = choose(dir.path(), &given, "");
    assert_eq!(short.status.code(), Some(1));
    assert!(
        text(&short.stderr).contains("give `--owner`"),
        "{}",
        text(&short.stderr)
    );
    assert!(!dir.path().join("tether.toml").exists());

    let whole = choose(dir.path(), &given, "no such name\nshop\n");
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    assert!(read(dir.path(), "tether.exs").contains(":independent"));
    assert!(read(dir.path(), "tether.exs").contains("owner: \"shop\""));
}

#[test]
fn what_is_there_is_kept_unless_it_is_forced_and_a_dry_run_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tether.exs"), "mine").unwrap();
    let no = ["--outlive-crash", "no"];

    let kept = choose(dir.path(), &no, "");
    assert_eq!(kept.status.code(), Some(1));
    assert!(text(&kept.stderr).contains("--force"));
    assert_eq!(read(dir.path(), "tether.exs"), "mine");
    assert!(!dir.path().join("tether.toml").exists(), "all or nothing");

    let dry = choose(dir.path(), &[&no[..], &["--dry-run"]].concat(), "");
    assert!(dry.status.success() && text(&dry.stdout).contains("mode `coupled`"));
    assert_eq!(read(dir.path(), "tether.exs"), "mine");

    let forced = choose(dir.path(), &[&no[..], &["--force"]].concat(), "");
    assert!(forced.status.success(), "{}", text(&forced.stderr));
    assert!(read(dir.path(), "tether.exs").contains(":coupled"));
}

/// Does not outlive its test.
struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_it_wrote_starts_and_says_that_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let chosen = choose(dir.path(), &[], "yes\nno\nhost\nshop\n");
    assert!(chosen.status.success(), "{}", text(&chosen.stderr));

    let probes = dir.path().join("admin.sock");
    let gateway = dir.path().join("gateway.sock");
    let set = [
        format!("listen.runtime_dir={}", dir.path().join("run").display()),
        format!("listen.gateway=[\"unix:{}\"]", gateway.display()),
        format!("admin.listen=unix:{}", probes.display()),
    ];
    let up = Command::new(TETHER)
        .args(["up", "--config", "tether.toml", "--store", "memory:"])
        .args(set.iter().flat_map(|set| ["--set", set]))
        .current_dir(dir.path())
        .env_remove("TETHER_CONFIG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut up = Up(up);
    let mut log = BufReader::new(up.0.stderr.take().unwrap()).lines();
    assert!(log.any(|line| line.unwrap().contains("Tether is up")));
    let reading = std::thread::spawn(move || log.for_each(drop));

    let until = Instant::now() + DEADLINE;
    while !ask(&probes, "readiness").contains("200 OK") {
        assert!(Instant::now() < until, "it does not serve");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(ask(&probes, "liveness").contains("200 OK"));

    let pid = Pid::from_child(&up.0);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    pidfd_send_signal(pidfd, Signal::TERM).unwrap();
    assert_eq!(up.0.wait().unwrap().code(), Some(0));
    reading.join().unwrap();
}

fn ask(socket: &Path, what: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    let request = format!("GET /health/{what} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
