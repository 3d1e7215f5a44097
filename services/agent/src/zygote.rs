//! The zygote: carried inside the agent, run from memory, and asked for a shim whenever one is needed.

use std::{
    fs::File,
    io::{self, IoSlice, Write as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, SealFlags},
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        SocketFlags, SocketType, recv, sendmsg, socketpair,
    },
};
use tether_shim_protocol::zygote::{DESCRIPTORS_VARIABLE, Means, Request};
use tokio::process::Command;

use crate::descriptors;

static PROGRAM: &[u8] = include_bytes!(env!("TETHER_SHIM"));

/// What the zygote and its shims have to say before a worker's directory is known.
const LOG_FILE: &str = "zygote.log";

/// Asks for the zygote to be the first process of a container.
const INIT_FLAG: &str = "--init";

/// The canaries take a few milliseconds each.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// The program in sealed memory.
fn program() -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("tether-shim", flags)?);
    file.write_all(PROGRAM)?;
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, all)?;
    Ok(file.into())
}

/// Where `--init` is among this program's arguments, becomes a zygote that runs this program without it as
/// its agent: the first process of a container, which inherits and ends whatever is orphaned there. Comes
/// back where it is not, or with the error where that cannot be done. To be called first of all.
///
/// # Errors
/// When the zygote's program cannot be run.
pub fn become_first_where_asked() -> io::Result<()> {
    use std::os::unix::process::CommandExt as _;

    let (flags, rest): (Vec<_>, Vec<_>) = std::env::args_os()
        .skip(1)
        .partition(|word| word == INIT_FLAG);
    if flags.is_empty() {
        return Ok(());
    }
    let program = program()?;
    Err(
        std::process::Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0("tether-zygote")
            .arg(INIT_FLAG)
            .arg(std::env::current_exe()?)
            .args(rest)
            .exec(),
    )
}

/// Becomes a shim that is alone, with this link; comes back with why not.
pub(crate) fn become_shim(link: UnixStream) -> io::Error {
    use std::os::unix::process::CommandExt as _;

    match program() {
        Ok(program) => std::process::Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0("tether-shim")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(link)))
            .exec(),
        Err(error) => error,
    }
}

/// The agent's zygote, started again whenever it is found dead. Shims live on without it.
#[derive(Debug)]
pub(crate) struct Zygote {
    program: OwnedFd,
    log: PathBuf,
    /// How many descriptors the agent was given, and so the zygote.
    descriptors: Option<u64>,
    socket: Mutex<Option<OwnedFd>>,
}

impl Zygote {
    /// Puts the program into sealed memory: no path to protect, and nothing to clean up.
    ///
    /// # Errors
    /// When the kernel refuses memory files.
    pub(crate) fn new(runtime: &Path) -> io::Result<Self> {
        let program = program()?;
        Ok(Self {
            program,
            log: runtime.join(LOG_FILE),
            descriptors: descriptors::ask_for_all(),
            socket: Mutex::new(Self::parent()),
        })
    }

    /// The zygote that started this agent, where one did.
    fn parent() -> Option<OwnedFd> {
        let number = std::env::var(tether_shim_protocol::zygote::SOCKET_VARIABLE).ok()?;
        tether_sys::inherited(number.parse().ok()?).ok()
    }

    /// Whether this agent was started by a zygote that is the first process of a container.
    pub(crate) fn is_first_in_container() -> bool {
        std::env::var_os(tether_shim_protocol::zygote::SOCKET_VARIABLE).is_some()
    }

    /// Has a canary try what the kernel allows here. It takes its time: [`Self::probed`] has the answer.
    ///
    /// # Errors
    /// When there is no zygote to be had.
    pub(crate) fn probe(&self, cgroup: Option<&Path>) -> io::Result<()> {
        let request = Request::Probe {
            cgroup: cgroup.map(|path| path.as_os_str().as_encoded_bytes().to_vec()),
        };
        self.ask(&request, &[])
    }

    /// Waits for the answer to [`Self::probe`].
    ///
    /// # Errors
    /// When the zygote does not answer.
    pub(crate) fn probed(&self) -> io::Result<Means> {
        let socket = self.lock();
        let socket = socket
            .as_ref()
            .ok_or_else(|| io::Error::other("the zygote is gone"))?;
        let timeout = Timespec::try_from(PROBE_TIMEOUT).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&timeout))? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the zygote does not answer",
            ));
        }
        let mut answer = [0];
        match recv(socket, &mut answer[..], RecvFlags::empty())? {
            (_, 1) => Ok(Means::from_byte(answer[0])),
            _ => Err(io::Error::other("the zygote ended while it was asked")),
        }
    }

    /// Has a shim forked; its worker will be given `sockets`. The link breaks without a word where
    /// nothing came of it.
    ///
    /// # Errors
    /// When there is no zygote to be had, or no socket.
    pub(crate) fn spawn(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut descriptors = vec![theirs.as_fd()];
        descriptors.extend(sockets);
        self.ask(&Request::Spawn, &descriptors)?;
        Ok(ours)
    }

    /// Lets go of a zygote that does not answer; the next request starts another. The first process of a
    /// container is waited for: another zygote would be this agent's child, and an orphan there after it.
    pub(crate) fn give_up(&self) {
        if !Self::is_first_in_container() {
            self.lock().take();
        }
    }

    fn ask(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut socket = self.lock();
        if let Some(live) = socket.as_ref()
            && send(live, request, descriptors).is_ok()
        {
            return Ok(());
        }
        if Self::is_first_in_container() {
            return Err(io::Error::other(
                "the first process of the container takes no requests",
            ));
        }
        send(socket.insert(self.start()?), request, descriptors)
    }

    /// How many files what comes of it may have open; none where there is no limit.
    pub(crate) fn descriptors(&self) -> Option<u64> {
        self.descriptors
    }

    fn lock(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        // What it guards is replaced whole, and never left half done.
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let log = File::options().create(true).append(true).open(&self.log)?;
        // The kernel opens the path in the child, which still has the descriptor then.
        let mut zygote = Command::new(format!("/proc/self/fd/{}", self.program.as_raw_fd()))
            .arg0("tether-zygote")
            .env_clear()
            .envs(
                self.descriptors
                    .map(|given| (DESCRIPTORS_VARIABLE, given.to_string())),
            )
            .current_dir("/")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log))
            .spawn()?;
        tokio::spawn(async move {
            // It outlives its agent where it has shims; otherwise somebody killed it.
            if let Ok(status) = zygote.wait().await
                && !status.success()
            {
                tracing::error!(%status, "Zygote was killed; workers live on, and the next start makes another one");
            }
        });
        Ok(ours)
    }
}

fn send(socket: &OwnedFd, request: &Request, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit();
        rustix::cmsg_space!(ScmRights(tether_shim_protocol::zygote::FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "more sockets than can be passed to one worker",
        ));
    }
    sendmsg(
        socket,
        &[IoSlice::new(&request.to_bytes())],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
