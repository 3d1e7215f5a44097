//! How a service ended, as its supervisor said: written by the keeper, read by the agent when the keeper is gone.

use std::{fs, io, path::Path};

use tether_types::{DeathCause, Orderer};

/// Its file in the incarnation's directory.
const FILE: &str = "service-end";

/// The end of one run of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// Why.
    pub(crate) how: How,
    /// What the supervisor said, in one line, for people.
    pub(crate) said: String,
}

/// Why a service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// Its main process exited with this code.
    Exited(i32),
    /// This signal ended its main process.
    Signaled(i32),
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// It said no WATCHDOG=1 in the time that its supervisor gives it.
    Unhealthy,
    /// It took longer to start than its supervisor gives it.
    NeverReady,
    /// Somebody had its supervisor stop it.
    Stopped,
    /// It cannot be started.
    SpawnFailed,
}

impl How {
    /// The cause of its worker's death.
    pub(crate) fn cause(self) -> DeathCause {
        match self {
            Self::Exited(code) => DeathCause::Exited(code),
            Self::Signaled(signal) => DeathCause::Signaled(signal),
            Self::OutOfMemory => DeathCause::OutOfMemory,
            Self::Unhealthy => DeathCause::Unhealthy,
            Self::NeverReady => DeathCause::NeverReady,
            Self::Stopped => DeathCause::Ordered(Orderer::Operator),
            Self::SpawnFailed => DeathCause::SpawnFailed,
        }
    }

    fn word(self) -> (&'static str, i32) {
        match self {
            Self::Exited(code) => ("exited", code),
            Self::Signaled(signal) => ("signaled", signal),
            Self::OutOfMemory => ("out-of-memory", 0),
            Self::Unhealthy => ("unhealthy", 0),
            Self::NeverReady => ("never-ready", 0),
            Self::Stopped => ("stopped", 0),
            Self::SpawnFailed => ("spawn-failed", 0),
        }
    }

    fn of_word(word: &str, number: i32) -> Option<Self> {
        [
            Self::Exited(number),
            Self::Signaled(number),
            Self::OutOfMemory,
            Self::Unhealthy,
            Self::NeverReady,
            Self::Stopped,
            Self::SpawnFailed,
        ]
        .into_iter()
        .find(|how| how.word().0 == word)
    }
}

impl End {
    pub(crate) fn new(how: How, said: impl Into<String>) -> Self {
        Self {
            how,
            said: said.into(),
        }
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, dir: &Path) -> io::Result<()> {
        let (word, number) = self.how.word();
        let unfinished = dir.join("service-end.new");
        fs::write(&unfinished, format!("{word} {number}\n{}\n", self.said))?;
        fs::rename(&unfinished, dir.join(FILE))
    }

    /// Reads it back; none where none was written.
    pub(crate) fn read(dir: &Path) -> Option<Self> {
        let text = fs::read_to_string(dir.join(FILE)).ok()?;
        let (first, said) = text.split_once('\n')?;
        let (word, number) = first.split_once(' ')?;
        Some(Self::new(
            How::of_word(word, number.parse().ok()?)?,
            said.trim_end(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_reads_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(End::read(dir.path()), None);
        for how in [
            How::Exited(3),
            How::Signaled(9),
            How::OutOfMemory,
            How::Unhealthy,
            How::NeverReady,
            How::Stopped,
            How::SpawnFailed,
        ] {
            let end = End::new(how, "Result=oom-kill, as systemd says");
            end.write(dir.path()).unwrap();
            assert_eq!(End::read(dir.path()), Some(end));
        }
    }
}
