//! From a fresh process to a shim that watches: the order of the steps is the point.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with, sockopt,
};
use rustix::process::{getpid, umask};
use tether_shim_protocol::{
    Hello, Launch, Message, PROTOCOL, Phase, SOCKET_FILE, SpawnFailure, Stage,
};
use tether_sys::Made;

use crate::files;
use crate::launch::failed_at;
use crate::link::Link;
use crate::shim::Shim;

/// Why a shim ends before it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// The system refused what it cannot do without.
    System(Errno),
    /// The agent speaks another version of the protocol.
    Protocol {
        /// The agent's.
        theirs: u16,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(errno) => errno.fmt(f),
            Self::Protocol { theirs } => write!(
                f,
                "the agent speaks protocol `{theirs}` and this shim `{PROTOCOL}`, \
                 start it from the agent it was built with"
            ),
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

/// Most launches are shorter.
const LAUNCH_BYTES: usize = 4096;

/// What this process is started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It forks shims.
    Zygote,
    /// It is one.
    Shim,
}

/// What an agent started this process as: an agent says so by the kind of its socket.
pub fn role() -> Option<Role> {
    let stdin = rustix::stdio::stdin();
    if sockopt::socket_domain(stdin) != Ok(AddressFamily::UNIX) {
        return None;
    }
    match sockopt::socket_type(stdin) {
        Ok(SocketType::STREAM) => Some(Role::Shim),
        Ok(SocketType::SEQPACKET) => Some(Role::Zygote),
        Ok(_) | Err(_) => None,
    }
}

/// Waits for `Launch` and sees the worker through to its end; `sockets` are for the worker, and `signals`
/// is where this process's own are read. Its permission is read from `page`.
pub fn run(
    link: OwnedFd,
    sockets: Vec<OwnedFd>,
    signals: OwnedFd,
    page: Made,
) -> Result<(), Error> {
    // Refused where the agent has done it already.
    let _ = rustix::process::setsid();
    rustix::thread::set_name(c"tether-shim")?;

    // An agent that is gone before it asked for anything leaves nothing to do.
    let Some(shim) = begin(link, sockets, signals, page)? else {
        return Ok(());
    };
    let ended = shim.watch().map_err(Error::from);
    // An agent that has the death has taken the socket away with its own entry.
    if shim.listener.is_some() && !shim.acknowledged {
        let _ = files::remove(SOCKET_FILE.as_bytes());
    }
    ended
}

/// The shim with its worker started, or why not to be; nothing where there is nothing to watch.
#[inline(never)] // The frame of its caller stays for days.
fn begin(
    link: OwnedFd,
    sockets: Vec<OwnedFd>,
    signals: OwnedFd,
    page: Made,
) -> Result<Option<&'static mut Shim>, Error> {
    let mut link = Link::new(link)?;
    link.send_with(&hello(page.view.id()), &[page.writable.as_fd()]);
    let Some((mut launch, said_after)) = await_launch(&mut link)? else {
        return Ok(None);
    };
    let mut link = Some(link);
    if launch.protocol != PROTOCOL {
        let theirs = launch.protocol;
        return Err(Error::Protocol { theirs });
    }

    let argv_and_env = (
        core::mem::take(&mut launch.argv),
        core::mem::take(&mut launch.env),
    );
    // What is kept of it is kept apart from what is not.
    let launch = launch.clone();
    let (shim, refusal) =
        prepare(launch, &mut link, (sockets, signals), page).inspect_err(|errno| {
            // Nothing was started and nobody will watch: this is all there is to say.
            if let Some(link) = &mut link {
                link.send(&Message::SpawnFailed(failed_at(Stage::Fork)(*errno)));
            }
        })?;
    // What came in one piece with the launch: a worker that is to stop already is never started.
    for message in said_after {
        shim.on_message(message);
    }
    // From its socket on a later agent finds it. One whose agent went before that may have been given up,
    // and its place filled: it never starts.
    if !shim.is_listened_to() {
        let _ = files::remove(SOCKET_FILE.as_bytes());
        return Ok(None);
    }
    match refusal {
        Some(failure) => shim.refuse(failure),
        None => shim.start(argv_and_env),
    }
    Ok(Some(shim))
}

/// All that a shim needs of the system before it has a worker; and why there will be none, where its
/// directory is at fault.
fn prepare(
    launch: Launch,
    link: &mut Option<Link>,
    (sockets, signals): (Vec<OwnedFd>, OwnedFd),
    page: Made,
) -> Result<(&'static mut Shim, Option<SpawnFailure>), Errno> {
    rustix::process::set_child_subreaper(Some(getpid()))?;
    let (listener, refusal) = match enter(&launch) {
        Ok(listener) => (Some(listener), None),
        Err(errno) => (None, Some(failed_at(Stage::Directory)(errno))),
    };
    let shim = Shim::new(launch, link, listener, signals, sockets, page)?;
    // Never let go of: its end is the process's, and all it holds lies in its room.
    Ok((Box::leak(Box::new(shim)), refusal))
}

/// Takes the socket off standard input, so that no child finds it there.
pub fn take_stdin() -> Result<OwnedFd, Errno> {
    let link = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(files::open(b"/dev/null", OFlags::RDONLY, Mode::empty())?)?;
    Ok(link)
}

fn hello(page: u64) -> Message {
    Message::Hello(Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_string(),
        worker: String::new(),
        shim_pid: getpid().as_raw_nonzero().get().unsigned_abs(),
        worker_pid: 0,
        started_ns: 0,
        phase: Phase::Waiting,
        page,
        seat: None,
    })
}

/// The launch, and what the agent said right after it.
fn await_launch(link: &mut Link) -> Result<Option<(Launch, Vec<Message>)>, Errno> {
    loop {
        match poll(&mut [PollFd::new(&link.as_fd(), PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        let (messages, good) = tether_sys::passing(|| link.receive::<LAUNCH_BYTES>());
        let mut messages = messages.into_iter();
        while let Some(message) = messages.next() {
            if let Message::Launch(launch) = message {
                return Ok(Some((*launch, messages.collect())));
            }
        }
        if !good {
            return Ok(None);
        }
    }
}

/// Makes the runtime directory the working directory and listens in it. Relative names keep the
/// socket's address short, whatever the directory's is.
fn enter(launch: &Launch) -> Result<OwnedFd, Errno> {
    rustix::process::chdir(launch.dir.as_slice())?;

    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let others = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let bound = bind(&listener, &SocketAddrUnix::new(SOCKET_FILE)?);
    umask(others);
    bound?;
    // One agent at a time, and the one after it.
    listen(&listener, 8)?;
    Ok(listener)
}
