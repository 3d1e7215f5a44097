//! `cargo xtask bench NAME`: one benchmark, which writes target/bench/NAME.json.

mod peers;

use std::{fs, process::ExitCode};

use super::Task;
use crate::{run::run, workspace::Workspace};

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
    if name == "agent" {
        command.args(peers::arguments(workspace)?);
    }
    Ok(ExitCode::from(u8::from(!run(command).ok)))
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
