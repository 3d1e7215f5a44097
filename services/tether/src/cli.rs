//! What can be asked on the command line.

pub(crate) mod choose;
pub(crate) mod gateway;
pub(crate) mod job;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tether_settings::ParentFlag;
use tether_types::WorkerId;

/// Process supervision for BEAM applications that run Python workers.
#[derive(Debug, Parser)]
#[command(name = "tether", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// The gateway: `unix:/path` or `host:port`; the one of this machine when not given.
    #[arg(long, global = true, env = "TETHER_GATEWAY", value_name = "ADDRESS")]
    pub(crate) gateway: Option<String>,
    /// For people or for programs.
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table.
    Table,
    /// One JSON value, or one on each line where answers keep coming.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs discovery, arbiter, agent and gateway in this process.
    Up(Up),
    /// Runs a pool for as long as this command runs: this process is the pool's owner.
    Run(Run),
    /// Applies, lists, scales, drains and removes pools.
    #[command(subcommand)]
    Pool(Pool),
    /// Long work that outlives its owner: lists, starts, follows and cancels jobs.
    #[command(subcommand)]
    Job(job::Job),
    /// Stands between a BEAM and the gateways: opened by the BEAM as a port, with frames of terms on standard input and
    /// output.
    Port,
    /// Lists workers.
    Ps(Ps),
    /// Lists nodes, with how surely their workers' processes end, their labels and their resources.
    Nodes,
    /// Cordons and drains nodes, and attests what the arbiter cannot see of one.
    #[command(subcommand)]
    Node(Node),
    /// Tries out what an agent started on this machine, by this user, could guarantee, and says which mode `auto` would
    /// choose here and why.
    Doctor(Doctor),
    /// Asks what workers are to outlive, says which mode does that, and writes its configuration.
    Choose(choose::Choose),
    /// Prints what a worker wrote.
    Logs(Logs),
    /// Prints what happened: starts, deaths and their causes, sessions, nodes.
    Events(Events),
    /// Lists who serves, as gateways hear it, with zone, weight, capacity and health.
    Endpoints(Endpoints),
    /// Says who serves a pool, and follows it.
    Discover(Discover),
    /// Registers a worker that no agent runs, for as long as this command runs: started by systemd, by hand, by
    /// another scheduler.
    Register(Register),
    /// Lists workers that were registered.
    Registrations(Registrations),
    /// Orders to one gateway, and what it does with calls: routes, drain, eject, pin, limits, explain, tail.
    Gateway(gateway::Gateway),
    /// Ends a worker; its pool's restart policy says whether another follows.
    Stop(Stop),
    /// Sends a signal to a worker's main process.
    Signal(Signal),
    /// Calls a method of a worker with JSON.
    Call(Call),
    /// Verifies the promises offline from what services wrote with TETHER_HISTORY set.
    LeaseCheck(LeaseCheck),
    /// Checks or shows the configuration.
    #[command(subcommand)]
    Config(Config),
    /// Prints the version.
    Version,
    /// Writes manual pages, those of services too, and completions for bash, zsh and fish, into a directory.
    #[command(hide = true)]
    Shell {
        /// Made where it is missing.
        folder: PathBuf,
    },
}

