//! The process that starts every shim: small, with one thread, and parent to all of them.
//!
//! A shim is not executed and no copy: it runs a moment later, in a room of the zygote's memory, a process
//! of its own with nothing but a stack and a heap. The zygote is also where orphans end. What a killed shim
//! left outside of any namespace is handed to the zygote by the kernel, and it has no use for anything but
//! shims.
//!
//! When its agent goes, it stays for as long as it has shims, for that last duty alone: the next agent
//! starts a zygote of its own version.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::num::NonZeroI32;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{Errno, IoSliceMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use rustix::process::{
    DumpableBehavior, PidfdFlags, Resource, Rlimit, Signal, WaitOptions, WaitStatus, getpid,
    getrlimit, pidfd_open, pidfd_send_signal, setrlimit, wait,
};
use tether_clock::{BootClock, Clock, Tick};
use tether_shim_protocol::zygote::{FDS_MAX, REQUEST_BYTES_MAX, Request};
use tether_shim_protocol::{Message, Stage, encode};
use tether_sys::{Child, Made, Room, Rooms, View};

use crate::launch::failed;
use crate::{files, probe, setup, tree};

/// What a zygote holds.
pub(crate) struct Zygote {
    /// The agent's end of requests; none once the agent is gone.
    agent: Option<OwnedFd>,
    signals: OwnedFd,
    /// Where its shims read their permission.
    page: Made,
    rooms: Rooms,
    shims: BTreeMap<NonZeroI32, Room>,
    /// Whether something was left behind at the last look.
    orphaned: bool,
    /// A child that is neither shim nor orphan: the agent, where this is the first process of a container.
    spared: Option<Child>,
    /// Whether somebody asked this process to end, which is then the agent's to do.
    asked_to_stop: bool,
}

/// Serves until the agent and all shims are gone; all of them may have as many descriptors as is said.
///
/// # Errors
/// When the system refuses what it cannot do without.
pub fn run(agent: OwnedFd, descriptors: Option<u64>) -> Result<(), Errno> {
    // What a terminal sends its group is the agent's to hear.
    let _ = rustix::process::setsid();
    let mut zygote = Zygote::new(descriptors)?;
    zygote.serve(agent);
    while !zygote.is_done() {
        zygote.turn(Tick::NEVER)?;
    }
    Ok(())
}

