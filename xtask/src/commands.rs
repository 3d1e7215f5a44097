//! Every command, in one list.

use std::{fmt::Write, process::ExitCode};

use crate::workspace::Workspace;

mod bench;
mod check;
mod compose;
mod demo;
mod docs;
mod e2e;
mod elixir;
mod faults;
mod ground;
mod k8s_lint;
mod matrix;
mod modes;
mod sim;
mod soak;
mod test;

/// One command of `cargo xtask`.
pub(crate) struct Task {
    /// As it is typed.
    pub(crate) name: &'static str,
    /// Its arguments, as usage shows them.
    pub(crate) arguments: &'static str,
    /// One line for the list.
    pub(crate) summary: &'static str,
    /// Runs it; an error is a sentence about wrong usage or a broken machine.
    pub(crate) run: fn(&Workspace, &[String]) -> Result<ExitCode, String>,
}

/// Every command, in the order a newcomer wants them.
pub(crate) const ALL: &[Task] = &[
    demo::TASK,
    test::TASK,
    check::TASK,
    k8s_lint::TASK,
    e2e::TASK,
    matrix::TASK,
    sim::TASK,
    faults::TASK,
    ground::TASK,
    soak::TASK,
    bench::TASK,
    docs::TASK,
];

/// The command of this name.
pub(crate) fn find(name: &str) -> Option<&'static Task> {
    ALL.iter().find(|task| task.name == name)
}

/// The list for people.
pub(crate) fn overview() -> String {
    let mut overview = "cargo xtask COMMAND\n".to_owned();
    for task in ALL {
        let usage = format!("{} {}", task.name, task.arguments);
        // Writing to a String cannot fail.
        let _ = write!(overview, "\n  {usage:<20} {}", task.summary);
    }
    overview
}

/// Refuses arguments of a command that has none.
fn no_arguments(arguments: &[String]) -> Result<(), String> {
    arguments.first().map_or(Ok(()), |first| {
        Err(format!("unexpected argument `{first}`; it takes none"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_by_a_name_of_its_own_and_listed() {
        let overview = overview();

        for task in ALL {
            let same = ALL.iter().filter(|other| other.name == task.name).count();
            assert_eq!(same, 1, "{}", task.name);
            assert!(find(task.name).is_some_and(|found| found.summary == task.summary));
            assert!(overview.contains(task.summary), "{}", task.name);
        }
    }
}
