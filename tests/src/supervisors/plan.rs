//! Who is killed, and what must follow.

use tether_tests::supervisor::Kind;

/// What the supervisor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// An agent of a cluster that stands elsewhere.
    Agent,
    /// `tether up`: arbiter, discovery, gateway and agent in one process.
    Up,
}

impl Service {
    /// As `deploy/` calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Agent => "tether-agent",
            Self::Up => "tether",
        }
    }
}

/// Who is killed with SIGKILL, in one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Victims {
    /// supervisord, or runsvdir.
    pub(crate) root: bool,
    /// runsv; of supervisord the same as the root.
    pub(crate) keeper: bool,
    /// Our own process.
    pub(crate) service: bool,
}

/// What must follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The same processes run on: who keeps them is alive.
    Unharmed,
    /// Workers tied to their agent are gone; those that are not are taken over by the next agent.
    Adopted,
    /// Nothing is left of any worker.
    Gone,
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) kind: Kind,
    pub(crate) service: Service,
    pub(crate) victims: Victims,
}

impl Row {
    /// All of them, for one service.
    fn of(service: Service) -> Vec<Self> {
        let row = |kind, root, keeper, own| Self {
            kind,
            service,
            victims: Victims {
                root,
                keeper,
                service: own,
            },
        };
        use Kind::{Runit, Supervisord};
        vec![
            row(Supervisord, true, true, false),
            row(Supervisord, false, false, true),
            row(Supervisord, true, true, true),
            row(Runit, false, true, false),
            row(Runit, false, false, true),
            row(Runit, false, true, true),
            row(Runit, true, false, false),
            row(Runit, true, true, false),
            row(Runit, true, true, true),
        ]
    }

    /// All of them.
    pub(crate) fn all() -> Vec<Self> {
        [Self::of(Service::Agent), Self::of(Service::Up)].concat()
    }

    pub(crate) fn name(self) -> String {
        let Victims {
            root,
            keeper,
            service,
        } = self.victims;
        let above = match self.kind {
            Kind::Supervisord => [(root, "supervisord"), (false, "")],
            Kind::Runit => [(root, "runsvdir"), (keeper, "runsv")],
        };
        let killed = above.into_iter().chain([(service, self.service.name())]);
        let killed: Vec<&str> = killed
            .filter_map(|(is_killed, name)| is_killed.then_some(name))
            .collect();
        format!(
            "{} under {}: {} killed",
            self.service.name(),
            self.kind.name(),
            killed.join(" and ")
        )
    }

    /// What must follow.
    pub(crate) fn outcome(self) -> Outcome {
        match self.victims {
            Victims {
                keeper: false,
                service: false,
                ..
            } => Outcome::Unharmed,
            // Somebody is left to start it anew.
            Victims {
                root: false,
                keeper: _,
                service: _,
            } => Outcome::Adopted,
            _ => Outcome::Gone,
        }
    }

    /// The same in words.
    pub(crate) fn expected(self) -> &'static str {
        match self.outcome() {
            Outcome::Unharmed => "all live on, under the runsv that is left",
            Outcome::Adopted => {
                "tied workers gone within the lease and 1 s, others taken over by the next agent, none a second time"
            }
            Outcome::Gone => "0 processes left within the lease and 1 s",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_has_a_name_of_its_own() {
        let mut names: Vec<_> = Row::all().into_iter().map(Row::name).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
