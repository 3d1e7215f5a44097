//! What can be asked of `tether choose`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Deserialize;

/// Asks what is not given. From a pipe, one answer on each line.
#[derive(Debug, Args)]
pub(crate) struct Choose {
    #[command(flatten)]
    pub(crate) answers: Answers,
    /// Answers as TOML, by the names of the flags with `_`; flags win over it.
    #[arg(long = "answers", value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Where the configuration is written.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Writes over files that are there.
    #[arg(long)]
    pub(crate) force: bool,
    /// Says which mode it is and why, and writes nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// What is known of what somebody wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Answers {
    /// Whether workers are to outlive a crash of the BEAM.
    #[arg(long, value_name = "yes|no")]
    pub(crate) outlive_crash: Option<Yes>,
    /// Whether they are to outlive a deploy or a restart of it.
    #[arg(long, value_name = "yes|no")]
    pub(crate) outlive_restart: Option<Yes>,
    /// Whether their work is to outlive their node or pod.
    #[arg(long, value_name = "yes|no")]
    pub(crate) outlive_node: Option<Yes>,
    /// Who runs the services.
    #[arg(long, value_enum)]
    pub(crate) place: Option<Place>,
    /// Where state is kept that outlives a machine, as in `etcd://host:2379`.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// The name of the BEAM as an owner, the same after a restart and no other BEAM's.
    #[arg(long)]
    pub(crate) owner: Option<String>,
}

/// One of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Yes {
    Yes,
    No,
}

/// Who runs the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Place {
    /// A machine, by systemd, supervisord or runit.
    Host,
    /// Kubernetes.
    Kubernetes,
    /// Nomad.
    Nomad,
}
