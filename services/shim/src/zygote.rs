//! The process from which every shim is forked: small, with one thread, and parent to all of them.
//!
//! A shim is forked, not executed: it is running a moment later, and what it never writes to stays shared
//! with all others. The zygote is also where orphans end. What a killed shim left outside of any
//! namespace is handed to the zygote by the kernel, and it has no use for anything but shims.
//!
//! When its agent goes, it stays for as long as it has shims, for that last duty alone: the next agent
//! starts a zygote of its own version.

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::NonZeroI32;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use rustix::process::{
    PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus, getpid, getrlimit, pidfd_open,
    pidfd_send_signal, setrlimit, wait,
};
use tether_clock::{BootClock, Clock, Tick};
use tether_shim_protocol::zygote::{DESCRIPTORS_VARIABLE, FDS_MAX, REQUEST_BYTES_MAX, Request};
use tether_sys::{Birth, Child};

use crate::{probe, setup, tree};

/// What a zygote holds.
pub(crate) struct Zygote {
    /// The agent's end of requests; none once the agent is gone.
    agent: Option<OwnedFd>,
    signals: OwnedFd,
    shims: BTreeSet<NonZeroI32>,
    /// Whether something was left behind at the last look.
    orphaned: bool,
    /// A child that is neither shim nor orphan: the agent, where this is the first process of a container.
    spared: Option<Child>,
    /// Whether somebody asked this process to end, which is then the agent's to do.
    asked_to_stop: bool,
}

/// One thing to do, once both sides of a fork are told apart.
pub(crate) enum Turn {
    Go,
    /// The child that was to be spared ended like this.
    SparedEnded(WaitStatus),
    /// This is the child, its first link and the sockets for its worker.
    Shim(UnixStream, Vec<OwnedFd>),
}

/// Serves until the agent and all shims are gone.
pub(crate) fn run(agent: OwnedFd) -> io::Result<()> {
    let mut zygote = Zygote::new(agent)?;
    loop {
        match zygote.turn(Tick::NEVER)? {
            Turn::Go if zygote.is_done() => return Ok(()),
            Turn::Go | Turn::SparedEnded(_) => {}
            Turn::Shim(link, sockets) => return zygote.into_shim(link, sockets),
        }
    }
}

impl Zygote {
    pub(crate) fn new(agent: OwnedFd) -> io::Result<Self> {
        rustix::thread::set_name(c"tether-zygote")?;
        let _ = rustix::process::setsid();
        rustix::process::set_child_subreaper(Some(getpid()))?;
        give_back_descriptors();
        // Asked for once here rather than once in each shim.
        tether_sys::reset_signals();
        let _ = rustix::param::page_size();
        tether_sys::find_title();
        Ok(Self {
            agent: Some(agent),
            signals: tether_sys::take_signals()?,
            shims: BTreeSet::new(),
            orphaned: false,
            spared: None,
            asked_to_stop: false,
        })
    }

    /// In a child: lets go of what is the zygote's, and is a shim from here on. Comes back only where it
    /// could not be one.
    pub(crate) fn into_shim(self, link: UnixStream, sockets: Vec<OwnedFd>) -> io::Result<()> {
        let Self {
            agent,
            signals,
            spared,
            ..
        } = self;
        drop((agent, spared));
        // Whoever reads this descriptor is told of its own signals; mask and dispositions came with the fork.
        setup::run(link, sockets, signals)?;
        // What a program does at its end is the zygote's to do, and a tenth of a short life's cost.
        tether_sys::exit_child(0)
    }

    /// Takes this child for the agent.
    pub(crate) fn spare(&mut self, agent: Child) {
        self.spared = Some(agent);
    }

    /// Takes requests from here.
    pub(crate) fn serve(&mut self, agent: OwnedFd) {
        self.agent = Some(agent);
    }

    /// Whether SIGTERM was seen.
    pub(crate) fn asked_to_stop(&self) -> bool {
        self.asked_to_stop
    }

    fn is_done(&self) -> bool {
        self.agent.is_none() && self.shims.is_empty()
    }

    /// Waits for one or more events, but not beyond `until`, and acts on them.
    pub(crate) fn turn(&mut self, until: Tick) -> io::Result<Turn> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(
            self.agent
                .as_ref()
                .map(|agent| PollFd::new(agent, PollFlags::IN)),
        );
        let left = until.since(BootClock.now());
        let left = (until != Tick::NEVER).then(|| Timespec::try_from(left));
        let left = left.transpose().map_err(io::Error::other)?;
        match poll(&mut fds, left.as_ref()) {
            Ok(_) => {}
            // A moment without memory is no reason to leave the shims alone.
            Err(Errno::INTR | Errno::NOMEM) => return Ok(Turn::Go),
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.first() == Some(&true)
            && let Some(status) = self.on_signals()
        {
            return Ok(Turn::SparedEnded(status));
        }
        if ready.get(1) == Some(&true) {
            return self.hear();
        }
        Ok(Turn::Go)
    }

