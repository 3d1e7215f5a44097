//! What went wrong, with what to do about it.

use zbus::fdo;

use crate::Bus;

/// What went wrong, with what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such bus.
    #[error("`{0}` is no bus of systemd, expected one of: system, user")]
    Bus(String),
    /// Nobody answers there.
    #[error("systemd does not answer on the {bus} bus ({why}): {advice}")]
    Unreachable {
        /// Which.
        bus: Bus,
        /// What was said instead.
        why: String,
        /// What to do.
        advice: &'static str,
    },
    /// No answer came: whether it has heard is not known.
    #[error("systemd does not answer: {why}")]
    Silent {
        /// What came instead.
        why: String,
    },
    /// This user may not.
    #[error(
        "this user may not manage units on the system bus: run the agent as root, allow it `org.freedesktop.systemd1.manage-units` in polkit, or set `agent.systemd.bus = \"user\"`"
    )]
    Forbidden,
    /// There is no such unit.
    #[error("systemd has no unit `{0}`: install it, then `systemctl daemon-reload`")]
    NoUnit(String),
    /// systemd refused.
    #[error("systemd refuses `{method}`: {why}")]
    Refused {
        /// What it was asked.
        method: &'static str,
        /// Why.
        why: String,
    },
}

impl Error {
    /// Whether that says nothing of any unit.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Unreachable { .. })
    }

    /// From what came of a call.
    pub(crate) fn of(method: &'static str, error: &zbus::Error) -> Self {
        let silent = |why: String| Self::Silent {
            why: format!("{method}: {why}"),
        };
        let refused = |why: String| Self::Refused { method, why };
        match error {
            zbus::Error::InputOutput(error) => silent(error.to_string()),
            zbus::Error::FDO(error) => match &**error {
                fdo::Error::AccessDenied(_) | fdo::Error::InteractiveAuthorizationRequired(_) => {
                    Self::Forbidden
                }
                // The bus says so: of a systemd that is not there while it executes itself anew, and of one that has left
                // too many calls unanswered.
                fdo::Error::ServiceUnknown(why)
                | fdo::Error::NameHasNoOwner(why)
                | fdo::Error::NoReply(why)
                | fdo::Error::Timeout(why)
                | fdo::Error::TimedOut(why)
                | fdo::Error::Disconnected(why)
                | fdo::Error::LimitsExceeded(why) => silent(why.clone()),
                error => refused(error.to_string()),
            },
            zbus::Error::MethodError(name, text, _) => {
                let why = text.clone().unwrap_or_default();
                match name.as_str() {
                    "org.freedesktop.systemd1.NoSuchUnit" => Self::NoUnit(unit_in(&why)),
                    name => refused(format!("{why} ({name})")),
                }
            }
            error => refused(error.to_string()),
        }
    }
}

/// The unit that a sentence of systemd's is about: `Unit x.service not loaded.`
fn unit_in(text: &str) -> String {
    let word = text.split_whitespace().find(|word| word.contains('.'));
    word.unwrap_or(text).trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use super::*;

    #[test]
    fn what_the_bus_says_for_systemd_says_nothing_of_units() {
        let of = |error: fdo::Error| Error::of("StopUnit", &zbus::Error::FDO(Box::new(error)));
        let gone = Arc::new(io::Error::from(io::ErrorKind::BrokenPipe));

        assert!(Error::of("StopUnit", &zbus::Error::InputOutput(gone)).is_silence());
        assert!(of(fdo::Error::NameHasNoOwner(String::new())).is_silence());
        assert!(of(fdo::Error::LimitsExceeded(String::new())).is_silence());
        let denied = of(fdo::Error::AccessDenied(String::new()));
        assert!(matches!(denied, Error::Forbidden) && !denied.is_silence());
        assert!(!of(fdo::Error::InvalidArgs(String::new())).is_silence());
    }

    #[test]
    fn the_unit_is_found_in_what_systemd_says() {
        assert_eq!(unit_in("Unit x.service not loaded."), "x.service");
    }
}
