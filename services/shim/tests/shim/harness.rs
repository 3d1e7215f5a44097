//! A shim under test, the agent's side of its link, and processes watched through pidfds.

use std::fs::{self, File};
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, mknodat};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;
use tether_clock::{BootClock, Clock};
use tether_shim_protocol::{
    DEATH_FILE, Dead, Decoder, Hello, Identity, Input, Launch, Logs, Message, NO_DEADLINE,
    OnLinkLoss, OnOwnerExit, PROTOCOL, SOCKET_FILE, Terms, Walls, decode, encode,
};
use tether_sys::{Page, Seat};

/// Anything that takes longer than this has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A shim, the link it was born with, and its runtime directory.
pub(crate) struct Shim {
    pub(crate) child: Child,
    link: Option<UnixStream>,
    decoder: Decoder,
    /// Everything it said, in order.
    pub(crate) said: Vec<Message>,
    dir: TempDir,
    /// A pipe on which workers tell the test what they did, one line each.
    events: File,
}

/// A launch of `argv` that holds for ever; change what the test is about.
pub(crate) fn launch(argv: &[&str]) -> Launch {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("/usr/local/bin:/usr/bin:/bin:{path}");
    Launch {
        protocol: PROTOCOL,
        worker: "train/0.1".into(),
        argv: argv
            .iter()
            .map(|argument| argument.as_bytes().to_vec())
            .collect(),
        env: vec![(b"PATH".to_vec(), path.into_bytes())],
        cwd: b"/".to_vec(),
        dir: Vec::new(),
        walls: walls(),
        terms: Terms::default(),
        input: Input::default(),
        logs: Logs {
            limit_bytes: 1 << 20,
            max_age_ms: 0,
            files: 1,
        },
        stop_signal: 15,
        owner: None,
        on_owner_exit: OnOwnerExit::Kill,
        on_link_loss: OnLinkLoss::Hold,
        kill_grace_ms: 1_000,
        node_deadline_ns: NO_DEADLINE,
        owner_deadline_ns: NO_DEADLINE,
        seat: None,
        sockets: 0,
        wait_for: Vec::new(),
    }
}

/// The same tests are built twice: once for workers without and once for workers with a namespace.
pub(crate) const IN_NAMESPACE: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"namespace");

fn walls() -> Walls {
    Walls {
        namespace: IN_NAMESPACE,
        ..Walls::default()
    }
}

pub(crate) fn sh(script: &str) -> Launch {
    launch(&["sh", "-c", script])
}

/// A Python worker with `tell(text)` to write an event line. The file is closed in so many words: closed
/// by its finaliser, a SystemExit raised by a signal handler in that moment would be swallowed.
pub(crate) fn python(script: &str) -> Launch {
    let tell = "import os, signal, sys, time\n\
                def tell(what):\n    with open(os.environ['EVENTS'], 'w') as to: to.write(f'{what}\\n')\n";
    launch(&["python3", "-c", &format!("{tell}{script}")])
}

pub(crate) fn now_ns() -> u64 {
    BootClock.now().as_nanos()
}

pub(crate) fn in_ms(ms: u64) -> u64 {
    now_ns() + ms * 1_000_000
}

impl Shim {
    pub(crate) fn start(launch: Launch) -> Self {
        Self::start_with(launch, Path::new(env!("CARGO_BIN_EXE_tether-shim")), |_| {})
    }

    /// Starts `program` as the shim; `prepare` may change how.
    pub(crate) fn start_with(
        launch: Launch,
        program: &Path,
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let (mut shim, launch) = Self::born(launch, program, prepare);
        shim.say(&Message::Launch(Box::new(launch)));
        shim
    }

    /// Starts a shim whose permission is read from its page, in a seat that `store` has opened there.
    pub(crate) fn start_seated(
        mut launch: Launch,
        seat: Seat,
        store: impl FnOnce(&Page),
    ) -> (Self, Page) {
        let program = Path::new(env!("CARGO_BIN_EXE_tether-shim"));
        launch.seat = Some(tether_shim_protocol::Seat {
            slot: seat.slot,
            generation: seat.generation,
        });
        let (mut shim, launch) = Self::born(launch, program, |_| {});
        let page = shim.page();
        store(&page);
        shim.say(&Message::Launch(Box::new(launch)));
        (shim, page)
    }

