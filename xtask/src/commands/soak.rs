//! `cargo xtask soak`: workers live and die in every way, and nothing grows, into target/soak/soak.json; and `soak gateway`
//! the same with calls that are accounted for, into target/soak-gateway/soak-gateway.json.

use super::{Task, matrix, test};
use crate::{report::Report, workspace::Workspace};

pub(super) const TASK: Task = Task {
    name: "soak",
    arguments: "[gateway] [FLAGS]",
    summary: "workers live and die in every way, and nothing grows; `--minutes N` or `--count N --within SECONDS`, `--cluster N --json FILE`; `gateway` with calls that are accounted for: `--seconds N --seed N --json FILE`",
    run: |workspace, arguments| {
        let mut report = Report::default();
        match arguments {
            [name, flags @ ..] if name == "gateway" => {
                test::provide_programs(workspace, &mut report);
                report.prepare(
                    "build",
                    workspace.cargo("build --locked --bins -p tether-tests -p tether-agent -p tether-arbiter -p tether-discovery -p tether-gateway"),
                );
                gateway(workspace, &mut report, flags)?;
            }
            flags => {
                report.prepare(
                    "build",
                    workspace
                        .cargo("build --locked --bins -p tether-tests -p tether-agent -p tether"),
                );
                soak(workspace, &mut report, flags)?;
            }
        }
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

/// Soaks the gateway that is built.
pub(super) fn gateway(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    matrix::evidence(
        workspace,
        report,
        "soak-gateway",
        "soak of the gateway",
        flags,
    )
}
