//! `tether gateway ...`.

use std::time::Duration;

use clap::{Args, Subcommand};
use tether_types::WorkerId;

#[derive(Debug, Args)]
pub(crate) struct Gateway {
    /// Where the gateway takes orders: `unix:/path` or `host:port`; beside the socket of `--gateway` when not given.
    #[arg(
        long,
        global = true,
        env = "TETHER_GATEWAY_CONTROL",
        value_name = "ADDRESS"
    )]
    pub(crate) control: Option<String>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists workers as this gateway sees them: who is given calls, how many are under way, what its breaker says.
    Routes(Routes),
    /// Lists orders that hold here: who gave them, why, until when.
    Orders,
    /// Gives a worker, a node or a pool no new calls of this gateway, and waits until those under way are over. The
    /// order stays until it is undone or the gateway ends.
    Drain(Drain),
    /// Undoes a drain.
    Undrain(Undrain),
    /// Leaves one life of a worker alone for a while.
    Eject(Eject),
    /// Gives a worker calls again, whether an order or its own calls had it left alone.
    Restore(Restore),
    /// Ties an affinity key to one life of a worker.
    Pin(Pin),
    /// Unties an affinity key.
    Unpin(Unpin),
    /// Sets how calls of a pool wait, or how many a worker serves at once, until the gateway ends; what is not given is
    /// as configured again.
    Limits(Limits),
    /// Says what would become of a call now, and what speaks against each worker. Makes none.
    Explain(Explain),
    /// Prints calls to workers as they end, of those that begin from here on.
    Tail(Tail),
}

/// Why an order is given.
#[derive(Debug, Args)]
pub(crate) struct Why {
    /// Why, for whoever reads `tether gateway orders` and the log.
    #[arg(long, default_value = "")]
    pub(crate) reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct Routes {
    /// Only this pool.
    pub(crate) pool: Option<String>,
    /// Goes on, and prints each change.
    #[arg(long, short)]
    pub(crate) watch: bool,
}

/// Who is meant.
#[derive(Debug, Args)]
#[group(id = "whom", required = true, multiple = false)]
pub(crate) struct Whom {
    /// `pool/slot`, or `pool/slot.incarnation`.
    pub(crate) worker: Option<WorkerId>,
    /// All workers on this node, those that come later too.
    #[arg(long)]
    pub(crate) node: Option<String>,
    /// All workers of this pool, those that come later too.
    #[arg(long)]
    pub(crate) pool: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Drain {
    #[command(flatten)]
    pub(crate) whom: Whom,
    /// How long calls under way are waited for; 0s does not wait.
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub(crate) wait: Duration,
    #[command(flatten)]
    pub(crate) why: Why,
}

#[derive(Debug, Args)]
pub(crate) struct Undrain {
    #[command(flatten)]
    pub(crate) whom: Whom,
    #[command(flatten)]
    pub(crate) why: Why,
}

#[derive(Debug, Args)]
pub(crate) struct Eject {
    /// `pool/slot`, or `pool/slot.incarnation`.
    pub(crate) worker: WorkerId,
    /// For how long, a day at most.
    #[arg(long = "for", default_value = "10m", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Duration,
    #[command(flatten)]
    pub(crate) why: Why,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// `pool/slot`, or `pool/slot.incarnation`.
    pub(crate) worker: WorkerId,
    #[command(flatten)]
    pub(crate) why: Why,
}

#[derive(Debug, Args)]
pub(crate) struct Pin {
    /// What calls have in `tether-affinity`.
    pub(crate) key: String,
    /// `pool/slot`, or `pool/slot.incarnation`.
    pub(crate) worker: WorkerId,
    #[command(flatten)]
    pub(crate) why: Why,
}

#[derive(Debug, Args)]
pub(crate) struct Unpin {
    /// What calls have in `tether-affinity`.
    pub(crate) key: String,
    /// The pool.
    pub(crate) pool: String,
    #[command(flatten)]
    pub(crate) why: Why,
}

#[derive(Debug, Args)]
pub(crate) struct Limits {
    /// The pool whose queue is meant.
    #[arg(required_unless_present = "worker", conflicts_with = "worker")]
    pub(crate) pool: Option<String>,
    /// How many calls may wait.
    #[arg(long, conflicts_with = "worker")]
    pub(crate) max_calls: Option<u64>,
    /// How long one waits.
    #[arg(long, conflicts_with = "worker", value_parser = humantime::parse_duration)]
    pub(crate) max_wait: Option<Duration>,
    /// The worker that is meant.
    #[arg(long)]
    pub(crate) worker: Option<WorkerId>,
    /// How many calls it serves at once.
    #[arg(long, requires = "worker")]
    pub(crate) capacity: Option<u32>,
    /// For how long; until the gateway ends when not given.
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,
    #[command(flatten)]
    pub(crate) why: Why,
}

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// `package.Service/Method`.
    pub(crate) method: String,
    /// The pool.
    #[arg(long)]
    pub(crate) pool: Option<String>,
    /// Exactly this worker: `pool/slot` or `pool/slot.incarnation`.
    #[arg(long)]
    pub(crate) worker: Option<WorkerId>,
    /// What the call has in `tether-affinity`.
    #[arg(long)]
    pub(crate) affinity: Option<String>,
    /// Further metadata; can be given more than once.
    #[arg(long = "metadata", short, value_name = "KEY=VALUE")]
    pub(crate) metadata: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// Only calls of this pool.
    #[arg(long)]
    pub(crate) pool: Option<String>,
    /// Only calls of this worker: `pool/slot`, or `pool/slot.incarnation`.
    #[arg(long)]
    pub(crate) worker: Option<WorkerId>,
    /// Only calls that ended so: `answered`, `client_gone`, `never_sent`, `refused`, `sent_unknown`, `started`; can be
    /// given more than once.
    #[arg(long = "outcome")]
    pub(crate) outcomes: Vec<String>,
    /// Only calls that took this long.
    #[arg(long, default_value = "0s", value_parser = humantime::parse_duration)]
    pub(crate) min: Duration,
    /// Only calls whose code is not OK.
    #[arg(long)]
    pub(crate) failed: bool,
}