    /// The page that comes beside the first word on a link.
    pub(crate) fn page(&mut self) -> Page {
        let link = self.link.as_ref().unwrap();
        assert!(readable(link, PATIENCE), "it says nothing");
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; 4096];
        let buffers = &mut [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(link, buffers, &mut control, flags).unwrap();
        let mut all = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        });
        let page = Page::of(all.next().unwrap().next().unwrap()).unwrap();
        drop(all);
        self.decoder.push(&bytes[..received.bytes]);
        page
    }

    /// Makes all that a shim needs, and starts one that waits for its launch.
    fn born(
        mut launch: Launch,
        program: &Path,
        prepare: impl FnOnce(&mut Command),
    ) -> (Self, Launch) {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("events");
        let open = Mode::from_raw_mode(0o666);
        mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, open, 0).unwrap();
        // Both ends, so that it neither waits for a writer nor ends with one.
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let events = File::from(rustix::fs::open(&fifo, flags, Mode::empty()).unwrap());
        if launch.dir.is_empty() {
            launch.dir = dir.path().as_os_str().as_bytes().to_vec();
        }
        launch
            .env
            .push((b"EVENTS".to_vec(), fifo.as_os_str().as_bytes().to_vec()));

        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(program);
        command
            .arg(&launch.worker)
            .stdin(Stdio::from(OwnedFd::from(theirs)));
        // Files of the shim are the shim's, not this process group's.
        command.process_group(0);
        prepare(&mut command);
        if let Some(uid) = nobody_of(&command) {
            std::os::unix::fs::chown(dir.path(), Some(uid), Some(uid)).unwrap();
            fs::set_permissions(&fifo, std::os::unix::fs::PermissionsExt::from_mode(0o666))
                .unwrap();
        }
        let child = command.spawn().unwrap();
        let shim = Self {
            child,
            link: Some(ours),
            decoder: Decoder::default(),
            said: Vec::new(),
            dir,
            events,
        };
        (shim, launch)
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    pub(crate) fn say(&mut self, message: &Message) {
        self.link
            .as_mut()
            .unwrap()
            .write_all(&encode(message))
            .unwrap();
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.link.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// The agent goes away.
    pub(crate) fn hang_up(&mut self) {
        self.link = None;
    }

    /// Another agent comes.
    pub(crate) fn reconnect(&mut self) -> Hello {
        self.connect();
        self.hear_hello()
    }

    pub(crate) fn connect(&mut self) {
        self.link = Some(UnixStream::connect(self.path(SOCKET_FILE)).unwrap());
        self.decoder = Decoder::default();
        self.said.clear();
    }

    pub(crate) fn hear_hello(&mut self) -> Hello {
        self.hear(|message| match message {
            Message::Hello(hello) => Some(hello.clone()),
            _ => None,
        })
    }

    /// Reads until `pick` finds what it looks for.
    pub(crate) fn hear<T>(&mut self, pick: impl Fn(&Message) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut bytes = [0; 4096];
        loop {
            while let Some(message) = self.decoder.next_message().unwrap() {
                let picked = pick(&message);
                self.said.push(message);
                if let Some(picked) = picked {
                    return picked;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "still waiting after {PATIENCE:?}, heard {:?}",
                self.said
            );
            let link = self.link.as_mut().unwrap();
            link.set_read_timeout(Some(left)).unwrap();
            match link.read(&mut bytes) {
                Ok(0) => panic!("the shim left, having said {:?}", self.said),
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}, having heard {:?}", self.said),
            }
        }
    }

    /// Waits for the worker's program to run.
    pub(crate) fn started(&mut self) -> Process {
        Process::of(self.hear(|message| match message {
            Message::Started { pid } => Some(*pid),
            _ => None,
        }))
    }

    pub(crate) fn dead(&mut self) -> Dead {
        self.hear(|message| match message {
            Message::Dead(dead) => Some((**dead).clone()),
            _ => None,
        })
    }

    /// The next line a worker wrote.
    pub(crate) fn event(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            match self.events.read(&mut byte) {
                Ok(1) => line.push(byte[0]),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    assert!(readable(&self.events, left), "no event, only {line:?}");
                }
                Err(error) => panic!("{error}"),
            }
        }
        String::from_utf8(line).unwrap().trim().to_owned()
    }

    /// The next line, which is a pid as the worker sees it.
    pub(crate) fn process(&mut self) -> Process {
        let told = self.event();
        if !IN_NAMESPACE {
            return Process::of(told.parse().unwrap());
        }
        // The last of these is its number in the innermost namespace.
        let innermost = |pid: &String| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            line.and_then(|pids| Some(pids.split_whitespace().next_back()?.to_owned()))
        };
        let found = self
            .survivors()
            .into_iter()
            .find(|pid| innermost(pid).as_ref() == Some(&told));
        Process::of(found.unwrap().parse().unwrap())
    }

    /// Waits for the shim to end by itself.
    pub(crate) fn left(&mut self) -> ExitStatus {
        Process::of(self.child.id()).gone_within(PATIENCE);
        self.child.wait().unwrap()
    }

    /// What the shim leaves for a later agent once nobody acknowledges it.
    pub(crate) fn death_on_disk(&self) -> Dead {
        let deadline = Instant::now() + PATIENCE;
        while !self.path(DEATH_FILE).exists() {
            assert!(Instant::now() < deadline, "no death is recorded");
            std::thread::sleep(Duration::from_millis(1));
        }
        match decode(&fs::read(self.path(DEATH_FILE)).unwrap()).unwrap() {
            Message::Dead(dead) => *dead,
            other => panic!("{other:?}"),
        }
    }

    /// Every process whose environment is this launch's, wherever it went.
    pub(crate) fn survivors(&self) -> Vec<String> {
        let mark = self.path("events");
        let mark = mark.as_os_str().as_bytes();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids =
            entries.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
        pids.filter(|entry| {
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            environment.windows(mark.len()).any(|window| window == mark)
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // A test that failed half-way leaves nothing behind either.
        for pid in self.survivors() {
            let raw = pid.parse().ok().and_then(Pid::from_raw);
            if let Some(Ok(pidfd)) = raw.map(|raw| pidfd_open(raw, PidfdFlags::empty())) {
                let _ = pidfd_send_signal(pidfd, Signal::KILL);
            }
        }
    }
}

fn nobody_of(command: &Command) -> Option<u32> {
    let mut envs = command.get_envs();
    envs.find(|(name, _)| *name == "AS_UID")?
        .1?
        .to_str()?
        .parse()
        .ok()
}

/// A process, known by its pidfd.
pub(crate) struct Process {
    pub(crate) pid: u32,
    pidfd: OwnedFd,
}

impl Process {
    pub(crate) fn of(pid: u32) -> Self {
        let raw = Pid::from_raw(pid.cast_signed()).unwrap();
        Self {
            pid,
            pidfd: pidfd_open(raw, PidfdFlags::empty()).unwrap(),
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.pidfd, signal).unwrap();
    }

    /// How long it took to end.
    pub(crate) fn gone_within(&self, patience: Duration) -> Duration {
        let since = Instant::now();
        assert!(
            readable(&self.pidfd, patience),
            "{} still lives after {patience:?}",
            self.pid
        );
        since.elapsed()
    }

    /// Watches it for a while.
    pub(crate) fn lives_for(&self, time: Duration) {
        assert!(!readable(&self.pidfd, time), "{} ended", self.pid);
    }

    /// What an agent is told about an owner.
    pub(crate) fn identity(&self) -> Identity {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let fields = stat.rsplit_once(')').unwrap().1;
        let start_ticks = fields.split_whitespace().nth(19).unwrap().parse().unwrap();
        Identity {
            pid: self.pid,
            start_ticks,
        }
    }
}

fn readable(fd: impl AsFd, within: Duration) -> bool {
    let within = Timespec::try_from(within).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&within)).unwrap() > 0
}

/// A child of the test itself.
pub(crate) struct Own(pub(crate) Child);

impl Own {
    pub(crate) fn sleeper() -> Self {
        Self(Command::new("sleep").arg("600").spawn().unwrap())
    }

    pub(crate) fn process(&self) -> Process {
        Process::of(self.0.id())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
