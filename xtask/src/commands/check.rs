//! `cargo xtask check`: everything that is checked without running what was built.

use super::{Task, k8s_lint, no_arguments};
use crate::{lints, report::Report, run::run, workspace::Workspace};

pub(super) const TASK: Task = Task {
    name: "check",
    arguments: "",
    summary: "fmt, clippy, buf, typos, taplo, the workspace's own lints, k8s-lint, deny",
    run: |workspace, arguments| {
        no_arguments(arguments)?;
        let mut report = Report::default();
        take_steps(workspace, &mut report);
        Ok(report.finish())
    },
};

/// Linters that tools/lint-env.sh installs, with their arguments.
const LINTERS: &[(&str, &[&str])] = &[
    ("buf", &["lint"]),
    ("typos", &[]),
    ("taplo", &["fmt", "--check", "--diff"]),
];

/// Takes every step of the check.
pub(super) fn take_steps(workspace: &Workspace, report: &mut Report) {
    of_cargo(
        workspace,
        report,
        "fmt",
        "fmt --all --check",
        "rustup component add rustfmt",
        Report::fail,
    );
    of_cargo(
        workspace,
        report,
        "clippy",
        "clippy --workspace --all-targets --locked -- -D warnings",
        "rustup component add clippy",
        Report::fail,
    );
    linters(workspace, report);
    k8s_lint::take_step(workspace, report);
    for lint in lints::ALL {
        report.lint(lint.name, || lints::check(workspace, lint));
    }
    of_cargo(
        workspace,
        report,
        "deny",
        "deny --offline check bans licenses sources",
        "cargo install cargo-deny",
        Report::skip,
    );
}

/// Takes a step with a part of cargo; `missing` says what it means that the part is not installed.
fn of_cargo(
    workspace: &Workspace,
    report: &mut Report,
    name: &str,
    arguments: &str,
    install: &str,
    missing: fn(&mut Report, &str, &str),
) {
    if workspace.has_cargo(name) {
        report.step(name, workspace.cargo(arguments));
    } else {
        let why = format!("`cargo {name}` is not there; `{install}`");
        missing(report, name, &why);
    }
}

fn linters(workspace: &Workspace, report: &mut Report) {
    println!("\n== linters");
    let installed = run(workspace.program("tools/lint-env.sh"));
    for (name, arguments) in LINTERS {
        // Each on its own: without npm there is no buf, and still a typos.
        if workspace
            .root()
            .join("target/tools/bin")
            .join(name)
            .exists()
        {
            let mut linter = workspace.program(*name);
            linter.args(*arguments);
            report.step(name, linter);
        } else {
            report.skip(name, &installed.last_line);
        }
    }
}
