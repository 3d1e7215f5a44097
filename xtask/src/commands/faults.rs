//! `cargo xtask faults`: everything fails once, into target/faults/faults.json.

use super::{Task, matrix};
use crate::{report::Report, workspace::Workspace};

pub(super) const TASK: Task = Task {
    name: "faults",
    arguments: "[FLAGS]",
    summary: "every system call of shim and zygote fails once, and the machine runs out of everything; `--all --without WALL --stride N --first N --only NAME --json FILE`",
    run: |workspace, flags| {
        let mut report = Report::default();
        report.prepare(
            "build",
            workspace.cargo("build --locked --bins -p tether-tests -p tether-agent"),
        );
        faults(workspace, &mut report, flags)?;
        Ok(report.finish())
    },
};

/// Injects faults into what is built.
pub(super) fn faults(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    matrix::evidence(workspace, report, "faults", "fault injection", flags)?;
    if !flags.is_empty() {
        return Ok(());
    }
    // What a namespace or a cgroup would catch on the way must not be needed.
    let lowest = ["--without", "namespaces", "--without", "cgroups"];
    let file = workspace.target().join("faults/lowest.json");
    let lowest = lowest.map(str::to_owned).into_iter();
    let lowest: Vec<String> = lowest
        .chain(["--json".to_owned(), file.display().to_string()])
        .collect();
    matrix::evidence(
        workspace,
        report,
        "faults",
        "fault injection, lowest level",
        &lowest,
    )
}
