//! What came of a service and may outlive it: supervisord and runit know its main process alone.
//!
//! What can be proved to belong to it is ended with it: each process that was seen below the main one while that lived,
//! wherever it went since, and each whose environment says so: in words that supervisord gives each program, or in
//! `TETHER_KEPT`, which a service of runit sets to its own directory. A name alone would prove nothing, as another
//! supervisor may have a service that is called the same. What left both behind between two looks stays, and the worker's
//! status says so.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    process::{Signal, pidfd_send_signal},
    time::{ClockId, clock_gettime},
};
use tether_kit::process::{parent, start_ticks};
use tether_sys::{Seen, has_ended, look};
use tokio::time::{Instant, sleep};

/// Longest time for what was killed to be gone; what the kernel cannot end is no reason to wait for ever.
const GONE_WITHIN: Duration = Duration::from_secs(2);

const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// In `/proc`, start times count by this on every machine that Linux runs on.
const TICKS_A_SECOND: i64 = 100;

/// What came of one service.
pub(super) struct Kin {
    /// All of what its environment says.
    marks: Vec<Mark>,
    seen: BTreeMap<u32, OwnedFd>,
    /// The main process that was looked at last, and whether it has the marks.
    main: u32,
    is_marked: bool,
    /// Whether all is ended that was seen.
    is_over: bool,
}

/// What the environment of a service says.
pub(super) enum Mark {
    /// This variable, with its value.
    Says(String),
    /// A variable up to where the path of a socket begins, and that socket: it may be called otherwise there, as
    /// `/var/run` is `/run`.
    Names(&'static str, PathBuf),
}

impl Mark {
    pub(super) fn names(before: &'static str, socket: &Path) -> Self {
        Self::Names(before, real(socket))
    }

    fn is(&self, variable: &[u8]) -> bool {
        match self {
            Self::Says(said) => variable == said.as_bytes(),
            Self::Names(before, socket) => variable
                .strip_prefix(before.as_bytes())
                .is_some_and(|path| real(Path::new(OsStr::from_bytes(path))) == *socket),
        }
    }
}

/// The one way to a socket, which need not be there any more.
fn real(socket: &Path) -> PathBuf {
    let real = || {
        Some(
            fs::canonicalize(socket.parent()?)
                .ok()?
                .join(socket.file_name()?),
        )
    };
    real().unwrap_or_else(|| socket.to_owned())
}

impl Kin {
    /// Of the service whose environment says all of that; nothing is marked where that is nothing.
    pub(super) fn of(marks: Vec<Mark>) -> Self {
        Self {
            marks,
            seen: BTreeMap::new(),
            main: 0,
            is_marked: false,
            is_over: false,
        }
    }

    /// Looks at what is below this process, and below what was seen before.
    pub(super) fn look(&mut self, main: u32) {
        if self.main != main {
            self.main = main;
            self.is_marked = self.is_marked_one(main);
        }
        self.is_over = false;
        self.seen.retain(|_, pidfd| !has_ended(pidfd.as_raw_fd()));
        let mut above: Vec<u32> = self.seen.keys().copied().chain([main]).collect();
        while let Some(pid) = above.pop() {
            for child in children(pid) {
                if self.seen.contains_key(&child) {
                    continue;
                }
                let is_it = || parent(child).map(|parent| parent == pid);
                if let Seen::Alive(pidfd) = look(child, is_it) {
                    self.seen.insert(child, pidfd);
                    above.push(child);
                }
            }
        }
    }

    /// There may be more of it, of a run that nobody has looked at.
    pub(super) fn may_have_more(&mut self) {
        self.is_over = false;
    }

    /// What a status says of it.
    pub(super) fn said(&self) -> &'static str {
        match self.is_marked {
            true => "what comes of it ends with it",
            false => {
                "what leaves it within 200 ms of its start may outlive it, as its environment does not say whose it is"
            }
        }
    }

    /// Ends what is left, once, after the service has ended. What began after `now` belongs to its next run.
    pub(super) async fn end(&mut self, now: Moment) {
        if self.is_over {
            return;
        }
        let until = Instant::now() + GONE_WITHIN;
        loop {
            for (pid, pidfd) in self.marked(now) {
                self.seen.entry(pid).or_insert(pidfd);
            }
            let left: Vec<u32> = self.seen.keys().copied().collect();
            for pid in left {
                // Those it has made since go with it.
                for child in children(pid) {
                    let is_it = || parent(child).map(|parent| parent == pid);
                    if let Seen::Alive(pidfd) = look(child, is_it) {
                        self.seen.entry(child).or_insert(pidfd);
                    }
                }
            }
            self.seen.retain(|_, pidfd| !has_ended(pidfd.as_raw_fd()));
            if self.seen.is_empty() || Instant::now() > until {
                break;
            }
            for pidfd in self.seen.values() {
                // Refused for those of other users, which are left.
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
            }
            sleep(LOOK_AGAIN).await;
        }
        self.seen.clear();
        self.is_over = true;
    }

