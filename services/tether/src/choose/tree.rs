//! The questions, and where each answer leads. No IO.
//!
//! ```text
//! outlive a crash of the BEAM?   no -> coupled
//! `- a deploy or restart of it?  no -> supervised    where?
//!    `- the node or pod?         no -> independent   where?
//!       `- yes                      -> distributed   where? on which store?
//! ```

use tether_lifecycle::Mode;

use crate::cli::choose::{Answers, Place, Yes};

/// Something that has to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Question {
    Crash,
    Restart,
    Node,
    Place,
    Store,
    Owner,
}

/// What all answers come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) mode: Mode,
    pub(crate) place: Place,
    /// Of several machines.
    pub(crate) store: Option<String>,
    /// None where the Tether is the BEAM's own.
    pub(crate) owner: Option<String>,
}

/// What is to be asked next, or what has been chosen.
pub(crate) fn next(answers: &Answers) -> Result<Choice, Question> {
    let mode = mode(answers)?;
    if mode == Mode::Coupled {
        return Ok(Choice {
            mode,
            place: Place::Host,
            store: None,
            owner: None,
        });
    }
    let place = answers.place.ok_or(Question::Place)?;
    let store = match mode {
        Mode::Distributed => Some(answers.store.clone().ok_or(Question::Store)?),
        Mode::Coupled | Mode::Supervised | Mode::Independent => answers.store.clone(),
    };
    let owner = answers.owner.clone().ok_or(Question::Owner)?;
    Ok(Choice {
        mode,
        place,
        store,
        owner: Some(owner),
    })
}

fn mode(answers: &Answers) -> Result<Mode, Question> {
    let steps = [
        (answers.outlive_crash, Question::Crash, Mode::Coupled),
        (answers.outlive_restart, Question::Restart, Mode::Supervised),
        (answers.outlive_node, Question::Node, Mode::Independent),
    ];
    for (answer, question, otherwise) in steps {
        match answer.ok_or(question)? {
            Yes::Yes => {}
            Yes::No => return Ok(otherwise),
        }
    }
    Ok(Mode::Distributed)
}

impl Question {
    /// As it is asked.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Crash => {
                "Are the workers to outlive a crash of the BEAM? (yes/no)\n  No, for development and for calls that are simply made again: they end within milliseconds of it, with all they have started."
            }
            Self::Restart => {
                "And a deploy or a restart of it? (yes/no)\n  No, where they are merely to be warm again after a crash. Yes, for jobs that take longer than it is between two deploys."
            }
            Self::Node => {
                "And their machine or pod? (yes/no)\n  Yes, where work is to go on elsewhere from its last checkpoint. That takes a store of several machines, and an arbiter on each of some."
            }
            Self::Place => "Who runs the services? (host/kubernetes/nomad)",
            Self::Store => {
                "Which store do the machines share? (as in etcd://etcd-1:2379,etcd-2:2379,etcd-3:2379)"
            }
            Self::Owner => {
                "What is this BEAM called as an owner? (as in checkout@web-1)\n  The same after a restart, and no other BEAM's: by it workers are found again."
            }
        }
    }

    /// The flag that answers it.
    pub(crate) fn flag(self) -> &'static str {
        match self {
            Self::Crash => "--outlive-crash",
            Self::Restart => "--outlive-restart",
            Self::Node => "--outlive-node",
            Self::Place => "--place",
            Self::Store => "--store",
            Self::Owner => "--owner",
        }
    }

    /// Takes an answer.
    ///
    /// # Errors
    /// Says what would be one.
    pub(crate) fn take(self, answers: &mut Answers, text: &str) -> Result<(), String> {
        match self {
            Self::Crash => answers.outlive_crash = Some(yes(text)?),
            Self::Restart => answers.outlive_restart = Some(yes(text)?),
            Self::Node => answers.outlive_node = Some(yes(text)?),
            Self::Place => answers.place = Some(place(text)?),
            Self::Store => {
                check_store(text)?;
                answers.store = Some(text.to_owned());
            }
            Self::Owner => {
                check_owner(text)?;
                answers.owner = Some(text.to_owned());
            }
        }
        Ok(())
    }
}

/// Whether answers that were given in advance can be used.
///
/// # Errors
/// Says which cannot, and why.
pub(crate) fn check(answers: &Answers) -> Result<(), String> {
    if let Some(store) = &answers.store {
        check_store(store)?;
    }
    answers.owner.as_deref().map_or(Ok(()), check_owner)
}

