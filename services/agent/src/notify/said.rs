//! The words of sd_notify(3).

use std::{io, time::Duration};

/// Longest text kept of what a worker says of itself, in bytes.
const STATUS_MAX: usize = 256;

/// What one datagram says. Words that are not here are not for an agent that watches the whole tree
/// (`MAINPID`), or change nothing for it (`RELOADING`, `BARRIER`, `EXTEND_TIMEOUT_USEC`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// `READY=1`.
    pub(crate) ready: bool,
    /// `STOPPING=1`.
    pub(crate) stopping: bool,
    /// `WATCHDOG=1`.
    pub(crate) alive: bool,
    /// `WATCHDOG=trigger`.
    pub(crate) trigger: bool,
    /// `WATCHDOG_USEC=`.
    pub(crate) watchdog: Option<Duration>,
    /// `STATUS=`, with what `ERRNO=` and `BUSERROR=` say.
    pub(crate) status: Option<String>,
    /// `FDSTORE=1`.
    pub(crate) store: bool,
    /// `TETHER_HOLD=1`, which is of our own: beside it is memory with a lock that the worker holds.
    pub(crate) holds: bool,
    /// `FDSTOREREMOVE=1`.
    pub(crate) remove: bool,
    /// `FDNAME=`, where it is a name.
    pub(crate) name: Option<String>,
}

impl Said {
    /// Reads a datagram; what makes no sense is passed over, as systemd does.
    pub(crate) fn parse(datagram: &[u8]) -> Self {
        let mut said = Self::default();
        let mut error = None;
        for line in String::from_utf8_lossy(datagram).lines() {
            let Some((word, value)) = line.split_once('=') else {
                continue;
            };
            match (word, value) {
                ("READY", "1") => said.ready = true,
                ("STOPPING", "1") => said.stopping = true,
                ("WATCHDOG", "1") => said.alive = true,
                ("WATCHDOG", "trigger") => said.trigger = true,
                ("WATCHDOG_USEC", usec) => {
                    said.watchdog = usec.parse().ok().map(Duration::from_micros);
                }
                ("STATUS", text) => said.status = Some(clean(text)),
                ("ERRNO", number) => {
                    let number = number.parse().ok();
                    error = number.map(|number| io::Error::from_raw_os_error(number).to_string());
                }
                ("BUSERROR", name) => error = Some(name.to_owned()),
                ("FDSTORE", "1") => said.store = true,
                ("TETHER_HOLD", "1") => said.holds = true,
                ("FDSTOREREMOVE", "1") => said.remove = true,
                ("FDNAME", name) => said.name = is_name(name).then(|| name.to_owned()),
                _ => {}
            }
        }
        if let Some(error) = error {
            said.status = Some(clean(&match said.status {
                Some(status) if !status.is_empty() => format!("{status}: {error}"),
                _ => error,
            }));
        }
        said
    }
}

/// One line that is safe to show to people, of bounded length.
fn clean(text: &str) -> String {
    let mut text = text.replace(char::is_control, " ");
    text.truncate(text.floor_char_boundary(STATUS_MAX));
    text
}

/// What may stand in LISTEN_FDNAMES.
fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte) && byte != b':')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_word_is_understood_and_nonsense_is_passed_over() {
        let said = Said::parse(
            b"READY=1\nSTATUS=warm\nMAINPID=7\nWATCHDOG=1\nWATCHDOG_USEC=2000\nnonsense\n=\nFDNAME=a:b\nX_\xff=1",
        );

        let expected = Said {
            ready: true,
            alive: true,
            watchdog: Some(Duration::from_millis(2)),
            status: Some("warm".into()),
            ..Said::default()
        };
        assert_eq!(said, expected);
        let said = Said::parse(b"WATCHDOG=trigger\nSTOPPING=1\nREADY=0\nWATCHDOG_USEC=-1");
        assert!(said.trigger && said.stopping && !said.ready && !said.alive);
        assert_eq!(said.watchdog, None);
        assert_eq!(Said::parse(b""), Said::default());
    }

    #[test]
    fn a_status_is_one_line_of_bounded_length_and_holds_the_error() {
        let status = |text: &str| Said::parse(text.as_bytes()).status.unwrap();

        assert_eq!(status("STATUS=a\x1b[31mb\tc"), "a [31mb c");
        let long = status(&format!("STATUS=x{}", "ä".repeat(300)));
        assert_eq!(long.len(), 255);
        assert_eq!(
            status("ERRNO=2\nSTATUS=no model"),
            "no model: No such file or directory (os error 2)"
        );
        assert_eq!(status("BUSERROR=org.x.Full"), "org.x.Full");
    }
}
