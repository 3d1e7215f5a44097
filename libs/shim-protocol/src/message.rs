//! The messages, field by field.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::Cause;

/// One frame's worth of meaning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// To the shim, once, on the link it was born with: start this.
    Launch(Box<Launch>),
    /// To the shim: these deadlines replace the ones before, later or not, and from here on others come this way
    /// and not by the lease page.
    Renew {
        /// End of the node's permission, `CLOCK_BOOTTIME` nanoseconds.
        node_deadline_ns: u64,
        /// End of what the lifecycle policy grants after the owner, `CLOCK_BOOTTIME` nanoseconds.
        owner_deadline_ns: u64,
    },
    /// To the shim: an end on the lease page has moved nearer, read it again.
    Look,
    /// To the shim: from here on this is whom the worker depends on, and how.
    Ties {
        /// The owner's process on this machine.
        owner: Option<Identity>,
        /// What its end means for the worker.
        on_owner_exit: OnOwnerExit,
        /// What the end of the agent's connection means for the worker.
        on_link_loss: OnLinkLoss,
    },
    /// To the shim: end the tree. A second order may only shorten the first.
    Stop {
        /// What to record.
        cause: Cause,
        /// Time between SIGTERM and SIGKILL; 0 kills at once.
        grace_ms: u64,
    },
    /// To the shim: send this signal to the worker's main process.
    Signal {
        /// The signal's number.
        signo: i32,
    },
    /// To the shim: the death is durably recorded, leave.
    Acknowledge,
    /// From the shim, first on every connection.
    Hello(Hello),
    /// From the shim: the worker's program is running.
    Started {
        /// Its main process.
        pid: u32,
    },
    /// From the shim: the worker's program is not running, and `Dead` follows.
    SpawnFailed(SpawnFailure),
    /// From the shim, before the first signal: the worker is about to be ended.
    Ending {
        /// Why.
        cause: Cause,
    },
    /// From the shim: the worker's main process was stopped, as by SIGSTOP, or goes on.
    Halted {
        /// Whether it is stopped.
        halted: bool,
    },
    /// From the shim, last: nothing of the worker is left, but for `survivors`.
    Dead(Box<Dead>),
}

/// What to start, and on which terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// [`crate::PROTOCOL`] of the agent.
    pub protocol: u16,
    /// `pool/slot.incarnation`.
    pub worker: String,
    /// Program and arguments; a program without `/` is looked up in the `PATH` of `env`.
    pub argv: Vec<Vec<u8>>,
    /// The complete environment; nothing is inherited.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// The worker's working directory; empty means `dir`.
    pub cwd: Vec<u8>,
    /// Existing runtime directory of this incarnation, absolute: socket, logs, death.
    pub dir: Vec<u8>,
    /// What holds its processes together.
    pub walls: Walls,
    /// Whose process it is, and on what terms with the kernel.
    pub terms: Terms,
    /// What it reads on standard input.
    pub input: Input,
    /// Where its output is kept, and how much of it.
    pub logs: Logs,
    /// The signal that asks it to stop.
    pub stop_signal: i32,
    /// The owner's process on this machine.
    pub owner: Option<Identity>,
    /// What the owner's end means for the worker.
    pub on_owner_exit: OnOwnerExit,
    /// What the end of the agent's connection means for the worker.
    pub on_link_loss: OnLinkLoss,
    /// Time between SIGTERM and the end of a lease.
    pub kill_grace_ms: u64,
    /// End of the node's permission, `CLOCK_BOOTTIME` nanoseconds.
    pub node_deadline_ns: u64,
    /// End of what the lifecycle policy grants after the owner, `CLOCK_BOOTTIME` nanoseconds.
    pub owner_deadline_ns: u64,
    /// Where on the lease page later deadlines are read; absent where they come as messages.
    pub seat: Option<Seat>,
    /// How many of the descriptors the shim was born with are listening sockets: the first ones. All are
    /// passed on as descriptors from 3 on, with `LISTEN_PID` put into the environment; these are also kept
    /// until the worker is dead, and sent to each later agent beside `Hello`.
    pub sockets: u32,
    /// Which of the listening sockets the start waits for: the worker is started once one of them has a
    /// connection. Empty starts it at once.
    pub wait_for: Vec<u32>,
}

/// What holds a worker's processes together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walls {
    /// Whether they live in a PID namespace of their own, which ends with its first process.
    pub namespace: bool,
    /// Whether that takes a user namespace, for want of the right to make one without.
    pub user_namespace: bool,
    /// Whether they see a `/proc` of that namespace.
    pub private_proc: bool,
    /// A cgroup v2 leaf of this incarnation alone, removed at the end.
    pub cgroup: Option<Vec<u8>>,
    /// Whether the agent made it, for its limits; otherwise the shim does, and one that is there already is
    /// another's and is not used.
    pub cgroup_is_made: bool,
    /// Whether the worker is born in it; otherwise it moves there before its program runs.
    pub born_in_cgroup: bool,
    /// Further cgroups of this incarnation alone, made beforehand, that keep its limits.
    pub limiting: Vec<Vec<u8>>,
    /// The socket of a fork server that the worker is asked of: it is no child of the shim then, and `argv`
    /// begins with what the interpreter runs.
    pub forked_from: Option<Vec<u8>>,
}

