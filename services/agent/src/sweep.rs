//! Finds processes by the environment they inherited, and kills them: one thread for all workers that are
//! being looked for, as a look at every process of the machine costs the same for one as for a thousand.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{
        OnceLock,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

/// What names the worker in the environment of all its processes.
const VARIABLE: &[u8] = b"TETHER_DIR=";

/// Looks in a row that must find nothing: a chain of processes, each of which forks the next and ends, can
/// slip through one look, between the list of processes and its last entry, but not through many.
const EMPTY_LOOKS: u32 = 6;

/// How many of the newest processes a short look takes in, and how many of those follow a whole one.
const GLANCE: usize = 48;
const GLANCES: usize = 20;

/// Looks after which somebody should know that a process does not die.
const PATIENCE: u32 = 20;

/// Between two looks: at first, as long as what is looked for may still be forking, and at last.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// One worker that is looked for.
#[derive(Debug)]
struct Wanted {
    /// The variable as it stands in the environment.
    marker: Vec<u8>,
    done: oneshot::Sender<u64>,
}

/// How the search for one worker goes.
#[derive(Debug, Default)]
struct Search {
    waiting: Vec<oneshot::Sender<u64>>,
    /// Processes that were killed. One that takes its time to die is met again.
    killed: BTreeSet<i32>,
    looks: u32,
    empty: u32,
}

/// Comes back when no process is left whose environment names `dir`; tells how many there were.
pub(crate) async fn end(dir: &Path) -> u64 {
    static SWEEPER: OnceLock<Option<Sender<Wanted>>> = OnceLock::new();
    let sweeper = SWEEPER.get_or_init(|| {
        let (wanted, told) = channel();
        let started = std::thread::Builder::new()
            .name("sweeper".to_owned())
            .spawn(move || sweep(&told));
        match started {
            Ok(_) => Some(wanted),
            Err(error) => {
                tracing::error!(%error, "Remains of dead workers cannot be looked for");
                None
            }
        }
    });
    let (done, gone) = oneshot::channel();
    let marker = [VARIABLE, dir.as_os_str().as_encoded_bytes()].concat();
    if let Some(sweeper) = sweeper
        && sweeper.send(Wanted { marker, done }).is_ok()
    {
        return gone.await.unwrap_or(0);
    }
    0
}

fn sweep(told: &Receiver<Wanted>) {
    let mut searches: BTreeMap<Vec<u8>, Search> = BTreeMap::new();
    loop {
        if searches.is_empty() {
            let Ok(wanted) = told.recv() else { return };
            begin(&mut searches, wanted);
        }
        while let Ok(wanted) = told.try_recv() {
            begin(&mut searches, wanted);
        }
        let found = look(&searches);
        for (marker, search) in &mut searches {
            search.on_look(marker, found.get(marker).map_or(&[], Vec::as_slice));
        }
        searches.retain(|_, search| {
            let over = search.empty >= EMPTY_LOOKS;
            if over {
                for done in search.waiting.drain(..) {
                    let _ = done.send(search.killed.len() as u64);
                }
            }
            !over
        });
        let pause = searches.values().map(Search::pause).min();
        std::thread::sleep(pause.unwrap_or(Duration::ZERO));
    }
}

/// A search that is under way begins anew: what is asked for is that nothing is left from here on.
fn begin(searches: &mut BTreeMap<Vec<u8>, Search>, wanted: Wanted) {
    let search = searches.entry(wanted.marker).or_default();
    search.empty = 0;
    search.waiting.push(wanted.done);
}

impl Search {
    fn on_look(&mut self, marker: &[u8], found: &[i32]) {
        if found.is_empty() {
            self.empty += 1;
            return;
        }
        self.killed.extend(found);
        self.empty = 0;
        self.looks += 1;
        if self.looks == PATIENCE {
            let worker = String::from_utf8_lossy(marker);
            tracing::error!(%worker, found = found.len(), "Processes of a dead worker cannot be killed; its place stays empty until they are gone");
        }
    }

    /// Only what does not die of SIGKILL can wait; a chain is run after at full speed.
    fn pause(&self) -> Duration {
        let doublings = self.looks.saturating_sub(PATIENCE).min(16);
        (FIRST_PAUSE * 2_u32.pow(doublings)).min(LAST_PAUSE)
    }
}

