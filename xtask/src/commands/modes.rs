//! `cargo xtask matrix modes`: the design's matrix, from what other suites see, into target/matrix/modes.json.

use std::fs;

use super::{compose, ground, matrix, test};
use crate::{report::Report, workspace::Workspace};

/// The page that `--docs` writes.
const PAGE: &str = "docs/reference/modes-matrix.md";

/// Fetches what a ground needs. Where that cannot be, its suite says so and skips its rows.
type Fetch = fn(&Workspace, &mut Report);

/// Has each suite play what the matrix needs of it, and judges that.
pub(super) fn play(
    workspace: &Workspace,
    report: &mut Report,
    flags: &[String],
) -> Result<(), String> {
    whole_page(flags)?;
    let mut modes = workspace.program(workspace.target().join("debug/modes"));
    modes.arg("--needs");
    if let Some(at) = flags.iter().position(|flag| flag == "--only") {
        modes.args(&flags[at..(at + 2).min(flags.len())]);
    }
    let needs = modes.output().map_err(|error| error.to_string())?;
    if !needs.status.success() {
        return Err(String::from_utf8_lossy(&needs.stderr).into_owned());
    }
    for line in String::from_utf8_lossy(&needs.stdout).lines() {
        let (suite, only) = line
            .split_once('\t')
            .ok_or("it does not say what it needs")?;
        let only = ["--only", only];
        let (fetch, play, more): (Fetch, ground::Suite, &[&str]) = match suite {
            "beams" => (
                test::provide_languages,
                matrix::beams,
                &["--repeat", "3", "--busy"],
            ),
            "partitions" => (test::provide_programs, matrix::partitions, &[]),
            "systemd" => (ground::prepare, ground::systemd, &[]),
            "launchers" => (ground::machines, ground::launchers, &[]),
            "compose" => (
                compose::prepare,
                compose::compose,
                &["--with", "docker-compose"],
            ),
            _ => return Err(format!("no suite `{suite}`")),
        };
        fetch(workspace, report);
        let flags: Vec<_> = only.iter().chain(more).map(ToString::to_string).collect();
        if let Err(why) = play(workspace, report, &flags) {
            report.fail(suite, &why);
        }
    }
    judge(workspace, report, flags);
    Ok(())
}

/// Judges what the suites have seen.
pub(super) fn judge(workspace: &Workspace, report: &mut Report, flags: &[String]) {
    let mut modes = workspace.program(workspace.target().join("debug/modes"));
    modes.arg("--evidence").arg(workspace.target());
    let flags: Vec<_> = flags
        .iter()
        .flat_map(|flag| match flag.as_str() {
            "--docs" => vec![flag.clone(), PAGE.to_owned()],
            _ => vec![flag.clone()],
        })
        .collect();
    let folder = workspace.target().join("matrix");
    // Where that cannot be, the program says that it cannot write there.
    let _ = fs::create_dir_all(&folder);
    let usual = folder.join("modes.json");
    match matrix::with_evidence(&mut modes, &usual, &flags) {
        Ok(()) => report.suite("matrix of modes", modes),
        Err(why) => report.fail("matrix of modes", &why),
    }
}

/// Refuses a page of some rows, before any is played: it would take the place of the whole one.
fn whole_page(flags: &[String]) -> Result<(), String> {
    let given = |name| flags.iter().any(|flag| flag == name);
    match given("--docs") && given("--only") {
        true => Err(format!(
            "`--docs` writes all of {PAGE}, and `--only` plays a part"
        )),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_some_rows_is_refused() {
        let flags = |flags: &[&str]| flags.iter().map(ToString::to_string).collect::<Vec<_>>();

        assert!(whole_page(&flags(&["--only", "coupled", "--docs"])).is_err());
        assert!(whole_page(&flags(&["--docs"])).is_ok());
        assert!(whole_page(&flags(&["--only", "coupled"])).is_ok());
    }
}
