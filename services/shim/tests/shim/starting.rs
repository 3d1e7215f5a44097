//! How workers start, and how they do not.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tether_shim_protocol::{
    Cause, Decoder, Launch, Message, Orderer, SOCKET_FILE, STDOUT_FILE, SpawnFailure, Stage, Walls,
    encode,
};

use crate::harness::{Own, PATIENCE, Shim, launch, python, sh};

const SHIM: &str = env!("CARGO_BIN_EXE_tether-shim");

fn failure_of(launch: Launch) -> (Stage, i32) {
    let mut shim = Shim::start(launch);
    let dead = shim.dead();

    assert_eq!((dead.cause, dead.exit_code), (Cause::SpawnFailed, None));
    let SpawnFailure { stage, errno } = dead.spawn_failure.unwrap();
    let reported =
        |message: &Message| *message == Message::SpawnFailed(SpawnFailure { stage, errno });
    assert!(shim.said.iter().any(reported), "{:?}", shim.said);
    assert!(
        !shim
            .said
            .iter()
            .any(|message| matches!(message, Message::Started { .. }))
    );
    (stage, errno)
}

#[test]
fn a_start_that_fails_says_where_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let refused = dir.path().join("refused");
    fs::write(&refused, "#!/bin/sh\n").unwrap();
    let formless = dir.path().join("formless");
    fs::write(&formless, "no program").unwrap();
    fs::set_permissions(&formless, fs::Permissions::from_mode(0o755)).unwrap();
    let in_path = |name: &str| {
        let mut launch = launch(&[name]);
        launch.env = vec![(
            b"PATH".to_vec(),
            [dir.path().as_os_str().as_bytes(), b":/bin"].concat(),
        )];
        launch
    };
    let nowhere = b"/nowhere/at/all".to_vec();
    let here = fs::read_dir(".").unwrap().count();
    let (enoent, eacces, enoexec, einval) = (2, 13, 8, 22);

    assert_eq!(
        failure_of(in_path("no-such-command")),
        (Stage::Exec, enoent)
    );
    assert_eq!(
        failure_of(launch(&["/no/such/command"])),
        (Stage::Exec, enoent)
    );
    assert_eq!(failure_of(in_path("refused")), (Stage::Exec, eacces));
    assert_eq!(failure_of(in_path("formless")), (Stage::Exec, enoexec));
    assert_eq!(failure_of(launch(&[])), (Stage::Exec, einval));
    assert_eq!(
        failure_of(Launch {
            cwd: nowhere.clone(),
            ..sh("")
        }),
        (Stage::Chdir, enoent)
    );
    assert_eq!(
        failure_of(Launch {
            dir: nowhere.clone(),
            ..sh("")
        }),
        (Stage::Directory, enoent)
    );
    assert_eq!(
        failure_of(Launch {
            walls: Walls {
                cgroup: Some(nowhere),
                ..Walls::default()
            },
            ..sh("")
        }),
        (Stage::Cgroup, enoent)
    );
    assert_eq!(
        fs::read_dir(".").unwrap().count(),
        here,
        "a shim wrote where it was started"
    );
}

#[test]
fn a_worker_inherits_nothing_but_what_it_was_given() {
    let mut launch = python(
        "
status = dict(line.split(':\t') for line in open('/proc/self/status').read().splitlines() if ':\t' in line)
print([hex(int(status[name], 16) & 0x7fffffff) for name in ('SigBlk', 'SigIgn')])
print(len(os.listdir('/proc/self/fd')), os.readlink('/proc/self/fd/0'))
print(os.getsid(0) == os.getpid(), os.getcwd(), sorted(os.environ))
print(oct(os.umask(0)))",
    );
    launch.env.push((b"GIVEN".to_vec(), b"1".to_vec()));
    launch.cwd = b"/usr".to_vec();
    let mut shim = Shim::start_with(launch, Path::new(SHIM), |command| {
        // An open file of the agent's, and its signal habits, are no business of the worker's.
        command.env("NOT_GIVEN", "1").stdout(Stdio::piped());
    });

    let dead = shim.dead();

    assert_eq!(
        dead.exit_code,
        Some(0),
        "{}",
        String::from_utf8_lossy(&dead.stderr_tail)
    );
    let printed = fs::read_to_string(shim.path(STDOUT_FILE)).unwrap();
    let lines: Vec<_> = printed.lines().collect();
    // Python itself ignores SIGPIPE (13) and SIGXFSZ (25), and holds the listing open. The C
    // library keeps 32 and 33 to itself.
    assert_eq!(lines[0], "['0x0', '0x1001000']");
    assert_eq!(lines[1], "4 /dev/null");
    let mut names = vec!["EVENTS", "GIVEN", "PATH"];
    // Python adds this one where the locale is unset.
    if lines[2].contains("LC_CTYPE") {
        names.push("LC_CTYPE");
    }
    names.sort_unstable();
    let names: Vec<_> = names.iter().map(|name| format!("'{name}'")).collect();
    assert_eq!(lines[2], format!("True /usr [{}]", names.join(", ")));
    assert_ne!(
        lines[3], "0o177",
        "the mask that guards the socket is not the worker's"
    );
}