fn yes(text: &str) -> Result<Yes, String> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "y" => Ok(Yes::Yes),
        "no" | "n" => Ok(Yes::No),
        _ => Err("yes or no?".to_owned()),
    }
}

fn place(text: &str) -> Result<Place, String> {
    match text.to_ascii_lowercase().as_str() {
        "host" => Ok(Place::Host),
        "kubernetes" | "k8s" => Ok(Place::Kubernetes),
        "nomad" => Ok(Place::Nomad),
        _ => Err("host, kubernetes or nomad?".to_owned()),
    }
}

fn check_store(text: &str) -> Result<(), String> {
    tether_store::check(text).map_err(|error| error.to_string())?;
    match text.starts_with("etcd") {
        true => Ok(()),
        false => Err("several machines can share etcd alone, as in etcd://host:2379".to_owned()),
    }
}

fn check_owner(text: &str) -> Result<(), String> {
    let name = tether_types::OwnerName::new(text);
    name.map(drop).map_err(|error| error.to_string())
}

impl Choice {
    /// What it means, and what it costs.
    pub(crate) fn explain(&self) -> String {
        let (what, how) = match self.mode {
            Mode::Coupled => (
                "workers end with the BEAM, within milliseconds, however it ends",
                "Nothing else has to run: the BEAM's port runs Tether for it alone.\nFor short calls of trusted code on one node, think of Pythonx or erlang_python instead: without a process between, a call costs less, and a crash of Python takes the BEAM along.",
            ),
            Mode::Supervised => (
                "workers outlive a crash of the BEAM, and are found again when it is back",
                match self.place {
                    Place::Host => {
                        "An agent runs beside the BEAM as a service: see docs/how-to/modes.md."
                    }
                    Place::Kubernetes => {
                        "The agent is a native sidecar of the BEAM's pod: deploy/kubernetes/base/beam.yaml."
                    }
                    Place::Nomad => "The agent is a task of its own: deploy/nomad/agent.nomad.hcl.",
                },
            ),
            Mode::Independent => (
                "workers outlive a deploy of the BEAM, for `heartbeat_timeout` (60 s) without it, and jobs longer; then they end by themselves",
                "An agent and a lease: the BEAM takes its jobs up again by the name of their owner.",
            ),
            Mode::Distributed => (
                "work outlives its node: it goes on elsewhere from its last checkpoint, once the old worker is provably gone",
                "Several arbiters on one store, an agent on each machine, gateways in front: docs/how-to/several-arbiters.md.",
            ),
        };
        format!("mode `{}`: {what}.\n{how}", self.mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers all that is asked.
    fn through(said: &[&str]) -> (Vec<Question>, Result<Choice, Question>) {
        let mut answers = Answers::default();
        let mut asked = Vec::new();
        for text in said {
            let Err(question) = next(&answers) else { break };
            question.take(&mut answers, text).unwrap();
            asked.push(question);
        }
        (asked, next(&answers))
    }

    #[test]
    fn each_way_through_the_tree_ends_at_its_mode_and_asks_no_more_than_it_needs() {
        let mode = |said: &[&str]| {
            let (asked, choice) = through(said);
            (asked.len(), choice.unwrap().mode)
        };

        assert_eq!(mode(&["no"]), (1, Mode::Coupled));
        assert_eq!(mode(&["y", "n", "host", "a@b"]), (4, Mode::Supervised));
        assert_eq!(
            mode(&["yes", "yes", "no", "nomad", "a@b"]),
            (5, Mode::Independent)
        );
        assert_eq!(
            mode(&["yes", "yes", "yes", "k8s", "etcd://e:2379", "a@b"]),
            (6, Mode::Distributed)
        );
        assert_eq!(through(&["yes"]).1, Err(Question::Restart));
    }

    #[test]
    fn what_is_no_answer_is_not_taken() {
        let wrong = |question: Question, text: &str| {
            let mut answers = Answers::default();
            let why = question.take(&mut answers, text).unwrap_err();
            assert_eq!(answers, Answers::default());
            why
        };

        assert_eq!(wrong(Question::Crash, "maybe"), "yes or no?");
        assert!(wrong(Question::Place, "docker").contains("nomad"));
        assert!(wrong(Question::Store, "redb:/x").contains("etcd alone"));
        assert!(wrong(Question::Owner, "a b").contains("a b"));
    }
}
