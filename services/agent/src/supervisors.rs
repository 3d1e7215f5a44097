//! Where this node's supervisors are reached, whose services workers may be.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::keeper::{runit, supervisord};

/// Launchers, as pools call them.
pub(crate) const SUPERVISORD: &str = "supervisord";
pub(crate) const RUNIT: &str = "runit";

/// What can be set under `[agent.supervisord]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Supervisord {
    /// Its socket, which its configuration calls `file` under `[unix_http_server]`; `/run/supervisor.sock` when it is
    /// not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

/// What can be set under `[agent.runit]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Runit {
    /// Where runsvdir has its services; `/etc/service` when it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
}

/// The way to each.
#[derive(Debug)]
pub(crate) struct Supervisors {
    socket: PathBuf,
    directory: PathBuf,
}

impl Supervisors {
    pub(crate) fn new(supervisord: &Supervisord, runit: &Runit) -> Self {
        let usual = |set: &Option<PathBuf>, usual: &str| {
            set.clone().unwrap_or_else(|| PathBuf::from(usual))
        };
        Self {
            socket: usual(&supervisord.socket, "/run/supervisor.sock"),
            directory: usual(&runit.directory, "/etc/service"),
        }
    }

    /// The way to this launcher's, in the words of keepers; none where it is another's.
    pub(crate) fn at(&self, launcher: &str) -> Option<String> {
        let at = match launcher {
            SUPERVISORD => &self.socket,
            RUNIT => &self.directory,
            _ => return None,
        };
        Some(at.display().to_string())
    }

    /// Whether programs of supervisord can be had.
    ///
    /// # Errors
    /// Says what is missing and how to get it.
    pub(crate) async fn check_supervisord(&self) -> Result<(), String> {
        supervisord::check(&self.socket).await
    }

    /// Whether services of runit can be had.
    ///
    /// # Errors
    /// Says what is missing and how to get it.
    pub(crate) fn check_runit(&self) -> Result<(), String> {
        runit::check(&self.directory)
    }
}
