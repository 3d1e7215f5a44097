//! What a supervisor has to be able to do, for a keeper to stand for one of its services.

use std::{future::Future, io, time::Duration};

use super::last_word::End;

/// Longest time for an answer on a service whose process is known: that is held by its pidfd meanwhile.
pub(super) const ANSWERS_OF_KNOWN: Duration = Duration::from_secs(1);

/// The same before a process is killed that its supervisor may not know of any more.
pub(super) const ANSWERS_BEFORE_KILL: Duration = Duration::from_millis(100);

/// One run of a service, from a start to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Life {
    /// Another word for each: systemd's InvocationID, or process id and start time.
    pub(crate) name: String,
    /// Its main process; 0 where that is not known.
    pub(crate) pid: u32,
    /// What else to tell people of it, such as the limits that its supervisor has for it; may be empty.
    pub(crate) said: String,
}

/// How a service stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// It does not run, and its supervisor will not start it by itself; and how its last run ended, as far as that
    /// is still known.
    Rests(Option<End>),
    /// It does not run, and its supervisor is about to start it.
    Waits(Option<End>),
    /// It was started, and its supervisor does not count it as started yet.
    Starts(Life),
    /// It runs.
    Runs(Life),
    /// It is ending, and somebody asked the supervisor for that, where that can be seen.
    Ends {
        /// What ends.
        life: Life,
        /// Whether it was asked for.
        asked: bool,
    },
}

impl State {
    /// The same while its supervisor does not answer, which says nothing of a service but for whether its main process
    /// has ended. None where none was there.
    pub(super) fn unanswered(&self, has_ended: bool, said: &str) -> Option<Self> {
        let (Self::Starts(life) | Self::Runs(life) | Self::Ends { life, .. }) = self else {
            return None;
        };
        let life = Life {
            said: said.to_owned(),
            ..life.clone()
        };
        Some(match self {
            // How, and what comes next, is for its supervisor to say.
            _ if has_ended => Self::Ends { life, asked: false },
            Self::Starts(_) => Self::Starts(life),
            Self::Ends { asked, .. } => Self::Ends {
                life,
                asked: *asked,
            },
            _ => Self::Runs(life),
        })
    }
}

/// One service of a supervisor.
///
/// * `look` says how it stands, at any time, from what the supervisor says and not from what was asked of it.
/// * `changed` comes back when it may stand otherwise: at once where the supervisor tells, else after a pause of its
///   own, 200 ms at most. Cancel-safe. May come back for nothing.
/// * `start`, `stop` and `kill` come back when the supervisor has taken that up: a `look` after `start` does not say
///   `Rests` for what was before, and one after `stop` does not say that it runs on as if nothing was. They are asked
///   for what is so already, and that is no error. After `stop` and `kill` the supervisor does not start it again.
/// * All but `changed` come back within some seconds, also where the supervisor hangs: that is no error while the main
///   process is known, which is held and, where need be, signalled by its pidfd. Any of them may be dropped before it
///   comes back, as when the worker is to end meanwhile; what it was is asked again, or something else.
/// * A restart by the supervisor itself is another [`Life`].
/// * An error of any of them ends the worker as one that cannot be started, with its text: it says what to do.
pub(crate) trait Supervisor: Send {
    /// How it stands.
    fn look(&mut self) -> impl Future<Output = io::Result<State>> + Send;

    /// Waits until it may stand otherwise.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;

    /// Has it started.
    fn start(&mut self) -> impl Future<Output = io::Result<()>> + Send;

    /// Has it stopped, in the way and the time that the supervisor has for that.
    fn stop(&mut self) -> impl Future<Output = io::Result<()>> + Send;

    /// Has all its processes killed.
    fn kill(&mut self) -> impl Future<Output = io::Result<()>> + Send;
}
