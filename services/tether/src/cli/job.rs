//! What can be asked about jobs.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum Job {
    /// Lists jobs.
    Ls {
        /// Only those of this pool.
        pool: Option<String>,
    },
    /// Shows all that is known of a job.
    Show(Which),
    /// Starts a job, or finds the one with this key.
    Start {
        #[command(flatten)]
        which: Which,
        /// File with what the worker is given, at most 64 KiB; `-` is standard input.
        #[arg(long, value_name = "FILE")]
        spec: Option<PathBuf>,
        /// How many attempts in a row may die without a checkpoint; 0 has none follow by itself, and 3 is usual.
        #[arg(long)]
        restarts: Option<u32>,
        /// Follows it until its end, as `attach` does.
        #[arg(long)]
        attach: bool,
    },
    /// Follows a job until its end: its progress and what its worker writes on standard error, its result on standard
    /// output. Ends with status 1 where it was not done.
    Attach(Which),
    /// Has a job end: its worker is asked to stop, and ended if it does not.
    Cancel {
        #[command(flatten)]
        which: Which,
        /// How long the worker has to stop.
        #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
        grace: Duration,
    },
    /// Lets go of a job that is over, and of its result.
    Ack(Which),
}

/// One job.
#[derive(Debug, Clone, Args)]
pub(crate) struct Which {
    /// The pool.
    pub(crate) pool: String,
    /// The key.
    pub(crate) key: String,
}
