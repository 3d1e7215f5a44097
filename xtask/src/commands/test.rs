//! `cargo xtask test`: every suite that CI runs, in CI's order, with one summary on the last line.

use std::process::Command;

use super::{Task, check, compose, elixir, faults, ground, k8s_lint, matrix, modes, sim, soak};
use crate::{debian, report::Report, workspace::Workspace};

pub(super) const TASK: Task = Task {
    name: "test",
    arguments: "[FILTER ...]",
    summary: "every suite that CI runs; with a filter, the tests it names",
    run: |workspace, filter| {
        let mut report = Report::default();
        prepare(workspace, &mut report);
        if filter.is_empty() {
            check::take_steps(workspace, &mut report);
        }
        report.prepare(
            "build",
            workspace.cargo("build --workspace --bins --locked"),
        );
        report.suite("tests", tests(workspace, "--workspace", filter));
        if filter.is_empty() {
            let mut h2 = tests(workspace, "--package tether-gateway", &[]);
            h2.env("TETHER_GATEWAY_ENGINE", "h2");
            report.suite("gateway on the h2 library", h2);
            report.suite(
                "doc tests",
                workspace.cargo("test --doc --workspace --locked --no-fail-fast"),
            );
            report.suite("digits", pytest(workspace, "examples/digits/tests"));
            report.suite("Python SDK", pytest(workspace, "clients/python/tests"));
            elixir::elixir(workspace, &mut report);
            report.step(k8s_lint::NAME, k8s_lint::lint_settings(workspace));
            report.suite(k8s_lint::SUITE, k8s_lint::tests(workspace));
            if let Err(why) = sim::sim(workspace, &mut report, &[]) {
                report.fail("simulation", &why);
            }
            if let Err(why) = sim::services(workspace, &mut report, &[]) {
                report.fail("services' simulation", &why);
            }
            if let Err(why) = matrix::kill(workspace, &mut report, &[]) {
                report.fail("kill matrix", &why);
            }
            let some = ["--every", "7"].map(str::to_owned);
            let relayed = workspace.target().join("partitions/relayed.json");
            let relayed = relayed.display().to_string();
            let relayed = ["--relay", "--only", "arbiter x node-1", "--json", &relayed];
            let relayed = relayed.map(str::to_owned);
            for flags in [&some[..], &relayed] {
                if let Err(why) = matrix::partitions(workspace, &mut report, flags) {
                    report.fail("partition matrix", &why);
                }
            }
            let some = ["--only", FAILOVERS].map(str::to_owned);
            if let Err(why) = matrix::failovers(workspace, &mut report, &some) {
                report.fail("failover matrix", &why);
            }
            let few = ["--repeat", "3", "--busy"].map(str::to_owned);
            if let Err(why) = matrix::beams(workspace, &mut report, &few) {
                report.fail("matrix of BEAMs", &why);
            }
            let some = ["--repeat", "2"].map(str::to_owned);
            if let Err(why) = matrix::supervisors(workspace, &mut report, &some) {
                report.fail("supervisor matrix", &why);
            }
            if let Err(why) = faults::faults(workspace, &mut report, &[]) {
                report.fail("fault injection", &why);
            }
            ground::prepare(workspace, &mut report);
            if let Err(why) = ground::systemd(workspace, &mut report, &[]) {
                report.fail("systemd", &why);
            }
            if let Err(why) = ground::launchers(workspace, &mut report, &[]) {
                report.fail("launchers", &why);
            }
            compose::prepare(workspace, &mut report);
            let one = ["--with", "docker-compose"].map(str::to_owned);
            if let Err(why) = compose::compose(workspace, &mut report, &one) {
                report.fail("docker-compose", &why);
            }
            // Reads what the suites above have written.
            modes::judge(workspace, &mut report, &[]);
            if let Err(why) = soak::soak(workspace, &mut report, &[]) {
                report.fail("soak", &why);
            }
            let short = ["--seconds", "45"].map(str::to_owned);
            if let Err(why) = soak::gateway(workspace, &mut report, &short) {
                report.fail("soak of the gateway", &why);
            }
        }
        Ok(report.finish())
    },
};

/// The failovers that are played here: those that take the shortest, and a stalled disk.
const FAILOVERS: &str = "arbiter leader killed|etcd leader killed|etcd leader, disk stalled";

/// Installs what the suites need beyond cargo.
pub(super) fn prepare(workspace: &Workspace, report: &mut Report) {
    provide_languages(workspace, report);
    for (suite, environment) in [("xDS with Envoy", "envoy"), ("checkpoints in S3", "s3")] {
        let mut make = workspace.program("tools/python-env.sh");
        make.arg(environment);
        if !workspace.runs(make) {
            let why =
                format!("`tools/python-env.sh {environment}` cannot install it, and says why");
            report.skip(suite, &why);
        }
    }
    provide_programs(workspace, report);
}

/// Installs the Python of workers, and Elixir.
pub(super) fn provide_languages(workspace: &Workspace, report: &mut Report) {
    report.prepare(
        "Python environment",
        workspace.program("tools/python-env.sh"),
    );
    // For BEAMs that open `tether port`, and for the client that does.
    report.prepare("Elixir", workspace.program("tools/elixir-env.sh"));
}

/// Fetches the programs that are not there.
pub(super) fn provide_programs(workspace: &Workspace, report: &mut Report) {
    for wanted in debian::ALL.iter().chain(debian::SUPERVISORS) {
        if let Err(why) = debian::provide(workspace, wanted) {
            report.fail(wanted.name, &why);
        }
    }
}

/// The runner for the tests in `scope`: nextest, which runs each in a process of its own, else cargo's.
pub(super) fn tests(workspace: &Workspace, scope: &str, filter: &[String]) -> Command {
    if workspace.has_cargo("nextest") {
        let mut nextest = workspace.cargo("nextest run --locked --no-fail-fast");
        nextest.args(scope.split(' ')).args(filter);
        return nextest;
    }
    let mut cargo = workspace.cargo("test --lib --bins --tests --locked --no-fail-fast");
    cargo.args(scope.split(' ')).arg("--").args(filter);
    cargo
}

/// The Python tests in a directory, with what the example worker needs installed.
fn pytest(workspace: &Workspace, tests: &str) -> Command {
    let mut pytest = workspace.program(workspace.root().join("target/venv/digits/bin/python"));
    // Nothing is left in the tree.
    pytest.args(["-m", "pytest", "-p", "no:cacheprovider", tests]);
    pytest
}
