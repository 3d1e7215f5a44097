//! `cargo xtask bench NAME`: one benchmark, which writes target/bench/NAME.json.

mod peers;
mod proxies;

use std::{fs, process::ExitCode};

use super::Task;
use crate::{debian, run::run, workspace::Workspace};

pub(super) const TASK: Task = Task {
    name: "bench",
    arguments: "[NAME [--quick]]",
    summary: "one benchmark, into target/bench/NAME.json; without a name, the list",
    run: bench,
};

/// Where the benchmarks are: one binary each, `bench-NAME.rs`.
const FOLDER: &str = "benches/src/bin";

fn bench(workspace: &Workspace, arguments: &[String]) -> Result<ExitCode, String> {
    let names = names(workspace);
    let list = if names.is_empty() {
        "none yet".to_owned()
    } else {
        names.join(", ")
    };
    let [name, more @ ..] = arguments else {
        println!("benchmarks: {list}");
        return Ok(ExitCode::SUCCESS);
    };
    if !names.contains(name) {
        return Err(format!("no benchmark `{name}`; there are: {list}"));
    }
    let folder = workspace.root().join("target/bench");
    fs::create_dir_all(&folder).map_err(|error| format!("cannot make `target/bench`: {error}"))?;
    let mut command = workspace.cargo("run --release --locked --package tether-benches --bin");
    command
        .arg(format!("bench-{name}"))
        .args(["--", "--json"])
        .arg(folder.join(format!("{name}.json")))
        .args(more);
    match name.as_str() {
        "agent" => drop(command.args(peers::arguments(workspace)?)),
        "leases" => drop(command.args(leases(workspace)?)),
        "discovery" => drop(command.args(discovery(workspace)?)),
        "failover" => drop(command.args(failover(workspace)?)),
        "beam" => beam(workspace)?,
        "gateway" | "isolation" => drop(command.args(proxies::arguments(workspace, "")?)),
        _ => {}
    }
    Ok(ExitCode::from(u8::from(!run(command).ok)))
}

/// Builds what a BEAM opens as a port.
fn beam(workspace: &Workspace) -> Result<(), String> {
    let build = "build --release --locked --package tether";
    match run(workspace.cargo(build)).ok {
        true => Ok(()),
        false => Err("`tether` does not build, so there is nothing to measure".to_owned()),
    }
}

/// The arguments of `bench-leases`.
fn leases(workspace: &Workspace) -> Result<Vec<String>, String> {
    let build = "build --release --locked --package tether-arbiter";
    if !run(workspace.cargo(build)).ok {
        return Err("the arbiter does not build, so there is nothing to measure".to_owned());
    }
    let arbiter = workspace.target().join("release/tether-arbiter");
    let mut arguments = vec!["--arbiter".to_owned(), arbiter.display().to_string()];
    match etcd(workspace) {
        Ok(()) => arguments.extend(["--etcd".to_owned(), "etcd".to_owned()]),
        Err(why) => {
            println!("etcd is skipped: {why}");
            arguments.extend(["--no-etcd".to_owned(), why]);
        }
    }
    Ok(arguments)
}

/// The arguments of `bench-discovery`.
fn discovery(workspace: &Workspace) -> Result<Vec<String>, String> {
    let build = "build --release --locked --package tether-discovery";
    if !run(workspace.cargo(build)).ok {
        return Err("discovery does not build, so there is nothing to measure".to_owned());
    }
    etcd(workspace)?;
    let program = workspace.target().join("release/tether-discovery");
    let program = program.display().to_string();
    let arguments = ["--discovery", &program, "--etcd", "etcd"];
    Ok(arguments.map(str::to_owned).to_vec())
}

/// The arguments of `bench-failover`: all of ours, and the peers.
fn failover(workspace: &Workspace) -> Result<Vec<String>, String> {
    etcd(workspace)?;
    // With the services, for the same reason as they all together.
    let more = "--package tether-agent --package tether-tests --bin clerk --bin tether-agent --bin tether-gateway --bin tether-arbiter --bin tether-discovery";
    let mut arguments = proxies::arguments(workspace, more)?;
    for (flag, program) in [("--agent", "tether-agent"), ("--clerk", "clerk")] {
        let program = workspace.target().join("release").join(program);
        arguments.extend([flag.to_owned(), program.display().to_string()]);
    }
    arguments.extend(["--etcd".to_owned(), "etcd".to_owned()]);
    Ok(arguments)
}

/// Has etcd there, on `PATH`.
fn etcd(workspace: &Workspace) -> Result<(), String> {
    let etcd = debian::ALL.iter().find(|program| program.name == "etcd");
    let etcd = etcd.ok_or_else(|| "nobody knows where etcd is".to_owned())?;
    debian::provide(workspace, etcd)
}

fn names(workspace: &Workspace) -> Vec<String> {
    let entries = fs::read_dir(workspace.root().join(FOLDER))
        .into_iter()
        .flatten();
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| {
            let file = entry.file_name().into_string().ok()?;
            Some(file.strip_prefix("bench-")?.strip_suffix(".rs")?.to_owned())
        })
        .collect();
    names.sort();
    names
}
