//! Where state is kept when nothing is said.

use std::path::PathBuf;

/// The directory for what is to outlive a restart of the machine; none where this user has no home.
pub fn state_dir() -> Option<PathBuf> {
    match (
        rustix::process::geteuid().is_root(),
        std::env::var_os("XDG_STATE_HOME"),
        std::env::var_os("HOME"),
    ) {
        (true, ..) => Some(PathBuf::from("/var/lib/tether")),
        (false, Some(state), _) => Some(PathBuf::from(state).join("tether")),
        (false, None, Some(home)) => Some(PathBuf::from(home).join(".local/state/tether")),
        (false, None, None) => None,
    }
}
