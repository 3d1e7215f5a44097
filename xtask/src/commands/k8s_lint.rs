//! `cargo xtask k8s-lint`: the files for Kubernetes and Nomad, and the rules on them.

use std::process::Command;

use super::{Task, no_arguments, test};
use crate::{debian, report::Report, run::run, workspace::Workspace};

pub(super) const TASK: Task = Task {
    name: "k8s-lint",
    arguments: "",
    summary: "what is wrong with the files for Kubernetes and Nomad",
    run: |workspace, arguments| {
        no_arguments(arguments)?;
        let mut report = Report::default();
        if report.prepare(ENVIRONMENT, environment(workspace)) {
            test::provide_programs(workspace, &mut report);
            provide_kubectl(workspace, &mut report);
            report.prepare(
                "build",
                workspace.cargo("build --locked -p tether -p tether-agent --bins"),
            );
            report.step(NAME, lint_settings(workspace));
            report.suite(SUITE, tests(workspace));
        }
        Ok(report.finish())
    },
};

pub(super) const NAME: &str = "Kubernetes and Nomad";
pub(super) const SUITE: &str = "rules and hooks for Kubernetes and Nomad";
const ENVIRONMENT: &str = "Python environment of deploy/lint";

/// As a step among others: left out, with the reason, where its environment cannot be had. What is built may be of another
/// day, so settings in those files are looked at with what is built for the tests.
pub(super) fn take_step(workspace: &Workspace, report: &mut Report) {
    println!("\n== {ENVIRONMENT}");
    let made = run(environment(workspace));
    if made.ok {
        provide_kubectl(workspace, report);
        report.step(NAME, lint(workspace));
    } else {
        report.skip(NAME, &made.last_line);
    }
}

/// Fetches what renders overlays. Where it cannot be had the base alone is looked at, and the sum says so.
fn provide_kubectl(workspace: &Workspace, report: &mut Report) {
    if let Err(why) = debian::provide(workspace, &debian::KUBECTL) {
        report.skip("overlays of Kubernetes", &why);
    }
}

fn environment(workspace: &Workspace) -> Command {
    let mut environment = workspace.program("tools/python-env.sh");
    environment.arg("deploy");
    environment
}

fn lint(workspace: &Workspace) -> Command {
    let mut lint = python(workspace);
    lint.args(["-m", "lint"]);
    lint
}

/// The same with what was built just now, which looks at the settings in those files too.
pub(super) fn lint_settings(workspace: &Workspace) -> Command {
    let mut lint = lint(workspace);
    lint.arg("--tether")
        .arg(workspace.target().join("debug/tether"));
    lint
}

/// Its tests; those that run Tether's programs are skipped where they are not built.
pub(super) fn tests(workspace: &Workspace) -> Command {
    let mut tests = python(workspace);
    tests.args(["-m", "unittest", "discover", "-s", "deploy/lint/tests"]);
    tests.args(["-t", "deploy"]);
    let programs = workspace.target().join("debug");
    if programs.join("tether-agent").exists() {
        tests.env("TETHER_BIN", programs);
    }
    tests
}

fn python(workspace: &Workspace) -> Command {
    let mut python = workspace.program(workspace.root().join("target/venv/deploy/bin/python"));
    python.env("PYTHONPATH", workspace.root().join("deploy"));
    python
}
