//! `cargo xtask demo`: the main job on real workers, narrated; its status says whether it held.

use std::{
    env,
    process::{Command, ExitCode},
};

use super::Task;
use crate::workspace::Workspace;

pub(super) const TASK: Task = Task {
    name: "demo",
    arguments: "[--json FILE]",
    summary: "the main job on real workers, with real kills, narrated",
    run,
};

fn run(workspace: &Workspace, arguments: &[String]) -> Result<ExitCode, String> {
    let json = match arguments {
        [] => None,
        [flag, file] if flag == "--json" => {
            let here =
                env::current_dir().map_err(|error| format!("no current directory: {error}"))?;
            Some(here.join(file))
        }
        [unexpected, ..] => {
            return Err(format!(
                "unexpected argument `{unexpected}`; try `--json FILE`"
            ));
        }
    };
    // It finds `tether` beside itself.
    let mut demo = workspace.program(workspace.target().join("release/demo"));
    if let Some(file) = json {
        demo.arg("--json").arg(file);
    }
    let steps = [
        (
            "Python environment of the workers",
            workspace.program("tools/python-env.sh"),
        ),
        (
            "tether, built for release (minutes on a fresh checkout)",
            workspace.cargo("build --release --locked --bins -p tether -p tether-tests"),
        ),
        ("The demo", demo),
    ];
    let last = steps.len();
    for (number, (name, command)) in (1..).zip(steps) {
        println!("[{number}/{last}] {name}");
        let code = status(command)?;
        if code != 0 {
            return Ok(ExitCode::from(code));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs it on this terminal, where cargo shows its progress.
fn status(mut command: Command) -> Result<u8, String> {
    let status = command.status().map_err(|error| {
        format!(
            "cannot run `{}`: {error}",
            command.get_program().to_string_lossy()
        )
    })?;
    // A signal has no code of its own.
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1))
}
