//! `cargo xtask soak`: workers live and die in every way, and nothing grows, into target/soak/soak.json.

use super::{Task, matrix};
use crate::{report::Report, workspace::Workspace};

pub(super) const TASK: Task = Task {
    name: "soak",
    arguments: "[FLAGS]",
    summary: "workers live and die in every way, and nothing grows; `--minutes N` or `--count N --within SECONDS`, `--cluster N --json FILE`",
    run: |workspace, flags| {
        let mut report = Report::default();
        report.prepare(
            "build",
            workspace.cargo("build --locked --bins -p tether-tests -p tether-agent -p tether"),
        );
        soak(workspace, &mut report, flags)?;
        Ok(report.finish())
    },
};

/// Soaks what is built.
pub(super) fn soak(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    matrix::evidence(workspace, report, "soak", "soak", flags)
}