/// Kills every process that is looked for; tells which there were of each.
///
/// One look at all of them, which takes milliseconds, and then many at the newest alone: a link of a chain
/// that lives for two milliseconds is gone before its turn comes in the first, but not in each of the others.
fn look(searches: &BTreeMap<Vec<u8>, Search>) -> BTreeMap<Vec<u8>, Vec<i32>> {
    let mut found: BTreeMap<_, Vec<i32>> = BTreeMap::new();
    let glances = std::iter::once(usize::MAX).chain(std::iter::repeat_n(GLANCE, GLANCES));
    for most in glances {
        for pid in newest_first().into_iter().take(most) {
            if let Some(marker) = marker_of(pid).filter(|marker| searches.contains_key(marker))
                && kill(pid, &marker)
            {
                found.entry(marker).or_default().push(pid);
            }
        }
    }
    found
}

/// All processes, beginning with the one that was made last: that is the living end of a chain, and it is
/// looked at before it can fork once more.
fn newest_first() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids: Vec<i32> = entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let last = load.split_ascii_whitespace().next_back();
    let last = last.and_then(|pid| pid.parse().ok()).unwrap_or(i32::MAX);
    // Numbers above the last one are from before the count began anew.
    pids.sort_by_key(|&pid| (pid > last, std::cmp::Reverse(pid)));
    pids
}

/// What names a worker in a process's environment. A zombie's reads as empty, so the dead do not count.
fn marker_of(pid: i32) -> Option<Vec<u8>> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    environment
        .split(|&byte| byte == 0)
        .find(|variable| variable.starts_with(VARIABLE))
        .map(<[u8]>::to_vec)
}

fn kill(pid: i32, marker: &[u8]) -> bool {
    let Some(raw) = Pid::from_raw(pid) else {
        return false;
    };
    let Ok(pidfd) = pidfd_open(raw, PidfdFlags::empty()) else {
        return false;
    };
    // Looked at again now that the descriptor pins the process: a reused pid is nobody of ours.
    marker_of(pid).is_some_and(|own| own == marker)
        && pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn sleeper(dir: &Path) -> Child {
        Command::new("sleep")
            .arg("60")
            .env("TETHER_DIR", dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[tokio::test]
    async fn a_daemon_without_a_shim_is_found_by_its_environment_and_nobody_else_is_hit() {
        use std::os::unix::process::ExitStatusExt as _;

        let dirs: [_; 3] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
        let [mut first, mut second, mut bystander] = dirs.each_ref().map(|dir| sleeper(dir.path()));

        let ended = tokio::join!(end(dirs[0].path()), end(dirs[1].path()));

        assert_eq!(ended, (1, 1));
        assert_eq!(first.wait().unwrap().signal(), Some(9));
        assert_eq!(second.wait().unwrap().signal(), Some(9));
        assert!(bystander.try_wait().unwrap().is_none());
        bystander.kill().unwrap();
        bystander.wait().unwrap();
    }

    #[tokio::test]
    async fn a_chain_of_processes_that_fork_and_end_is_run_after_until_it_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let beat = dir.path().join("beat");
        // Each link forks the next one and ends; the last sign of life is in the file.
        let link = "import os, sys, time\nwhile True:\n    open(sys.argv[1], 'w').write(str(time.time()))\n    time.sleep(0.002)\n    if os.fork(): os._exit(0)\n    os.setsid()\n";
        let mut chain = Command::new("python3")
            .args(["-c", link])
            .arg(&beat)
            .env("TETHER_DIR", dir.path())
            .spawn()
            .unwrap();
        let deadline = std::time::SystemTime::now() + Duration::from_secs(20);
        while !beat.exists() {
            assert!(
                std::time::SystemTime::now() < deadline,
                "the chain never began"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        chain.wait().unwrap();

        end(dir.path()).await;

        let last = fs::metadata(&beat).unwrap().modified().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(fs::metadata(&beat).unwrap().modified().unwrap(), last);
    }

    #[test]
    fn what_does_not_die_is_looked_at_less_and_less_often() {
        let mut search = Search::default();

        for _ in 0..PATIENCE {
            search.on_look(b"", &[7]);
        }
        assert_eq!(search.pause(), FIRST_PAUSE);
        for _ in 0..40 {
            search.on_look(b"", &[7]);
        }
        assert_eq!(search.pause(), LAST_PAUSE);
        search.on_look(b"", &[]);
        assert_eq!(search.empty, 1);
        search.on_look(b"", &[7]);
        assert_eq!(search.empty, 0);
    }
}
