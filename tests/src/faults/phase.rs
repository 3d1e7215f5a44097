//! When which calls of whom are made to fail.

use rustix::io::Errno;

use crate::{
    calls::{self, Call},
    node::{Counts, Node},
    rows::Rows,
};

/// When calls are made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The agent starts, and has its zygote try what the kernel allows.
    Start,
    /// A zygote is started in the place of a killed one.
    Birth,
    /// Workers live and die.
    Life,
    /// The agent is killed, and the next one takes a worker over and stops it.
    Adoption,
    /// The agent is killed, and nobody renews a worker's lease.
    Lease,
    /// A shim is told with its launch of its owner's process, which is killed later.
    Coupled,
    /// A shim is told so of a worker that runs already.
    Owner,
    /// The agent is killed that a worker may not outlive.
    Link,
    /// A worker is started by its first caller.
    Demand,
}

impl Phase {
    pub(crate) const ALL: &'static [Self] = &[
        Self::Start,
        Self::Birth,
        Self::Life,
        Self::Adoption,
        Self::Lease,
        Self::Coupled,
        Self::Owner,
        Self::Link,
        Self::Demand,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Start => "as the agent starts",
            Self::Birth => "as a zygote is replaced",
            Self::Life => "in workers' lives",
            Self::Adoption => "as a worker is adopted",
            Self::Lease => "as a lease runs out",
            Self::Coupled => "as a worker is coupled",
            Self::Owner => "as an owner is watched",
            Self::Link => "as a link is lost",
            Self::Demand => "as a worker is called for",
        }
    }

    /// Whose calls are of interest, and which. What a shim does is mostly the same in some of them.
    fn concerns(self, role: &str, call: i32) -> bool {
        match self {
            Self::Birth => role == "zygote",
            Self::Coupled => {
                let looks = |call: &Call| ["pidfd_open", "open", "read"].contains(&call.name);
                role == "shim" && calls::find(call).is_some_and(looks)
            }
            Self::Start
            | Self::Life
            | Self::Adoption
            | Self::Lease
            | Self::Owner
            | Self::Link
            | Self::Demand => role != "agent",
        }
    }
}

/// One call that is to fail.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) phase: Phase,
    role: String,
    call: &'static Call,
    nth: u32,
    pub(crate) errno: Errno,
}

impl Fault {
    pub(crate) fn name(&self) -> String {
        format!(
            "{} {} #{} {} {}",
            self.role,
            self.call.name,
            self.nth,
            calls::word(self.errno),
            self.phase.word()
        )
    }

    /// Has it happen from here on, once.
    pub(crate) async fn arm(&self, node: &mut Node) -> anyhow::Result<()> {
        let errno = self.errno.raw_os_error();
        node.arm(&self.role, self.call.number, self.nth, errno)
            .await
    }
}

/// The faults that a record calls for; a call that nobody has thought of is a row that fails.
pub(crate) fn plan(phase: Phase, counts: &Counts, first: u32, rows: &mut Rows) -> Vec<Fault> {
    let mut faults = Vec::new();
    let counts = counts.iter();
    for ((role, number), &count) in counts.filter(|((role, call), _)| phase.concerns(role, *call)) {
        let Some(call) = calls::find(*number) else {
            let wrong = format!("number {number} is not: add it with what it can fail with");
            rows.add(&format!("calls of {role}"), "each is known", Err(wrong));
            continue;
        };
        let first = if call.errnos.is_empty() { 0 } else { first };
        for nth in 1..=count.min(first) {
            let in_turn = [call.errnos[(nth as usize - 1) % call.errnos.len()]];
            // What a shim short of something takes an owner for must not depend on what it is short of.
            let errnos = if matches!(phase, Phase::Coupled | Phase::Owner) {
                call.errnos
            } else {
                &in_turn
            };
            faults.extend(errnos.iter().map(|&errno| Fault {
                phase,
                role: role.clone(),
                call,
                nth,
                errno,
            }));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_nobody_thought_of_fails_a_row_and_the_others_fail_in_turn() {
        let counts = Counts::from([
            (("shim".to_owned(), 0), 5),
            (("shim".to_owned(), 9_999), 1),
            (("agent".to_owned(), 1), 7),
        ]);
        let mut rows = Rows::default();

        let faults = plan(Phase::Life, &counts, 2, &mut rows);

        let names: Vec<_> = faults.iter().map(Fault::name).collect();
        assert_eq!(
            names,
            [
                "shim read #1 EIO in workers' lives",
                "shim read #2 EINTR in workers' lives"
            ]
        );
        assert_eq!(rows.seen("number 9999"), 1);
    }
}
