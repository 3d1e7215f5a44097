//! Whether a fork server still serves. A connection that says nothing is closed by it, in the one loop that
//! takes orders: where that comes to nothing again and again, nothing else would come of it either.

use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
        shutdown, socket_with,
    },
};
use tokio::{
    io::Interest,
    time::{sleep, sleep_until, timeout},
};

use crate::{
    liveness::{Liveness, Next, Terms},
    polled,
    readiness::span,
};

/// Found out within eleven seconds, and not taken for a hang: a queue of forks on a machine that is busy.
const TERMS: Terms = Terms {
    interval: Duration::from_secs(2),
    timeout: Duration::from_secs(3),
    failures: 3,
    watchdog: None,
};

/// Between two looks whether there is room in the queue for one more.
const QUEUE: Duration = Duration::from_millis(50);

/// Comes back when the server that listens there has stopped to serve, and tells what was seen.
pub(super) async fn lost(socket: &Path) -> String {
    let mut liveness = Liveness::new(TERMS, true, 1.0, false, Instant::now());
    let mut next = liveness.check(Instant::now());
    loop {
        next = match next {
            Next::Ask => {
                let answer = ask(socket, liveness.timeout()).await;
                liveness.on_answer(answer, Instant::now())
            }
            Next::Wait => {
                let due = liveness.next_deadline().unwrap_or_else(Instant::now);
                sleep_until(due.into()).await;
                liveness.check(Instant::now())
            }
            Next::End(why) => return why,
        }
    }
}

/// Asks once, and waits this long for the answer. Where the agent itself is short of what it takes to ask, the
/// server has not been asked, and nothing speaks against it.
async fn ask(socket: &Path, longest: Duration) -> Result<(), String> {
    match timeout(longest, once(socket)).await {
        Ok(Err(error)) if is_own(&error) => Ok(()),
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {}", span(longest))),
    }
}

/// Whether the fault is on this side.
fn is_own(error: &io::Error) -> bool {
    let own = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
    Errno::from_io_error(error).is_some_and(|errno| own.contains(&errno))
}

async fn once(socket: &Path) -> io::Result<()> {
    let connection = dial(socket).await?;
    shutdown(&connection, Shutdown::Write)?;
    let end = |connection: &OwnedFd| Ok(recv(connection, &mut [0], RecvFlags::empty())?.0);
    match polled::readable(connection)?
        .async_io(Interest::READABLE, end)
        .await?
    {
        0 => Ok(()),
        _ => Err(io::Error::other(
            "it said something, where nothing was asked",
        )),
    }
}

async fn dial(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    loop {
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            // Others wait there already.
            Err(Errno::AGAIN) => sleep(QUEUE).await,
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{SocketAddrUnix, acceptfrom, bind, listen, socket};

    use super::*;

    #[tokio::test]
    async fn a_server_that_closes_what_says_nothing_serves_and_one_that_only_listens_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fork.sock");
        let listener = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 0).unwrap();

        let short = Duration::from_millis(100);
        let silent = ask(&path, short).await;
        let full = ask(&path, short).await;
        let serving = std::thread::spawn(move || {
            for _ in 0..3 {
                drop(acceptfrom(&listener));
            }
        });
        let answered = ask(&path, Duration::from_secs(30)).await;
        let again = ask(&path, Duration::from_secs(30)).await;
        serving.join().unwrap();
        let gone = ask(&path, short).await;

        assert!(is_own(&Errno::MFILE.into()) && !is_own(&Errno::CONNREFUSED.into()));
        for answer in [silent, full] {
            assert_eq!(answer, Err("no answer within 100 ms".to_owned()));
        }
        assert_eq!((answered, again), (Ok(()), Ok(())));
        assert!(gone.unwrap_err().contains("refused"));
    }
}
