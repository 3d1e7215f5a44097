//! What workers say of themselves, as in sd_notify(3): one datagram socket for each, in its runtime
//! directory, named in its environment as `NOTIFY_SOCKET`.
//!
//! Only processes of the worker are heard: the kernel tells whose a datagram is.

mod family;
mod said;
mod store;

use std::{
    fs,
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::Path,
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg, sockopt,
};
use tokio::{
    io::Interest,
    net::UnixDatagram,
    time::{Instant, sleep_until},
};

pub(crate) use family::Family;
pub(crate) use said::Said;
pub(crate) use store::{FdStore, Named};

/// The socket's name in a worker's runtime directory.
pub(crate) const NOTIFY_FILE: &str = "notify.sock";

/// No longer than the name it gets, as the length of a socket's path is bounded.
const UNNAMED_FILE: &str = "notify.new";

/// Longer datagrams are not heard.
const LONGEST: usize = 8 << 10;

/// The most descriptors the kernel lets one datagram carry.
const DESCRIPTORS: usize = 253;

/// More datagrams than this within [`WINDOW`] wait for the next one, so that a worker that never stops
/// talking costs the agent little: the kernel makes it wait.
const BURST: u32 = 128;
const WINDOW: Duration = Duration::from_millis(100);

/// The socket of one worker.
#[derive(Debug)]
pub(crate) struct Socket {
    socket: UnixDatagram,
    /// When the present window began, and how many datagrams came in it.
    window: (Instant, u32),
}

/// One datagram of a process.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub(crate) pid: u32,
    pub(crate) said: Said,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Socket {
    /// Listens in this runtime directory, in the place of an earlier agent if there was one.
    ///
    /// # Errors
    /// When no socket can be made there.
    pub(crate) fn bind(dir: &Path) -> io::Result<Self> {
        let unnamed = dir.join(UNNAMED_FILE);
        let socket = match UnixDatagram::bind(&unnamed) {
            // Left by an agent that was killed in the middle of this.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                fs::remove_file(&unnamed)?;
                UnixDatagram::bind(&unnamed)?
            }
            bound => bound?,
        };
        sockopt::set_socket_passcred(&socket, true)?;
        // Whoever may enter the directory may speak, also as another user; who is heard is asked later.
        fs::set_permissions(&unnamed, fs::Permissions::from_mode(0o666))?;
        // Renamed into place: there is no moment without a socket of that name.
        fs::rename(&unnamed, dir.join(NOTIFY_FILE))?;
        Ok(Self {
            socket,
            window: (Instant::now(), 0),
        })
    }

    /// The next datagram. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Datagram {
        loop {
            let (began, count) = self.window;
            if began.elapsed() >= WINDOW {
                self.window = (Instant::now(), 0);
            } else if count >= BURST {
                sleep_until(began + WINDOW).await;
                continue;
            }
            let received = self
                .socket
                .async_io(Interest::READABLE, || self.receive())
                .await;
            self.window.1 += 1;
            match received {
                Ok(Some(datagram)) => return datagram,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "Cannot receive what a worker says");
                    sleep_until(Instant::now() + WINDOW).await;
                }
            }
        }
    }

    /// A datagram that has come already, whatever the runtime knows of it.
    pub(crate) fn try_next(&self) -> Option<Datagram> {
        loop {
            if let Some(datagram) = self.receive().ok()? {
                return Some(datagram);
            }
        }
    }

    /// None for one that makes no sense.
    fn receive(&self) -> io::Result<Option<Datagram>> {
        let mut data = [0; LONGEST];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            self.socket.as_fd(),
            &mut [IoSliceMut::new(&mut data)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
        )?;
        let mut descriptors = Vec::new();
        let mut pid = None;
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(rights) => descriptors.extend(rights),
                RecvAncillaryMessage::ScmCredentials(credentials) => {
                    pid = u32::try_from(credentials.pid.as_raw_nonzero().get()).ok();
                }
                _ => {}
            }
        }
        let whole = !received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        Ok(pid.filter(|_| whole).map(|pid| Datagram {
            pid,
            said: Said::parse(&data[..received.bytes]),
            descriptors,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::{io::IoSlice, os::unix::net::UnixDatagram as Sender};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    #[tokio::test]
    async fn a_datagram_comes_with_its_senders_pid_and_with_its_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let mut socket = Socket::bind(dir.path()).unwrap();
        let sender = Sender::unbound().unwrap();
        sender.connect(dir.path().join(NOTIFY_FILE)).unwrap();
        let kept = fs::File::open(dir.path()).unwrap();
        let fds = [kept.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(
            &sender,
            &[IoSlice::new(b"FDSTORE=1\nFDNAME=here")],
            &mut control,
            SendFlags::empty(),
        )
        .unwrap();

        let datagram = socket.next().await;

        assert_eq!(datagram.pid, std::process::id());
        assert!(datagram.said.store);
        assert_eq!(datagram.said.name.as_deref(), Some("here"));
        assert_eq!(datagram.descriptors.len(), 1);
    }

    #[tokio::test]
    async fn the_next_agent_takes_the_sockets_place_and_too_long_a_datagram_is_not_heard() {
        let dir = tempfile::tempdir().unwrap();
        let before = Socket::bind(dir.path()).unwrap();
        let mut after = Socket::bind(dir.path()).unwrap();
        let sender = Sender::unbound().unwrap();
        let to = dir.path().join(NOTIFY_FILE);
        sender.send_to(&[b'x'; LONGEST + 1], &to).unwrap();
        sender.send_to(b"READY=1", &to).unwrap();

        assert!(after.next().await.said.ready);
        assert!(before.try_next().is_none() && after.try_next().is_none());
        assert!(!dir.path().join(UNNAMED_FILE).exists());
    }

    #[tokio::test]
    async fn a_worker_that_never_stops_talking_is_heard_at_a_bounded_rate() {
        let dir = tempfile::tempdir().unwrap();
        let mut socket = Socket::bind(dir.path()).unwrap();
        let to = dir.path().join(NOTIFY_FILE);
        let talker = std::thread::spawn(move || {
            let sender = Sender::unbound().unwrap();
            // Ends when nobody listens any more.
            while sender.send_to(b"WATCHDOG=1", &to).is_ok() {}
        });
        let began = Instant::now();

        for _ in 0..3 * BURST {
            assert!(socket.next().await.said.alive);
        }

        assert!(began.elapsed() >= 2 * WINDOW, "{:?}", began.elapsed());
        drop(socket);
        talker.join().unwrap();
    }
}
