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

use crate::{descriptors, scope::Scope};

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
    /// Where systemd holds it, apart from the agent.
    scope: Option<Scope>,
    socket: Mutex<Option<OwnedFd>>,
    /// Held while another one is started, which waits for systemd where there is a scope.
    starts: tokio::sync::Mutex<()>,
}

impl Zygote {
    /// Puts the program into sealed memory: no path to protect, and nothing to clean up.
    ///
    /// # Errors
    /// When the kernel refuses memory files.
    pub(crate) fn new(runtime: &Path, scope: Option<Scope>) -> io::Result<Self> {
        let program = program()?;
        Ok(Self {
            program,
            log: runtime.join(LOG_FILE),
            descriptors: descriptors::ask_for_all(),
            scope,
            socket: Mutex::new(Self::parent()),
            starts: tokio::sync::Mutex::default(),
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

    /// Starts it where it is to be held apart from the agent, and tells in which cgroup of version 2 that is.
    ///
    /// # Errors
    /// When it cannot be started, or held there.
    pub(crate) async fn held(&self) -> io::Result<Option<PathBuf>> {
        if self.scope.is_none() || Self::is_first_in_container() {
            return Ok(None);
        }
        let (socket, held) = self.start().await?;
        *self.lock() = Some(socket);
        Ok(held)
    }

    /// Has a canary try what the kernel allows here. It takes its time: [`Self::probed`] has the answer.
    ///
    /// # Errors
    /// When there is no zygote to be had.
    pub(crate) fn probe(&self, cgroup: Option<&Path>) -> io::Result<()> {
        let request = Request::Probe {
            cgroup: cgroup.map(|path| path.as_os_str().as_encoded_bytes().to_vec()),
        };
        if self.asks(&request, &[]) {
            return Ok(());
        }
        Self::may_start()?;
        if self.scope.is_some() {
            return Err(io::Error::other("the zygote is gone"));
        }
        let (socket, _) = self.begin()?;
        send(self.lock().insert(socket), &request, &[])
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
    pub(crate) async fn spawn(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut descriptors = vec![theirs.as_fd()];
        descriptors.extend(sockets);
        if self.asks(&Request::Spawn, &descriptors) {
            return Ok(ours);
        }
        let _alone = self.starts.lock().await;
        // Whoever was before may have started one.
        if self.asks(&Request::Spawn, &descriptors) {
            return Ok(ours);
        }
        Self::may_start()?;
        let (socket, _) = self.start().await?;
        send(self.lock().insert(socket), &Request::Spawn, &descriptors)?;
        Ok(ours)
    }

    /// Lets go of a zygote that does not answer; the next request starts another. The first process of a
    /// container is waited for: another zygote would be this agent's child, and an orphan there after it.
    pub(crate) fn give_up(&self) {
        if !Self::is_first_in_container() {
            self.lock().take();
        }
    }

    /// Asks the one that there is; tells whether it lives.
    fn asks(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> bool {
        let socket = self.lock();
        let live = socket.as_ref();
        live.is_some_and(|live| send(live, request, descriptors).is_ok())
    }

    /// Whether another one may be started.
    fn may_start() -> io::Result<()> {
        match Self::is_first_in_container() {
            false => Ok(()),
            true => Err(io::Error::other(
                "the first process of the container takes no requests",
            )),
        }
    }

    /// How many files what comes of it may have open; none where there is no limit.
    pub(crate) fn descriptors(&self) -> Option<u64> {
        self.descriptors
    }

    fn lock(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        // What it guards is replaced whole, and never left half done.
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts one, in its scope where there is one, and tells in which cgroup that is.
    async fn start(&self) -> io::Result<(OwnedFd, Option<PathBuf>)> {
        let (socket, pid) = self.begin()?;
        // Before it is asked for anything: what it forks is where it is.
        let held = match self.scope.as_ref().zip(pid) {
            Some((scope, pid)) => Some(scope.take(pid).await?),
            None => None,
        };
        Ok((socket, held))
    }

    /// Starts one where the agent is.
    fn begin(&self) -> io::Result<(OwnedFd, Option<u32>)> {
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
        let pid = zygote.id();
        tokio::spawn(async move {
            // It outlives its agent where it has shims; otherwise somebody killed it.
            if let Ok(status) = zygote.wait().await
                && !status.success()
            {
                tracing::error!(%status, "Zygote was killed; workers live on, and the next start makes another one");
            }
        });
        Ok((ours, pid))
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
