//! The Elixir client: its tests, with the `tether` that was built here as the program of its Port.

use std::process::Command;

use crate::{report::Report, workspace::Workspace};

/// Looks at its format and warnings, and tests it. What it needs was installed before.
pub(super) fn elixir(workspace: &Workspace, report: &mut Report) {
    report.step("Elixir format", mix(workspace, "format --check-formatted"));
    report.step(
        "Elixir warnings",
        mix(workspace, "compile --force --warnings-as-errors"),
    );
    report.suite("Elixir client", mix(workspace, "test --warnings-as-errors"));
}

fn mix(workspace: &Workspace, arguments: &str) -> Command {
    let mut mix = workspace.program("mix");
    mix.args(arguments.split(' '))
        .current_dir(workspace.root().join("clients/elixir"))
        .env(
            "TETHER_PORT_PROGRAM",
            workspace.target().join("debug/tether"),
        );
    mix
}