    /// One request of the agent, or its end.
    fn hear(&mut self) -> io::Result<Turn> {
        let Some(agent) = &self.agent else {
            return Ok(Turn::Go);
        };
        let (request, mut descriptors) = match receive(agent) {
            Ok(Some(heard)) => heard,
            Ok(None) => {
                self.agent = None;
                return Ok(Turn::Go);
            }
            // The request waits where it is.
            Err(Errno::INTR | Errno::NOMEM | Errno::NOBUFS) => return Ok(Turn::Go),
            Err(errno) => return Err(errno.into()),
        };
        match request {
            Request::Probe { cgroup } => {
                let means = probe::probe(cgroup);
                if send(agent, &[means.to_byte()], SendFlags::NOSIGNAL).is_err() {
                    // An agent that waits in vain sees this end instead, and asks another zygote.
                    self.agent = None;
                }
                Ok(Turn::Go)
            }
            Request::Spawn if descriptors.is_empty() => Ok(Turn::Go),
            Request::Spawn => {
                let link = descriptors.remove(0);
                // Where no process can be made, the link breaks without a word, and the agent says so.
                match tether_sys::fork(&Birth::default()) {
                    Ok(None) => Ok(Turn::Shim(UnixStream::from(link), descriptors)),
                    Ok(Some(child)) => {
                        self.shims.insert(child.pid.as_raw_nonzero());
                        Ok(Turn::Go)
                    }
                    Err(error) => {
                        refuse(link, &error);
                        Ok(Turn::Go)
                    }
                }
            }
        }
    }

    /// Reaps what ended; how the spared child did, if it did.
    fn on_signals(&mut self) -> Option<WaitStatus> {
        if takes_terminate(&self.signals) {
            self.asked_to_stop = true;
            if let Some(agent) = &self.spared {
                let _ = pidfd_send_signal(&agent.pidfd, Signal::TERM);
            }
        }
        let mut lost_one = false;
        let mut spared_ended = None;
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status)))
                    if self.spared.as_ref().is_some_and(|agent| agent.pid == pid) =>
                {
                    self.spared = None;
                    spared_ended = Some(status);
                }
                Ok(Some((pid, status))) => {
                    lost_one |= self.shims.remove(&pid.as_raw_nonzero()) && !is_clean(status);
                }
                Ok(None) | Err(Errno::CHILD) => break,
                Err(_) => {}
            }
        }
        if lost_one || self.orphaned {
            self.orphaned = self.end_orphans();
        }
        spared_ended
    }

    /// Kills what a killed shim left behind; tells whether there was anything. What that was parent to comes
    /// here with its end, and is looked for then. Nobody is waited for: the first process of a namespace
    /// ends only after its others are reaped, and one that cannot be killed is left to the agent, which sees
    /// it and says so.
    fn end_orphans(&self) -> bool {
        let spared = self.spared.as_ref().map(|agent| agent.pid);
        let mut found = false;
        for pid in tree::own_children() {
            if self.shims.contains(&pid.as_raw_nonzero()) || spared == Some(pid) {
                continue;
            }
            found = true;
            // Its own child, and reaped by nobody else: the id is its own until then.
            if let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
        found
    }
}

/// Goes back to as many descriptors as the agent was given.
fn give_back_descriptors() {
    let given = std::env::var(DESCRIPTORS_VARIABLE).ok();
    if let Some(given) = given.and_then(|given| given.parse().ok()) {
        let limit = Rlimit {
            current: Some(given),
            ..getrlimit(Resource::Nofile)
        };
        // Lowering it is nobody's to refuse.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

/// Whether a shim left nothing to look for.
fn is_clean(status: WaitStatus) -> bool {
    status.exit_status() == Some(0)
}

/// Takes what the descriptor holds, and tells whether SIGTERM was among it. One look at the children
/// answers any number of the others.
fn takes_terminate(signals: &OwnedFd) -> bool {
    let mut terminate = false;
    // One `signalfd_siginfo`, which begins with the signal's number.
    let mut info = [0; size_of::<libc::signalfd_siginfo>()];
    while rustix::io::read(signals, &mut info) == Ok(info.len()) {
        let [a, b, c, d, ..] = info;
        terminate |= i32::from_ne_bytes([a, b, c, d]) == libc::SIGTERM;
    }
    terminate
}

/// One request with its descriptors; none where the agent is gone.
#[inline(never)] // Its buffers are not to be in a frame that every shim goes on with.
fn receive(agent: impl AsFd) -> Result<Option<(Request, Vec<OwnedFd>)>, Errno> {
    let mut bytes = [0; REQUEST_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        agent,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    );
    let count = match received {
        Ok(message) => message.bytes,
        Err(Errno::CONNRESET) => 0,
        Err(errno) => return Err(errno),
    };
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Request::from_bytes(&bytes[..count]).map(|request| (request, descriptors)))
}

/// Tells the agent why there is no shim, in a shim's words.
fn refuse(link: OwnedFd, error: &io::Error) {
    use std::io::Write;

    use tether_shim_protocol::{Message, Stage, encode};

    let failure = crate::launch::failed_io(Stage::Fork, error);
    let _ = UnixStream::from(link).write_all(&encode(&Message::SpawnFailed(failure)));
}
