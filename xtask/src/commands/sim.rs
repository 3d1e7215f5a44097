//! `cargo xtask sim`: the lease protocol in a model and by the million, into target/sim/sim.json; with `--services`
//! the services themselves by the thousand, into target/sim-services/sim-services.json.

use super::{Task, matrix};
use crate::{report::Report, workspace::Workspace};

pub(super) const TASK: Task = Task {
    name: "sim",
    arguments: "[FLAGS]",
    summary: "leases in a model and a simulated world, and mistakes that must show; `--schedules N --seed S --jobs N --only-schedules --mutant NAME --trace --json FILE`; with `--services` first the same of the services themselves",
    run: |workspace, flags| {
        let mut report = Report::default();
        if let [first, flags @ ..] = flags
            && first == "--services"
        {
            services(workspace, &mut report, flags)?;
            return Ok(report.finish());
        }
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

/// Builds and runs the simulation of services. It has a target directory of its own: tokio is deterministic only where
/// everything is built with a switch that no program of ours is to have.
pub(super) fn services(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    let target = workspace.target().join("sim-services");
    let mut build = workspace
        .cargo("build --locked --config libs/sim-services/optimised.toml -p tether-sim-services");
    build
        .env("CARGO_TARGET_DIR", &target)
        .env("RUSTFLAGS", "--cfg tokio_unstable");
    if !report.prepare("build of the services' simulation", build) {
        return Ok(());
    }
    let program = target.join("debug/tether-sim-services");
    let mut command = workspace.program(program);
    matrix::with_evidence(&mut command, &target.join("sim-services.json"), flags)?;
    report.suite("services' simulation", command);
    Ok(())
}