/// Where the configuration of services comes from.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Configuration file.
    #[arg(long, env = "TETHER_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Sets one key, as in `lease.node_ttl=30s`; can be given more than once.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Endpoints {
    /// Only this pool.
    pub(crate) pool: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Discover {
    /// The pool.
    pub(crate) pool: String,
    /// Goes on, and prints each change.
    #[arg(long, short)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// `memory:`, `redb:/path/file.redb` or `etcd://host:2379`; a file in the state directory when
    /// neither this nor `store` in the configuration is given.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// For the first process of a container: whatever is orphaned there is inherited and ended, and a
    /// `tether up` that is killed is started again.
    #[arg(long)]
    pub(crate) init: bool,
    #[command(flatten)]
    pub(crate) parent: ParentFlag,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Node {
    /// Has a node take no more workers; those it has stay.
    Cordon {
        /// The node.
        name: String,
    },
    /// Has a node take workers again.
    Uncordon {
        /// The node.
        name: String,
    },
    /// Has a node take no more workers, and those it has replaced by others elsewhere, as the `rollout` of each
    /// pool allows. A worker that does a job stays until the job is over. `tether nodes` shows how far it is.
    Drain(Drain),
    /// Says that a node is dead, so that its workers' places are filled elsewhere at once.
    ///
    /// DANGEROUS where it is not so. A node that is only cut off keeps its workers, and those with a job for
    /// a day: their places wait for that. Say this only when you know that none of them runs: the machine is
    /// switched off, or the scheduler has deleted it. Else two workers live in one place, and both may write.
    /// The new ones have greater numbers, and whatever fences by them refuses the old ones; nothing else does.
    Dead {
        /// The node.
        name: String,
        /// Who says so and how it is known; recorded with each death. The user who gives the command when not
        /// given.
        #[arg(long)]
        witness: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// The node.
    #[arg(required_unless_present = "own", conflicts_with = "own")]
    pub(crate) name: Option<String>,
    /// The node of this machine's agent, as its configuration calls it: for what runs before the end of a container.
    #[arg(long = "self")]
    pub(crate) own: bool,
    /// Comes back when the node has no worker, and tells meanwhile which it has and why. Ends with status 3 where that
    /// takes longer than `--timeout`.
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long they are waited for.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
    /// Asks those that are there then to stop, each with its own grace, and waits for that too.
    #[arg(long)]
    pub(crate) stop: bool,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// As if `agent.no_namespaces` was set.
    #[arg(long)]
    pub(crate) no_namespaces: bool,
    /// As if `agent.no_cgroups` was set.
    #[arg(long)]
    pub(crate) no_cgroups: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// File with `[template.NAME]` and `[pool.NAME]`.
    #[arg(
        long,
        short,
        value_name = "FILE",
        conflicts_with = "command",
        required_unless_present = "command"
    )]
    pub(crate) file: Option<PathBuf>,
    /// Run only this pool of the file, or give the pool of a command this name.
    #[arg(long)]
    pub(crate) pool: Option<String>,
    /// Name of the owner; a later process with the same name takes over.
    #[arg(long)]
    pub(crate) owner: Option<String>,
    /// Lease of the session; the arbiter's default when not given.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,
    /// Number of workers of a command.
    #[arg(long, short = 'n', default_value_t = 1, conflicts_with = "file")]
    pub(crate) count: u32,
    /// Lifecycle mode of a command.
    #[arg(long, default_value = "auto", conflicts_with = "file")]
    pub(crate) mode: String,
    /// How long to wait for all workers to be ready before giving up.
    #[arg(long, default_value = "120s", value_parser = humantime::parse_duration)]
    pub(crate) ready_timeout: Duration,
    /// The command each worker runs; it is to listen at TETHER_LISTEN.
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// Makes pools as a file says.
    Apply(Apply),
    /// Lists pools.
    Ls,
    /// Changes the number of workers.
    Scale {
        /// The pool.
        name: String,
        /// Wanted number of workers.
        size: u32,
    },
    /// Takes a pool out of service without stopping its workers.
    Drain {
        /// The pool.
        name: String,
        /// Puts it back.
        #[arg(long)]
        undo: bool,
    },
    /// Stops a pool's workers and forgets it.
    Rm {
        /// The pool.
        name: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// File with `[template.NAME]` and `[pool.NAME]`.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Only this pool of the file.
    #[arg(long)]
    pub(crate) pool: Option<String>,
    /// The owner the pools are for; it is given one heartbeat timeout to open its session.
    #[arg(long)]
    pub(crate) owner: String,
}

#[derive(Debug, Args)]
pub(crate) struct LeaseCheck {
    /// Files of histories, or directories of such files.
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Only this pool.
    pub(crate) pool: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// `pool/slot`, or `pool/slot.incarnation` for one life of it.
    pub(crate) worker: WorkerId,
    /// Goes on as more is written, over restarts too.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Begins with this many of the last bytes of each stream; 0 means all that is kept.
    #[arg(long, default_value_t = 0)]
    pub(crate) tail_bytes: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Goes on with what happens from here.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Only events of this pool's workers.
    #[arg(long)]
    pub(crate) pool: Option<String>,
    /// Only events after this revision.
    #[arg(long, default_value_t = 0)]
    pub(crate) after: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Register {
    /// The pool; one that agents run takes no registrations.
    pub(crate) pool: String,
    /// Where calls go, as gateways reach it: `host:port` or `unix:/path`.
    pub(crate) address: String,
    /// What it is called, once at a time in its pool; this machine's name and the port when not given.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Where it is, as in `eu-west-1a`.
    #[arg(long, default_value = "")]
    pub(crate) zone: String,
    /// Its share of calls beside the others of its pool.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) weight: u32,
    /// How many calls it serves at once; 0 where that is not known.
    #[arg(long, default_value_t = 0)]
    pub(crate) capacity: u32,
    /// How it is spoken to.
    #[arg(long, value_enum, default_value_t = Protocol::Grpc)]
    pub(crate) protocol: Protocol,
    /// How long it stays registered when this command is killed; the arbiter's default when not given.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,
    /// How it is found out whether the worker serves: it is registered once it does, and takes no new calls while
    /// it does not.
    #[arg(long, value_enum, default_value_t = Check::Grpc)]
    pub(crate) check: Check,
    /// Time between two checks, and the longest that one may take.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    pub(crate) check_interval: Duration,
    /// So many checks in a row fail before it takes no new calls.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) check_failures: u32,
    /// How long it takes no new calls before it is withdrawn, when this command is asked to end.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) drain: Duration,
}

/// How a worker is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// HTTP/2 without TLS.
    Grpc,
    /// HTTP/2 with TLS: gateways do not speak it, others that ask discovery may. It takes `--check tcp` or `none`.
    Grpcs,
}

impl Protocol {
    /// As it is told.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Grpcs => "grpcs",
        }
    }
}