impl Zygote {
    /// One that serves nobody yet. From here on no child ends unseen, so the first is started after this.
    pub(crate) fn new(descriptors: Option<u64>) -> Result<Self, Errno> {
        rustix::thread::set_name(c"tether-zygote")?;
        rustix::process::set_child_subreaper(Some(getpid()))?;
        give_back_descriptors(descriptors);
        // Done once here rather than once in each shim.
        tether_sys::reset_signals();
        if rustix::process::geteuid().is_root() {
            // Kernels before 5.17 end all processes of one memory to dump it for one of them. As somebody
            // else it would also keep shims from their own `/proc`, which they need for a user namespace.
            rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        }
        Ok(Self {
            agent: None,
            signals: tether_sys::take_signals()?,
            page: View::make()?,
            rooms: Rooms::set_aside()?,
            shims: BTreeMap::new(),
            orphaned: false,
            spared: None,
            asked_to_stop: false,
        })
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

    /// Waits for one or more events, but not beyond `until`, and acts on them; tells how the spared child
    /// ended, if it did.
    pub(crate) fn turn(&mut self, until: Tick) -> Result<Option<WaitStatus>, Errno> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(
            self.agent
                .as_ref()
                .map(|agent| PollFd::new(agent, PollFlags::IN)),
        );
        let left = until.since(BootClock.now());
        let left = (until != Tick::NEVER).then(|| Timespec::try_from(left));
        let left = left.transpose().map_err(|_| Errno::INVAL)?;
        match poll(&mut fds, left.as_ref()) {
            Ok(_) => {}
            // A moment without memory is no reason to leave the shims alone.
            Err(Errno::INTR | Errno::NOMEM) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready.first() == Some(&true)
            && let Some(status) = self.on_signals()
        {
            return Ok(Some(status));
        }
        if ready.get(1) == Some(&true) {
            self.hear()?;
        }
        Ok(None)
    }

    /// One request of the agent, or its end.
    fn hear(&mut self) -> Result<(), Errno> {
        let Some(agent) = &self.agent else {
            return Ok(());
        };
        match receive(agent) {
            Ok(Some((Request::Probe { cgroup }, _))) => {
                let means = probe::probe(cgroup);
                if send(agent, &[means.to_byte()], SendFlags::NOSIGNAL).is_err() {
                    // An agent that waits in vain sees this end instead, and asks another zygote.
                    self.agent = None;
                }
            }
            Ok(Some((Request::Spawn, descriptors))) => self.start_shim(&descriptors),
            Ok(None) => self.agent = None,
            // The request waits where it is.
            Err(Errno::INTR | Errno::NOMEM | Errno::NOBUFS) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// Starts a shim with this link, the first, and sockets for its worker.
    fn start_shim(&mut self, link_and_sockets: &[OwnedFd]) {
        let (Some(agent), Some((link, sockets))) = (&self.agent, link_and_sockets.split_first())
        else {
            return;
        };
        let page = [self.page.writable.as_fd(), self.page.readable.as_fd()];
        let mut given = vec![self.signals.as_fd(), link.as_fd()];
        given.extend(page);
        given.push(agent.as_fd());
        given.extend(self.spared.as_ref().map(|spared| spared.pidfd.as_fd()));
        let body = if self.spared.is_some() {
            be_shim_in_container
        } else {
            be_shim
        };
        given.extend(sockets.iter().map(AsFd::as_fd));
        match self.rooms.start(body, self.page.view, &given) {
            Ok((pid, room)) => {
                self.shims.insert(pid.as_raw_nonzero(), room);
            }
            // Where no process can be made, the agent is told why in a shim's words.
            Err(errno) => {
                let refusal = encode(&Message::SpawnFailed(failed(Stage::Fork, errno)));
                let _ = send(link, &refusal, SendFlags::NOSIGNAL);
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
                    if let Some(room) = self.shims.remove(&pid.as_raw_nonzero()) {
                        self.rooms.leave(room);
                        lost_one |= !is_clean(status);
                    }
                }
                Err(Errno::INTR | Errno::NOMEM) => {}
                // Anything else is refused for good: asked again it would be asked for ever.
                Ok(None) | Err(_) => break,
            }
        }
        if lost_one || self.orphaned {
            self.orphaned = self.end_orphans();
        }
        self.rooms.look();
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
            if self.shims.contains_key(&pid.as_raw_nonzero()) || spared == Some(pid) {
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

/// What a shim is given by a zygote that has no other child: its signals, its link, both ends of the lease page,
/// the zygote's own end of requests, and sockets.
fn be_shim(page: View, given: Vec<OwnedFd>) -> i32 {
    run_shim(page, given, 1)
}

/// The same where the zygote is also the parent of the agent, which it knows by a descriptor more.
fn be_shim_in_container(page: View, given: Vec<OwnedFd>) -> i32 {
    run_shim(page, given, 2)
}

/// Runs a shim to its end, with its signals, its link, its page, so many descriptors that are none of its business,
/// and sockets for its worker.
fn run_shim(view: View, given: Vec<OwnedFd>, foreign: usize) -> i32 {
    let mut given = given.into_iter();
    let mut next = || given.next();
    let (Some(signals), Some(link), Some(writable), Some(readable)) =
        (next(), next(), next(), next())
    else {
        return 1;
    };
    let page = Made {
        view,
        writable,
        readable,
    };
    given.by_ref().take(foreign).for_each(drop);
    match setup::run(link, given.collect(), signals, page) {
        Ok(()) => 0,
        Err(error) => {
            files::complain(&format!("tether-shim ends and its worker with it: {error}"));
            1
        }
    }
}

/// Goes back to as many descriptors as the agent was given.
fn give_back_descriptors(given: Option<u64>) {
    if let Some(given) = given {
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
