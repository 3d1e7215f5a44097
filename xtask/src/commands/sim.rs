//! `cargo xtask sim`: the lease protocol in a model and by the million, into target/sim/sim.json.

use super::{Task, matrix};
use crate::{report::Report, workspace::Workspace};

pub(super) const TASK: Task = Task {
    name: "sim",
    arguments: "[FLAGS]",
    summary: "leases in a model and a simulated world, and mistakes that must show; `--schedules N --seed S --jobs N --only-schedules --mutant NAME --trace --json FILE`",
    run: |workspace, flags| {
        let mut report = Report::default();
        report.prepare(
            "build",
            workspace.cargo("build --locked --bin sim -p tether-tests"),
        );
        sim(workspace, &mut report, flags)?;
        Ok(report.finish())
    },
};

/// Runs what is built.
pub(super) fn sim(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    matrix::evidence(workspace, report, "sim", "simulation", flags)
}
