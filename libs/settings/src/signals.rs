//! Signals by name, as `kill -l` lists them.

use rustix::process::Signal;

const NAMES: &[(&str, Signal)] = &[
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("ABRT", Signal::ABORT),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("TERM", Signal::TERM),
    ("CONT", Signal::CONT),
    ("STOP", Signal::STOP),
    ("TSTP", Signal::TSTP),
    ("WINCH", Signal::WINCH),
];

/// The number of a signal given by name, with or without SIG, or by number.
///
/// # Errors
/// Lists the names there are.
pub fn number(text: &str) -> anyhow::Result<i32> {
    if let Ok(number @ 1..=64) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let found = NAMES.iter().find(|(name, _)| *name == bare);
    found.map(|(_, signal)| signal.as_raw()).ok_or_else(|| {
        let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
        anyhow::anyhow!(
            "`{text}` is not a signal, expected a number from 1 to 64 or one of: {}",
            names.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_known_by_name_and_number() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(number(text).unwrap(), 15, "{text}");
        }
        assert!(
            number("TERMINATE")
                .unwrap_err()
                .to_string()
                .contains("TERM, ")
        );
    }
}