/// Whose process a worker is, and on what terms with the kernel; what is absent is the agent's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// User and groups.
    pub credentials: Option<Credentials>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Scheduling niceness.
    pub nice: Option<i32>,
    /// Limits of the kernel per process.
    pub limits: Vec<Limit>,
    /// Numbers of the processors it may run on; empty means all.
    pub cpus: Vec<u32>,
}

/// A user and its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All further groups.
    pub groups: Vec<u32>,
}

/// One limit of the kernel; `u64::MAX` is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The number of the resource, as `setrlimit(2)` has it.
    pub resource: u8,
    /// What holds.
    pub soft: u64,
    /// To where the process may raise it.
    pub hard: u64,
}

/// What a worker reads on standard input.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Input {
    /// This, and then the end.
    pub data: Vec<u8>,
    /// Whether the end does not come before that of the shim.
    pub hold_open: bool,
    /// Whether standard input, output and error are a terminal of its own.
    pub pty: bool,
}

/// Where a worker's output is kept, and how much of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Logs {
    /// Size at which each of the two logs is rotated to `.1`; 0 keeps no logs.
    pub limit_bytes: u64,
    /// Age at which they are rotated, in milliseconds; 0 is never.
    pub max_age_ms: u64,
    /// Rotated logs kept of each; 0 means one.
    pub files: u32,
}

/// Pins one process of this machine: a pid alone is reused within seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
}

/// A slot of the lease page, whose it is for as long as it has this generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seat {
    /// Its number.
    pub slot: u32,
    /// What the agent opened it with; never 0.
    pub generation: u64,
}

/// What the owner's end means for the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnOwnerExit {
    /// SIGKILL at once.
    Kill,
    /// Nothing: deadlines alone decide.
    Ignore,
}

/// What the end of the agent's connection means for the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnLinkLoss {
    /// SIGKILL at once.
    Kill,
    /// Nothing: the shim waits for another agent until the deadlines.
    Hold,
}

/// Who the shim is and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`crate::PROTOCOL`] of the shim.
    pub protocol: u16,
    /// The shim's own version, for people.
    pub version: String,
    /// `pool/slot.incarnation`; empty before `Launch`.
    pub worker: String,
    /// The shim.
    pub shim_pid: u32,
    /// The worker's main process; 0 where there is none yet or none any more.
    pub worker_pid: u32,
    /// When the worker was started, `CLOCK_BOOTTIME` nanoseconds; 0 before.
    pub started_ns: u64,
    /// How far it has come.
    pub phase: Phase,
    /// Which lease page it reads, the first descriptor beside this; 0 where there is none. Said from
    /// [`crate::PROTOCOL`] 4 on, as is the next.
    pub page: u64,
    /// What it reads there; absent before `Launch`, and where its deadlines come as messages.
    pub seat: Option<Seat>,
}

/// How far a shim has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Waits for `Launch`.
    Waiting,
    /// Between fork and exec.
    Starting,
    /// The worker's program runs.
    Running,
    /// The tree is being ended.
    Ending,
    /// It is gone; `Dead` is repeated on each connection until acknowledged.
    Dead,
}

/// Where a start failed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpawnFailure {
    /// The step that failed.
    pub stage: Stage,
    /// The kernel's answer.
    pub errno: i32,
}

/// The steps of a start that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Using the runtime directory: entering it, or listening on its socket.
    Directory,
    /// Making the pipes for output and the null device for input.
    Pipe,
    /// Making the process.
    Fork,
    /// Making or joining the cgroup.
    Cgroup,
    /// Making the PID namespace, or mounting its `/proc`.
    Namespace,
    /// Setting limits, niceness or processors.
    Limits,
    /// Becoming the user, with its groups.
    User,
    /// Changing to the working directory.
    Chdir,
    /// Finding and running the program.
    Exec,
}

/// The record of one death.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dead {
    /// Why.
    pub cause: Cause,
    /// The main process's exit code, where it exited.
    pub exit_code: Option<i32>,
    /// The signal that ended the main process, where one did.
    pub signal: Option<i32>,
    /// Whether it left a core dump.
    pub core: bool,
    /// How the start failed, where the cause is [`Cause::SpawnFailed`].
    pub spawn_failure: Option<SpawnFailure>,
    /// Processes beyond the main one that were reaped once the end had begun.
    pub reaped: u32,
    /// Processes that did not die although they were killed (uninterruptible sleep).
    pub survivors: u32,
    /// When, in milliseconds of Unix time.
    pub unix_ms: u64,
    /// The largest resident set of any process of the tree, and at least that of the zygote with all its shims.
    pub max_rss_kib: u64,
    /// Processor time of the whole tree.
    pub cpu_ms: u64,
    /// The largest memory of the whole tree in bytes, as its cgroup counted it; 0 where none did.
    pub peak_memory_bytes: u64,
    /// How it is known that nothing is left.
    pub proof: Proof,
    /// Output that could not be written to the logs (disk full) and was dropped.
    pub log_lost_bytes: u64,
    /// The last of standard error, at most [`crate::STDERR_TAIL_BYTES`].
    pub stderr_tail: Vec<u8>,
}

/// How it is known that nothing of a worker is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// The kernel ended its PID namespace.
    Namespace,
    /// Its cgroup is empty.
    Cgroup,
    /// The shim, which inherits what the worker leaves behind, has no child.
    Tree,
}

impl Proof {
    /// A word for people and programs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Cgroup => "cgroup",
            Self::Tree => "tree",
        }
    }
}