#[test]
fn the_socket_is_for_its_owner_alone() {
    let mut shim = Shim::start(sh("exec sleep 600"));
    shim.started();

    let mode = fs::metadata(shim.path(SOCKET_FILE))
        .unwrap()
        .permissions()
        .mode();

    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_shim_started_by_hand_says_what_it_is_for() {
    let output = Command::new(SHIM).stdin(Stdio::null()).output().unwrap();
    let version = Command::new(SHIM).arg("--version").output().unwrap();

    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("tether up"));
    let expected = format!("tether-shim {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(String::from_utf8_lossy(&version.stdout), expected);
}

#[test]
fn a_shim_whose_agent_asked_for_nothing_leaves_with_it() {
    let (mut ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let stdin = Stdio::from(std::os::fd::OwnedFd::from(theirs));
    let mut child = Command::new(SHIM).stdin(stdin).spawn().unwrap();
    let mut hello = [0; 4];
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    ours.read_exact(&mut hello).unwrap();

    ours.write_all(&[9, 9]).unwrap();
    drop(ours);

    assert!(child.wait().unwrap().success());
}

#[test]
fn everything_works_without_root() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: not root, so every other test of this file shows it");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("tether-shim");
    fs::copy(SHIM, &program).unwrap();
    for path in [dir.path(), &program] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut launch = sh(
        "(setsid sh -c 'trap \"\" TERM; echo $$ > $EVENTS; while :; do sleep 1; done' &) \
                     ; while :; do sleep 1; done",
    );
    launch.walls.user_namespace = launch.walls.namespace;
    let mut shim = Shim::start_with(launch, &program, |command| {
        command.uid(65534).gid(65534).env("AS_UID", "65534");
    });
    let daemon = shim.process();

    shim.say(&Message::Stop {
        cause: Cause::Ordered(Orderer::Agent),
        grace_ms: 100,
    });
    let dead = shim.dead();

    daemon.gone_within(std::time::Duration::ZERO);
    assert_eq!(
        (dead.cause, dead.survivors),
        (Cause::Ordered(Orderer::Agent), 0)
    );
    assert_eq!(shim.death_on_disk(), dead);
}

/// A place for leaves, where this machine lets one be made.
struct Leaf(PathBuf);

impl Leaf {
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/mounts").ok()?;
        let mount = mounts
            .lines()
            .find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
        let path = Path::new(mount.split(' ').nth(1)?);
        let leaf = path.join(format!("tether-shim-test-{}", std::process::id()));
        fs::create_dir(&leaf).ok()?;
        // Where only the directory can be made, there is nothing to test.
        leaf.join("cgroup.kill").exists().then_some(Self(leaf))
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        // Where the test failed, the shim did not live to remove its own.
        let _ = fs::remove_dir(self.0.join("worker"));
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_cgroup_is_joined_at_birth_killed_as_one_and_removed() {
    let Some(leaf) = Leaf::new() else {
        println!("skipped: no cgroup v2 in which this user may make a leaf");
        return;
    };
    let cgroup = leaf.0.join("worker");
    let mut launch = sh("cat /proc/self/cgroup; \
                         (setsid sh -c 'echo $$ > $EVENTS; exec sleep 600' &); exec sleep 600");
    launch.walls.cgroup = Some(cgroup.as_os_str().as_bytes().to_vec());
    let mut shim = Shim::start(launch);
    let daemon = shim.process();
    // In the cgroup and not below the shim: only `cgroup.kill` reaches it.
    let stranger = Own::sleeper();
    let moved = stranger.process();
    fs::write(cgroup.join("cgroup.procs"), moved.pid.to_string()).unwrap();

    shim.say(&Message::Stop {
        cause: Cause::Ordered(Orderer::Agent),
        grace_ms: 0,
    });
    let dead = shim.dead();

    daemon.gone_within(std::time::Duration::ZERO);
    moved.gone_within(std::time::Duration::ZERO);
    assert_eq!((dead.survivors, cgroup.exists()), (0, false));
    let joined = fs::read_to_string(shim.path(STDOUT_FILE)).unwrap();
    assert!(joined.contains("/worker\n"), "{joined}");
}

#[test]
fn an_order_that_comes_in_one_piece_with_the_launch_is_heard() {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    let dir = tempfile::tempdir().unwrap();
    let mut launch = sh("touch started; sleep 60");
    launch.dir = dir.path().as_os_str().as_bytes().to_vec();
    launch.cwd = launch.dir.clone();
    let stop = Message::Stop {
        cause: Cause::Ordered(Orderer::Scale),
        grace_ms: 0,
    };
    let (mut ours, theirs) = UnixStream::pair().unwrap();

    let both = [encode(&Message::Launch(Box::new(launch))), encode(&stop)].concat();
    ours.write_all(&both).unwrap();
    let mut shim = std::process::Command::new(SHIM)
        .stdin(std::os::fd::OwnedFd::from(theirs))
        .spawn()
        .unwrap();
    let mut decoder = Decoder::default();
    let mut bytes = [0; 4096];
    let dead = loop {
        match decoder.next_message().unwrap() {
            Some(Message::Dead(dead)) => break dead,
            Some(_) => {}
            None => {
                let count = ours.read(&mut bytes).unwrap();
                assert!(count > 0, "the shim left without a word of death");
                decoder.push(&bytes[..count]);
            }
        }
    };
    ours.write_all(&encode(&Message::Acknowledge)).unwrap();
    shim.wait().unwrap();

    assert_eq!(dead.cause, Cause::Ordered(Orderer::Scale));
    assert!(!dir.path().join("started").exists());
}
