//! The ways in which the workers of a soak end, and what has to be said of each.

use tether_proto::{
    common::{Death, DeathCause},
    pool::ReadinessKind,
};

use crate::node::Node;

/// One way to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    /// By itself and well.
    Zero,
    /// By itself and not well.
    Failure,
    /// By a signal of its own.
    Signal,
    /// Before it began: there is no such program.
    NotFound,
    /// Because it was stopped.
    Stopped,
    /// Because its shim was killed.
    ShimKilled,
}

impl Exit {
    /// How the worker of this number ends. Most are the static program, which is started fastest; those that
    /// end by other hands are one in ten.
    pub(crate) fn of(number: u64) -> Self {
        match number % 50 {
            7 | 17 | 27 => Self::Stopped,
            37 | 47 => Self::ShimKilled,
            rest => match rest % 5 {
                0 => Self::Zero,
                1 => Self::Signal,
                2 => Self::NotFound,
                _ => Self::Failure,
            },
        }
    }

    /// Orders such a worker.
    pub(crate) fn order(self, node: &mut Node) -> u64 {
        let started = ReadinessKind::Started;
        match self {
            Self::Zero => node.order_program("/bin/true", Vec::new(), started),
            Self::Failure => node.order_program(crate::node::WORKER, Vec::new(), started),
            Self::Signal => {
                let args = ["-c", "kill -9 $$"].map(str::to_owned);
                node.order_program("/bin/sh", args.to_vec(), started)
            }
            Self::NotFound => node.order_program("/nowhere/to/be/found", Vec::new(), started),
            Self::Stopped | Self::ShimKilled => {
                let args = ["600"].map(str::to_owned);
                node.order_program("/bin/sleep", args.to_vec(), started)
            }
        }
    }

    /// Whether that is what a death of this kind is to be called.
    pub(crate) fn fits(self, death: &Death) -> bool {
        let (cause, code, signal) = match self {
            Self::Zero => (DeathCause::Exited, Some(0), None),
            Self::Failure => (DeathCause::Exited, Some(64), None),
            Self::Signal => (DeathCause::Signaled, None, Some(9)),
            Self::NotFound => (DeathCause::SpawnFailed, None, None),
            Self::Stopped => (DeathCause::OrderedByOperator, None, Some(9)),
            Self::ShimKilled => (DeathCause::Signaled, None, Some(9)),
        };
        (death.cause(), death.exit_code, death.signal) == (cause, code, signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &[Exit] = &[
        Exit::Zero,
        Exit::Failure,
        Exit::Signal,
        Exit::NotFound,
        Exit::Stopped,
        Exit::ShimKilled,
    ];

    #[test]
    fn fifty_workers_in_a_row_end_in_every_way_and_one_in_ten_by_other_hands() {
        let exits: Vec<_> = (0..50).map(Exit::of).collect();

        for exit in ALL {
            assert!(exits.contains(exit), "{exit:?}");
        }
        let others = exits
            .iter()
            .filter(|exit| matches!(exit, Exit::Stopped | Exit::ShimKilled));
        assert_eq!(others.count(), 5);
    }

    #[test]
    fn a_death_by_another_cause_does_not_fit() {
        let death = Death {
            cause: DeathCause::Exited.into(),
            exit_code: Some(0),
            ..Death::default()
        };

        let fitting: Vec<_> = ALL.iter().filter(|exit| exit.fits(&death)).collect();

        assert_eq!(fitting, [&Exit::Zero]);
    }
}
