//! `cargo xtask ground NAME`: Tether deployed to a machine that is booted for it, into target/ground/NAME.json.

use super::{Task, compose, matrix, test};
use crate::{debian, report::Report, workspace::Workspace};

pub(super) const TASK: Task = Task {
    name: "ground",
    arguments: "NAME [FLAGS]",
    summary: "Tether deployed to machines booted for it: `systemd`, as units of a Debian 12; `launchers`, with workers under systemd; `compose`, as containers, `--with docker-compose`; `--only TEXT --json FILE`",
    run: |workspace, arguments| {
        let [name, flags @ ..] = arguments else {
            return Err("which ground? there are: systemd, launchers, compose".to_owned());
        };
        let (fetch, run): (fn(&Workspace, &mut Report), Suite) = match name.as_str() {
            "systemd" => (prepare, systemd),
            "launchers" => (machines, launchers),
            "compose" => (compose::prepare, compose::compose),
            _ => {
                return Err(format!(
                    "no ground `{name}`; there are: systemd, launchers, compose"
                ));
            }
        };
        let mut report = Report::default();
        fetch(workspace, &mut report);
        report.prepare(
            "build",
            workspace.cargo("build --locked --bins -p tether-tests -p tether -p tether-agent -p tether-arbiter -p tether-discovery -p tether-gateway"),
        );
        run(workspace, &mut report, flags)?;
        Ok(report.finish())
    },
};

/// Deploys what is built, with these flags.
pub(super) type Suite = fn(&Workspace, &mut Report, &[String]) -> Result<(), String>;

/// Fetches what boots machines, and makes the root that they are booted from. Where that cannot be, the suites say so and
/// skip what needs it.
pub(super) fn prepare(workspace: &Workspace, report: &mut Report) {
    for wanted in debian::GROUNDS {
        if let Err(why) = debian::provide(workspace, wanted) {
            println!("{why}");
        }
    }
    if let Err(why) = debian::collect(workspace, &debian::IN_MACHINES) {
        println!("no {} for machines: {why}", debian::IN_MACHINES.name);
    }
    report.prepare("ground", {
        let mut made = workspace.program("sh");
        made.args(["-c", "tools/ground.sh || true"]);
        made
    });
}

/// The same, for machines in which BEAMs run.
pub(super) fn machines(workspace: &Workspace, report: &mut Report) {
    test::provide_languages(workspace, report);
    prepare(workspace, report);
}

/// Deploys what is built as units.
pub(super) fn systemd(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    let mut program = workspace.program(workspace.target().join("debug/ground"));
    program.arg("systemd");
    matrix::suite(workspace, report, program, ("ground", "systemd"), flags)
}

/// Has workers run by the supervisors of such a machine.
pub(super) fn launchers(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    let program = workspace.program(workspace.target().join("debug/launchers"));
    matrix::suite(workspace, report, program, ("ground", "launchers"), flags)
}
