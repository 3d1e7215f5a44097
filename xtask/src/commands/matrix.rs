//! `cargo xtask matrix NAME`: every row of a matrix run for real, into target/matrix/NAME.json.

use std::{fs, path::Path, process::Command};

use super::{Task, modes, test};
use crate::{report::Report, workspace::Workspace};

pub(super) const TASK: Task = Task {
    name: "matrix",
    arguments: "NAME [FLAGS]",
    summary: "`kill` everybody at every moment: `--trials N --seed S --only victim=..,phase=..,level=.. --json FILE --docs`; `partitions` between all hosts: `--only TEXT --every N --relay --worlds N --json FILE`; `failovers` of arbiters and etcd: `--only TEXT --repeat N --worlds N --json FILE`; `beams` of Elixir that are killed, stopped and come back: `--only TEXT --repeat N --busy --release --json FILE`; `supervisors` and what they run: `--only TEXT --repeat N --together N --json FILE`; `modes`, the design's matrix, on all grounds: `--only TEXT --docs --json FILE`",
    run: |workspace, arguments| {
        let [name, flags @ ..] = arguments else {
            return Err(format!("which matrix? there are: {NAMES}"));
        };
        let run = match name.as_str() {
            "kill" => kill,
            "partitions" => partitions,
            "failovers" => failovers,
            "beams" => beams,
            "supervisors" => supervisors,
            "modes" => modes::play,
            _ => return Err(format!("no matrix `{name}`; there are: {NAMES}")),
        };
        let mut report = Report::default();
        match name.as_str() {
            "kill" | "modes" => {}
            "beams" => test::provide_languages(workspace, &mut report),
            _ => test::provide_programs(workspace, &mut report),
        }
        report.prepare(
            "build",
            workspace.cargo("build --locked --bins -p tether-tests -p tether -p tether-agent -p tether-arbiter -p tether-discovery -p tether-gateway"),
        );
        run(workspace, &mut report, flags)?;
        Ok(report.finish())
    },
};

const NAMES: &str = "kill, partitions, failovers, beams, supervisors, modes";

/// The page that `--docs` writes.
const PAGE: &str = "docs/reference/kill-matrix.md";

/// Runs the kill matrix on what is built.
pub(super) fn kill(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    let folder = workspace.target().join("matrix");
    fs::create_dir_all(&folder)
        .map_err(|error| format!("cannot make `{}`: {error}", folder.display()))?;
    let mut matrix = workspace.program(workspace.target().join("debug/matrix"));
    let mut given_json = false;
    let mut flags = flags.iter();
    while let Some(flag) = flags.next() {
        matrix.arg(flag);
        match flag.as_str() {
            "--docs" => {
                matrix.arg(PAGE);
            }
            // Where the caller stands, not where the program runs.
            "--json" | "--keep" => {
                let file = flags
                    .next()
                    .ok_or_else(|| format!("`{flag}` needs a path"))?;
                let file = std::path::absolute(file)
                    .map_err(|error| format!("no current directory: {error}"))?;
                matrix.arg(file);
                given_json |= flag == "--json";
            }
            _ => {}
        }
    }
    if !given_json {
        matrix.arg("--json").arg(folder.join("kill.json"));
    }
    report.suite("kill matrix", matrix);
    Ok(())
}

/// Runs the partition matrix on what is built.
pub(super) fn partitions(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    evidence(workspace, report, "partitions", "partition matrix", flags)
}

/// Runs the failover matrix on what is built.
pub(super) fn failovers(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    evidence(workspace, report, "failovers", "failover matrix", flags)
}

/// Runs the supervisor matrix on what is built.
pub(super) fn supervisors(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    evidence(workspace, report, "supervisors", "supervisor matrix", flags)
}

/// Runs the matrix of BEAMs on what is built, or with `--release` on what is built for it.
pub(super) fn beams(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    const SUITE: &str = "matrix of BEAMs";
    let (release, flags): (Vec<_>, Vec<_>) =
        flags.iter().cloned().partition(|flag| flag == "--release");
    if release.is_empty() {
        return evidence(workspace, report, "beams", SUITE, &flags);
    }
    report.prepare(
        "release build",
        workspace.cargo("build --release --locked -p tether-tests -p tether -p tether-agent --bin beams --bin tether --bin tether-agent"),
    );
    run(workspace, report, ("release", "beams"), SUITE, &flags)
}

/// Runs a program of the tests that writes its evidence to `target/NAME/NAME.json`, unless told otherwise.
pub(super) fn evidence(
    workspace: &Workspace,
    report: &mut Report,
    name: &str,
    suite: &str,
    flags: &[String],
) -> Result<(), String> {
    run(workspace, report, ("debug", name), suite, flags)
}

/// The same, as it was built for this profile.
fn run(
    workspace: &Workspace,
    report: &mut Report,
    (profile, name): (&str, &str),
    suite: &str,
    flags: &[String],
) -> Result<(), String> {
    let program = workspace.program(workspace.target().join(profile).join(name));
    suite_of(workspace, report, program, (suite, name, name), flags)
}

/// Runs a program of the tests, as a suite of its own name, that writes its evidence to `target/FOLDER/NAME.json`, unless
/// told otherwise.
pub(super) fn suite(
    workspace: &Workspace,
    report: &mut Report,
    program: Command,
    (folder, name): (&str, &str),
    flags: &[String],
) -> Result<(), String> {
    suite_of(workspace, report, program, (name, folder, name), flags)
}

fn suite_of(
    workspace: &Workspace,
    report: &mut Report,
    mut program: Command,
    (suite, folder, name): (&str, &str, &str),
    flags: &[String],
) -> Result<(), String> {
    let folder = workspace.target().join(folder);
    fs::create_dir_all(&folder)
        .map_err(|error| format!("cannot make `{}`: {error}", folder.display()))?;
    with_evidence(&mut program, &folder.join(format!("{name}.json")), flags)?;
    report.suite(suite, program);
    Ok(())
}

/// Gives a program these flags, and `--json` where there is none among them.
pub(super) fn with_evidence(
    program: &mut Command,
    usual: &Path,
    flags: &[String],
) -> Result<(), String> {
    let Some(at) = flags.iter().position(|flag| flag == "--json") else {
        // A run that breaks must not leave what an earlier one has seen.
        let _ = fs::remove_file(usual);
        program.args(flags).arg("--json").arg(usual);
        return Ok(());
    };
    // Where the caller stands, not where the program runs.
    let file = flags.get(at + 1).ok_or("`--json` needs a path")?;
    let file =
        std::path::absolute(file).map_err(|error| format!("no current directory: {error}"))?;
    program.args(&flags[..at]).args(&flags[at + 2..]);
    program.arg("--json").arg(file);
    Ok(())
}