    fn marked(&self, now: Moment) -> Vec<(u32, OwnedFd)> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let found = pids.filter_map(|pid| {
            let start = start_ticks(pid).filter(|start| *start < now.0)?;
            let is_it = || Some(start_ticks(pid) == Some(start) && self.is_marked_one(pid));
            match look(pid, is_it) {
                Seen::Alive(pidfd) => Some((pid, pidfd)),
                Seen::Gone | Seen::Not => None,
            }
        });
        found.collect()
    }

    fn is_marked_one(&self, pid: u32) -> bool {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let says = |mark: &Mark| {
            let mut variables = environment.split(|byte| *byte == 0);
            variables.any(|variable| mark.is(variable))
        };
        !self.marks.is_empty() && self.marks.iter().all(says)
    }
}

/// A moment by which processes' starts count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment(u64);

impl Moment {
    pub(super) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let ticks = now.tv_sec * TICKS_A_SECOND + now.tv_nsec / (1_000_000_000 / TICKS_A_SECOND);
        Self(u64::try_from(ticks).unwrap_or_default())
    }

    /// The earlier of it and when this process began, where that is there.
    pub(super) fn or_start_of(self, pid: u32) -> Self {
        Self(start_ticks(pid).map_or(self.0, |start| start.min(self.0)))
    }
}

fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    let lists =
        threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let numbers = lists.flat_map(|list| {
        let numbers = list.split_ascii_whitespace().map(str::parse);
        numbers.filter_map(Result::ok).collect::<Vec<u32>>()
    });
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Command, Stdio},
    };

    use super::*;

    fn mark(value: &str) -> Vec<Mark> {
        vec![Mark::Says(format!("TETHER_KEPT={value}"))]
    }

    #[test]
    fn a_socket_is_the_same_by_whichever_way_it_is_named() {
        const URL: &str = "SUPERVISOR_SERVER_URL=unix://";
        let dir = tempfile::tempdir().unwrap();
        let (run, link) = (dir.path().join("run"), dir.path().join("link"));
        fs::create_dir(&run).unwrap();
        std::os::unix::fs::symlink(&run, &link).unwrap();
        let mark = Mark::names(URL, &run.join("s.sock"));
        let says = |path: PathBuf| mark.is(format!("{URL}{}", path.display()).as_bytes());

        assert!(says(run.join("s.sock")) && says(link.join("s.sock")));
        assert!(!says(run.join("other.sock")) && !mark.is(b"SUPERVISOR_ENABLED=1"));
    }

    /// A process with a daemonised child, which it names.
    fn family(mark: &str) -> (std::process::Child, u32) {
        let mut main = Command::new("sh")
            .args([
                "-c",
                "setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 600; done' & wait",
            ])
            .env("TETHER_KEPT", mark)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = main.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        (main, line.trim_end().parse().unwrap())
    }

    fn lives(pid: u32) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    }

    #[tokio::test]
    async fn what_was_seen_below_a_service_ends_with_it_and_so_does_what_is_marked() {
        let name = format!("kin-{}", std::process::id());
        for (kept, is_seen, ends) in [
            ("other", true, true),
            (&*name, false, true),
            ("other", false, false),
        ] {
            let (mut main, child) = family(kept);
            let mut kin = Kin::of(mark(&name));
            if is_seen {
                kin.look(main.id());
                assert!(kin.said().contains("may outlive it"));
            }
            main.kill().unwrap();
            main.wait().unwrap();
            // The start of a process counts by hundredths of a second.
            sleep(Duration::from_millis(20)).await;

            kin.end(Moment::now()).await;

            assert_eq!(lives(child), !ends, "{kept} {is_seen}");
            if !ends {
                let mut rest = Kin::of(mark("other"));
                rest.end(Moment::now()).await;
                assert!(!lives(child));
            }
        }
    }

    #[tokio::test]
    async fn what_began_later_belongs_to_the_next_run() {
        let name = format!("next-{}", std::process::id());
        let before = Moment::now();
        sleep(Duration::from_millis(20)).await;
        let (mut main, child) = family(&name);

        Kin::of(mark(&name)).end(before).await;
        let of_main = Moment::now().or_start_of(main.id());
        Kin::of(mark(&name)).end(of_main).await;
        assert!(lives(child));

        sleep(Duration::from_millis(20)).await;
        Kin::of(mark(&name)).end(Moment::now()).await;
        assert!(!lives(child) && !lives(main.id()));
        main.wait().unwrap();
    }
}
