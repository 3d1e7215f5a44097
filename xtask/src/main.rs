//! The workspace's front door: `cargo xtask` lists what there is to run.
//!
//! Needs nothing but cargo and depends on nothing but std, so that the first command on a fresh
//! machine answers in a second. What a command needs beyond that it installs where it may, or says
//! in one line what to install.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line speaks on its standard streams"
)]

mod commands;
mod debian;
mod front_page;
mod lints;
mod process_rules;
mod report;
mod run;
mod tally;
mod workspace;

use std::{env, process::ExitCode};

use workspace::Workspace;

/// Bad usage; the status clap gives it too.
const EX_USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let Some(name) = arguments.next() else {
        println!("{}", commands::overview());
        return ExitCode::SUCCESS;
    };
    if matches!(name.as_str(), "help" | "-h" | "--help") {
        println!("{}", commands::overview());
        return ExitCode::SUCCESS;
    }
    let Some(command) = commands::find(&name) else {
        eprintln!("xtask: no command `{name}`\n\n{}", commands::overview());
        return ExitCode::from(EX_USAGE);
    };
    let arguments: Vec<String> = arguments.collect();
    let answer = Workspace::find().and_then(|workspace| (command.run)(&workspace, &arguments));
    answer.unwrap_or_else(|problem| {
        eprintln!("xtask {name}: {problem}");
        ExitCode::from(EX_USAGE)
    })
}
