//! What Snakepit sees of a worker: its port, in a file, and its end, as a status.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use tether_kit::stop::EXIT_FAILURE;
use tether_types::Death;

/// Says where the worker serves, as Snakepit waits for it: a file that is there is whole.
pub(crate) fn announce(ready_file: &Path, port: u16) -> io::Result<()> {
    let mut temporary = ready_file.as_os_str().to_owned();
    temporary.push(".tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(port.to_string().as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, ready_file)
}

/// The status that tells of this death, as a shell would; and the words for it, where it was not asked for.
#[expect(
    clippy::print_stderr,
    reason = "Snakepit logs what its Python writes to standard error"
)]
pub(crate) fn told(name: &str, death: Option<&Death>, text: &str, asked: bool) -> u8 {
    let Some(death) = death else {
        eprintln!("tether-python: the worker of `{name}` is gone: {text}");
        return EXIT_FAILURE;
    };
    let code = status(death);
    if code != 0 && !asked {
        eprintln!(
            "tether-python: the worker of `{name}` ended: {} {}",
            death.cause, death.detail
        );
        if !death.stderr_tail.is_empty() {
            eprintln!("{}", death.stderr_tail.trim_end());
        }
    }
    code
}

fn status(death: &Death) -> u8 {
    let byte = |code: i32| u8::try_from(code).unwrap_or(EXIT_FAILURE);
    match (death.exit_code, death.signal) {
        (Some(code), _) => byte(code),
        (None, Some(signal)) => byte(128 + signal),
        (None, None) => EXIT_FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use tether_types::DeathCause;

    use super::*;

    #[test]
    fn the_status_is_the_workers_as_a_shell_tells_it() {
        let of = |exit_code, signal| {
            status(&Death {
                cause: DeathCause::Unknown,
                exit_code,
                signal,
                detail: String::new(),
                stderr_tail: String::new(),
                measures: None,
            })
        };

        assert_eq!(of(Some(0), None), 0);
        assert_eq!(of(Some(70), None), 70);
        assert_eq!(of(None, Some(9)), 137);
        assert_eq!(of(None, None), 1);
    }

    #[test]
    fn the_ready_file_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ready");

        announce(&file, 4711).unwrap();

        assert_eq!(fs::read_to_string(&file).unwrap(), "4711");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