/// How it is found out whether a worker serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    /// It says SERVING by `grpc.health.v1`.
    Grpc,
    /// It takes a connection.
    Tcp,
    /// It is believed to.
    None,
}

#[derive(Debug, Args)]
pub(crate) struct Registrations {
    /// Only those of this pool.
    pub(crate) pool: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// `pool/slot`, or `pool/slot.incarnation`.
    pub(crate) worker: WorkerId,
    /// Time between SIGTERM and SIGKILL; as the template says when not given.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub(crate) grace: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct Signal {
    /// `pool/slot`, or `pool/slot.incarnation`.
    pub(crate) worker: WorkerId,
    /// Name or number: `USR1`, `SIGUSR1` or `10`.
    pub(crate) signal: String,
}

#[derive(Debug, Args)]
pub(crate) struct Call {
    /// The pool.
    pub(crate) pool: String,
    /// `package.Service/Method`.
    pub(crate) method: String,
    /// The request as JSON; `@-` reads it from standard input, `@FILE` from a file. A client-streaming
    /// method takes several values after each other.
    #[arg(long, short, default_value = "{}")]
    pub(crate) data: String,
    /// The call's deadline.
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Duration,
    /// Calls with the same key go to the same worker while it serves.
    #[arg(long)]
    pub(crate) affinity: Option<String>,
    /// Exactly this worker: `pool/slot` or `pool/slot.incarnation`.
    #[arg(long)]
    pub(crate) worker: Option<WorkerId>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Says whether the configuration can be used.
    Check(Settings),
    /// Prints every setting, with the place it came from.
    Show(Settings),
}
