//! `cargo xtask e2e`: the tests with real services, real workers and real kills, alone.

use super::{Task, test};
use crate::report::Report;

pub(super) const TASK: Task = Task {
    name: "e2e",
    arguments: "[FILTER ...]",
    summary: "the end-to-end tests alone",
    run: |workspace, filter| {
        let mut report = Report::default();
        test::prepare(workspace, &mut report);
        report.prepare(
            "build",
            workspace.cargo("build --workspace --bins --locked"),
        );
        report.suite(
            "tests",
            test::tests(workspace, "--package tether-tests", filter),
        );
        Ok(report.finish())
    },
};
