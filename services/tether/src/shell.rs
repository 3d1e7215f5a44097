//! What a shell and `man` know of the command line, and `man` of the services' own programs, for packages.

use std::{fs, io, path::Path};

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use tether_settings::Place;

use crate::cli::Cli;

const NAME: &str = "tether";

/// Where the pages of services are: in the first one `tether-gateway` is `tether gateway`.
const DAEMONS: &str = "8";

/// Writes it into a directory.
pub(crate) fn write(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), NAME, folder)?;
    }
    for place in Place::ALL {
        let page = Man::new(tether_settings::command(place));
        page.section(DAEMONS).generate_to(folder)?;
    }
    clap_mangen::generate_to(Cli::command(), folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_is_completed() {
        let folder = tempfile::tempdir().unwrap();

        write(folder.path()).unwrap();

        let has = |name: &str, text: &str| {
            let file = fs::read_to_string(folder.path().join(name)).unwrap();
            assert!(file.contains(text), "{name}");
        };
        has("tether.1", "doctor");
        has("tether-pool-apply.1", "file");
        has("tether-gateway.1", "drain");
        for name in ["gateway", "arbiter", "discovery", "agent"] {
            has(&format!("tether-{name}.8"), "parent\\-death");
        }
        for name in ["tether.bash", "_tether", "tether.fish"] {
            has(name, "doctor");
        }
    }
}
