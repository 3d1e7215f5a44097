//! From a fresh process to a shim that watches: the order of the steps is the point.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{getpid, umask};
use tether_shim_protocol::{
    Hello, Launch, Message, PROTOCOL, Phase, SOCKET_FILE, SpawnFailure, Stage,
};

use crate::launch::failed_io;
use crate::link::Link;
use crate::shim::Shim;

/// What this process is started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It forks shims.
    Zygote,
    /// It is one.
    Shim,
}

/// What an agent started this process as: an agent says so by the kind of its socket.
pub(crate) fn role() -> Option<Role> {
    let stdin = io::stdin();
    if sockopt::socket_domain(&stdin) != Ok(AddressFamily::UNIX) {
        return None;
    }
    match sockopt::socket_type(&stdin) {
        Ok(SocketType::STREAM) => Some(Role::Shim),
        Ok(SocketType::SEQPACKET) => Some(Role::Zygote),
        Ok(_) | Err(_) => None,
    }
}

/// Waits for `Launch` and sees the worker through to its end; `sockets` are for the worker, and `signals`
/// is where this process's own are read.
pub(crate) fn run(link: UnixStream, sockets: Vec<OwnedFd>, signals: OwnedFd) -> io::Result<()> {
    // Refused where the agent has done it already.
    let _ = rustix::process::setsid();
    rustix::thread::set_name(c"tether-shim")?;

    let mut link = Link::new(link)?;
    link.send(&hello());
    // An agent that is gone before it asked for anything leaves nothing to do.
    let Some((mut launch, said_after)) = await_launch(&mut link)? else {
        return Ok(());
    };
    let mut link = Some(link);
    if launch.protocol != PROTOCOL {
        let theirs = launch.protocol;
        return Err(io::Error::other(format!(
            "the agent speaks protocol `{theirs}` and this shim `{PROTOCOL}`, \
             start it from the agent it was built with"
        )));
    }

    tether_sys::title(format!("tether-shim {}", launch.worker).as_bytes());
    let argv_and_env = (
        std::mem::take(&mut launch.argv),
        std::mem::take(&mut launch.env),
    );
    let (shim, refusal) = prepare(launch, &mut link, sockets, signals).inspect_err(|error| {
        // Nothing was started and nobody will watch: this is all there is to say.
        if let Some(link) = &mut link {
            link.send(&Message::SpawnFailed(failed_io(Stage::Fork, error)));
        }
    })?;
    // What came in one piece with the launch: a worker that is to stop already is never started.
    for message in said_after {
        shim.on_message(message);
    }
    // From its socket on a later agent finds it. One whose agent went before that may have been given up,
    // and its place filled: it never starts.
    if !shim.is_listened_to() {
        let _ = fs::remove_file(SOCKET_FILE);
        return Ok(());
    }
    match refusal {
        Some(failure) => shim.refuse(failure),
        None => shim.start(argv_and_env),
    }
    let ended = shim.watch();
    // An agent that has the death has taken the socket away with its own entry.
    if shim.listener.is_some() && !shim.acknowledged {
        let _ = fs::remove_file(SOCKET_FILE);
    }
    ended
}

/// All that a shim needs of the system before it has a worker; and why there will be none, where its
/// directory is at fault.
#[inline(never)] // The frame of its caller stays for days.
fn prepare(
    launch: Launch,
    link: &mut Option<Link>,
    sockets: Vec<OwnedFd>,
    signals: OwnedFd,
) -> io::Result<(&'static mut Shim, Option<SpawnFailure>)> {
    rustix::process::set_child_subreaper(Some(getpid()))?;
    let (listener, refusal) = match enter(&launch) {
        Ok(listener) => (Some(listener), None),
        Err(error) => (None, Some(failed_io(Stage::Directory, &error))),
    };
    let shim = Shim::new(launch, link, listener, signals, sockets)?;
    // Never let go of: its end is the process's, where the kernel takes all of it back at once.
    Ok((Box::leak(Box::new(shim)), refusal))
}

/// Takes the socket off standard input, so that no child finds it there.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    let link = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    rustix::stdio::dup2_stdin(OwnedFd::from(fs::File::open("/dev/null")?))?;
    Ok(link)
}

fn hello() -> Message {
    Message::Hello(Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        worker: String::new(),
        shim_pid: std::process::id(),
        worker_pid: 0,
        started_ns: 0,
        phase: Phase::Waiting,
    })
}

/// The launch, and what the agent said right after it.
fn await_launch(link: &mut Link) -> io::Result<Option<(Launch, Vec<Message>)>> {
    loop {
        match poll(&mut [PollFd::new(&link.as_fd(), PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let (messages, good) = link.receive();
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
fn enter(launch: &Launch) -> io::Result<UnixListener> {
    std::env::set_current_dir(Path::new(std::ffi::OsStr::from_bytes(&launch.dir)))?;

    let others = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listener = UnixListener::bind(SOCKET_FILE);
    umask(others);
    let listener = listener?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
