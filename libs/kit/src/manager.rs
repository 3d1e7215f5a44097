//! What the service manager that started this process is told, as in sd_notify(3): that it serves, that it stops, and
//! that its runtimes still turn. Where nobody asked to be told, nothing is.

use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::inherited;

/// It is told this often within the time after which a silent process counts as hung.
const BEATS: u32 = 4;

/// One for each runtime that serves: turns while that does.
static PULSES: Mutex<Vec<Weak<AtomicU64>>> = Mutex::new(Vec::new());

/// Everything that this process is for is served from here on. A socket that it was started with and has no use for is
/// named in the log, as somebody may wait there.
pub fn serves(status: &str) {
    for (name, _) in inherited::rest() {
        tracing::warn!(
            name,
            "A socket was passed on that is no address of the configuration; nobody is served there"
        );
    }
    tell(&format!("READY=1\nSTATUS={status}"));
}

/// Has the manager's watchdog see the runtime that this is called on: one of them that hangs is as bad as all. For as
/// long as that runs.
pub async fn pulse() {
    let Some(patience) = watchdog() else {
        return std::future::pending().await;
    };
    let pulse = Arc::new(AtomicU64::new(0));
    pulses(|all| all.push(Arc::downgrade(&pulse)));
    let mut interval = tokio::time::interval(patience / BEATS);
    loop {
        interval.tick().await;
        pulse.fetch_add(1, Ordering::Relaxed);
    }
}

/// Tells it for ever that all runtimes turn, and, once that is so, that this process was asked to stop.
pub async fn follow(stop: CancellationToken) {
    let stopping = async {
        stop.cancelled().await;
        tell("STOPPING=1\nSTATUS=Stops");
    };
    tokio::join!(stopping, beat());
}

async fn beat() {
    let Some(patience) = watchdog() else {
        return std::future::pending().await;
    };
    let mut interval = tokio::time::interval(patience / BEATS);
    let mut rounds = Rounds::default();
    loop {
        interval.tick().await;
        let seen = pulses(|all| {
            all.retain(|pulse| pulse.strong_count() > 0);
            let all = all.iter().filter_map(Weak::upgrade);
            let seen: Vec<_> = all
                .map(|pulse| (Arc::as_ptr(&pulse).addr(), pulse.load(Ordering::Relaxed)))
                .collect();
            seen
        });
        if rounds.all_turn(&seen) {
            tell("WATCHDOG=1");
        }
    }
}

fn pulses<T>(of: impl FnOnce(&mut Vec<Weak<AtomicU64>>) -> T) -> T {
    // Whole at every moment.
    of(&mut PULSES.lock().unwrap_or_else(PoisonError::into_inner))
}

/// How far each runtime had turned when that was last looked at, and for how many looks it has not.
#[derive(Debug, Default)]
struct Rounds(Vec<(usize, u64, u32)>);

impl Rounds {
    /// Whether all have turned lately. Two timers of one interval may overtake each other, so one look that shows
    /// nothing new says nothing.
    fn all_turn(&mut self, seen: &[(usize, u64)]) -> bool {
        let before = std::mem::take(&mut self.0);
        let idle = |&(which, turns): &(usize, u64)| {
            let same = |was: &&(usize, u64, u32)| was.0 == which && was.1 == turns;
            let looks = before.iter().find(same).map_or(0, |was| was.2 + 1);
            (which, turns, looks)
        };
        self.0 = seen.iter().map(idle).collect();
        self.0.iter().all(|&(_, _, looks)| looks < 2)
    }
}

/// After which silence this process counts as hung, where that is watched.
fn watchdog() -> Option<Duration> {
    let variable = |name: &str| env::var(name).unwrap_or_default();
    patience(
        std::process::id(),
        &variable("WATCHDOG_PID"),
        &variable("WATCHDOG_USEC"),
    )
}

fn patience(own: u32, pid: &str, micros: &str) -> Option<Duration> {
    let mine = pid.is_empty() || pid.parse() == Ok(own);
    let micros = micros.parse().ok().filter(|&micros| mine && micros > 0)?;
    Some(Duration::from_micros(micros))
}

fn tell(state: &str) {
    let Some(to) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    if let Err(error) = send(&to, state) {
        tracing::warn!(%error, "Cannot tell the service manager how this process does");
    }
}

fn send(to: &std::ffi::OsStr, state: &str) -> io::Result<()> {
    let bytes = to.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(to)?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that reads nothing must not stop what it manages.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_by_a_path_and_by_an_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("tether-kit-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut heard = [0; 64];

        send(path.as_os_str(), "READY=1").unwrap();
        send(format!("@{name}").as_ref(), "STOPPING=1").unwrap();

        for (socket, said) in [(by_path, "READY=1"), (by_name, "STOPPING=1")] {
            let length = socket.recv(&mut heard).unwrap();
            assert_eq!(&heard[..length], said.as_bytes());
        }
    }

    #[test]
    fn a_watchdog_of_another_process_is_not_ours() {
        let second = Some(Duration::from_secs(1));

        assert_eq!(patience(7, "7", "1000000"), second);
        assert_eq!(patience(7, "", "1000000"), second);
        assert_eq!(patience(7, "8", "1000000"), None);
        assert_eq!(patience(7, "7", "0"), None);
        assert_eq!(patience(7, "7", ""), None);
    }

    #[test]
    fn one_runtime_that_hangs_is_seen_beside_others_that_turn() {
        let mut rounds = Rounds::default();

        assert!(rounds.all_turn(&[(1, 5), (2, 5)]));
        assert!(rounds.all_turn(&[(1, 5), (2, 6)]), "one look says nothing");
        assert!(!rounds.all_turn(&[(1, 5), (2, 7)]));
        assert!(rounds.all_turn(&[(1, 6), (2, 8)]), "it turns again");
        assert!(
            rounds.all_turn(&[(2, 9)]),
            "one that ended is not waited for"
        );
    }
}
