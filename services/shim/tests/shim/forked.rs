//! Workers that are no children of their shim, but of a real fork server.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;
use tether_shim_protocol::{Cause, Launch, Message, Orderer, Proof, Stage, Walls};

use crate::harness::{Own, PATIENCE, Process, Shim, launch};

const PROGRAM: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../clients/python/tether_forkserver.py"
);

/// Starts the program that follows, says its process id, and reaps, as a shim and an agent's zygote do; the
/// program ends with it.
const REAPER: &str = "\
import ctypes, os, subprocess, sys
prctl = ctypes.CDLL(None).prctl
prctl(36, 1, 0, 0, 0)
command = [sys.executable, sys.argv[1], '--import', 'json']
print(subprocess.Popen(command, preexec_fn=lambda: prctl(1, 9, 0, 0, 0)).pid, flush=True)
try:
    while True: os.wait()
except ChildProcessError: pass
";

/// A fork server, and where its workers' cgroups go.
struct Server {
    process: Process,
    /// Its parent, who inherits and reaps what it leaves.
    _reaper: Own,
    dir: TempDir,
    cgroups: PathBuf,
}

impl Server {
    /// Starts one, unless this machine has no cgroup v2 to put workers into.
    fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = own_cgroup()?;
        let socket = dir.path().join("fork.sock");
        let mut child = Command::new("python3")
            .args(["-c", REAPER, PROGRAM])
            .env("TETHER_LISTEN", format!("unix:{}", socket.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let told = child.stdout.take().unwrap();
        BufReader::new(told).read_line(&mut line).unwrap();
        let process = Process::of(line.trim().parse().unwrap());
        let since = Instant::now();
        while !socket.exists() {
            assert!(
                since.elapsed() < PATIENCE,
                "the fork server does not listen"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        Some(Self {
            process,
            _reaper: Own(child),
            dir,
            cgroups,
        })
    }

    fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until somebody is connected whom it has not taken yet.
    fn is_asked(&self) {
        let socket = self.dir.path().join("fork.sock").display().to_string();
        let since = Instant::now();
        let sockets = || fs::read_to_string("/proc/net/unix").unwrap();
        // Its listener is one of them.
        while sockets()
            .lines()
            .filter(|line| line.contains(&socket))
            .count()
            < 2
        {
            assert!(since.elapsed() < PATIENCE, "nobody asks");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What has a script run.
    fn launch(&self, script: &str) -> Launch {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = self.dir.path().join(format!("{number}.py"));
        let tell = "import os, signal, sys, time\n\
                    def tell(what):\n    with open(os.environ['EVENTS'], 'w') as to: to.write(f'{what}\\n')\n";
        fs::write(&file, format!("{tell}{script}")).unwrap();
        let leaf = format!("tether-shim-test-{}-{number}", std::process::id());
        let bytes = |path: &Path| path.as_os_str().as_encoded_bytes().to_vec();
        Launch {
            walls: Walls {
                cgroup: Some(bytes(&self.cgroups.join(leaf))),
                forked_from: Some(bytes(&self.dir.path().join("fork.sock"))),
                ..Walls::default()
            },
            ..launch(&[&file.display().to_string()])
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A shim that was killed removes nothing.
        let mine = format!("tether-shim-test-{}-", std::process::id());
        for entry in fs::read_dir(&self.cgroups).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&mine) {
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}

fn own_cgroup() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    let mount = fields.find_map(|mut line| {
        let path = line.nth(1)?;
        (line.next()? == "cgroup2").then(|| PathBuf::from(path))
    })?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let tried = mount
        .join(own)
        .join(format!("tether-try-{}", std::process::id()));
    let made = fs::create_dir(&tried).is_ok() | tried.join("cgroup.kill").exists();
    let _ = fs::remove_dir(&tried);
    made.then(|| mount.join(own))
}

fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn ordered() -> Cause {
    Cause::Ordered(Orderer::Operator)
}

#[test]
fn a_stop_takes_no_grace_from_what_a_worker_leaves_and_no_longer_than_that_takes() {
    let Some(server) = Server::start() else {
        return;
    };
    let script = "\
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1.5), tell('saved'), os._exit(0)))
    os.closerange(0, 3)
    tell(os.getpid())
    while True: signal.pause()
signal.pause()";
    let mut shim = Shim::start(server.launch(script));
    let worker = shim.started();
    let daemon = Process::of(shim.event().parse().unwrap());

    let grace_ms = 60_000;
    shim.say(&Message::Stop {
        cause: ordered(),
        grace_ms,
    });

    worker.gone_within(PATIENCE);
    assert_eq!(shim.event(), "saved");
    let dead = shim.dead();
    daemon.gone_within(Duration::ZERO);
    assert_eq!((dead.cause, dead.signal), (ordered(), Some(15)));
    assert_eq!((dead.proof, dead.survivors), (Proof::Cgroup, 0));
    assert!(dead.max_rss_kib > 1_000, "{dead:?}");
}

#[test]
fn a_worker_that_was_only_asked_for_never_runs_once_it_is_ordered_to_end() {
    let Some(server) = Server::start() else {
        return;
    };
    let made = server.dir.path().join("made");
    let mut launch = server.launch(&format!("open({:?}, 'w')", made.display().to_string()));
    launch.logs.limit_bytes = 0;
    server.signal(Signal::STOP);
    let mut shim = Shim::start(launch);
    server.is_asked();

    shim.say(&Message::Stop {
        cause: ordered(),
        grace_ms: 60_000,
    });

    // Without waiting for a server that is stopped.
    assert_eq!(shim.dead().cause, ordered());
    server.signal(Signal::CONT);
    // Served after that one.
    let mut next = Shim::start(server.launch("tell('next')"));
    assert_eq!(next.event(), "next");
    assert!(!made.exists());
}

#[test]
fn the_kernel_tells_how_a_worker_ended_whose_server_cannot() {
    let Some(server) = Server::start() else {
        return;
    };
    let mut shim = Shim::start(server.launch("tell('up')\nsignal.pause()"));
    let worker = shim.started();
    assert_eq!(shim.event(), "up");

    server.signal(Signal::KILL);

    worker.gone_within(PATIENCE);
    let dead = shim.dead();
    // A kernel before 6.15 tells that to a parent alone.
    let expected = if kernel() >= (6, 15) {
        (Cause::Signaled, Some(9))
    } else {
        (Cause::Unknown, None)
    };
    assert_eq!((dead.cause, dead.signal), expected);
    assert_eq!(dead.survivors, 0);
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let Some(server) = Server::start() else {
        return;
    };
    let mut launch = server.launch("pass");
    launch.cwd = b"/nowhere/at/all".to_vec();
    let mut shim = Shim::start(launch);

    let dead = shim.dead();

    let failure = dead.spawn_failure.unwrap();
    assert_eq!((failure.stage, failure.errno), (Stage::Fork, libc::ENOENT));
    let said = String::from_utf8_lossy(&dead.stderr_tail).into_owned();
    assert!(
        said.starts_with("tether-forkserver: ") && said.contains("/nowhere/at/all"),
        "{said}"
    );
}

#[test]
fn a_worker_is_gone_with_its_shim() {
    let Some(server) = Server::start() else {
        return;
    };
    let script = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\ntell('up')\nsignal.pause()";
    let mut shim = Shim::start(server.launch(script));
    let worker = shim.started();
    assert_eq!(shim.event(), "up");
    server.signal(Signal::STOP);

    shim.child.kill().unwrap();

    worker.gone_within(PATIENCE);
}
