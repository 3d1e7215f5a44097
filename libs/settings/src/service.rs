//! The frame of a service's `main`: flags, configuration, telemetry, signals, exit status.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Arg, ArgAction, Args as _, Command, FromArgMatches as _, value_parser};
use serde::{Serialize, de::DeserializeOwned};
use tether_kit::{
    config, manager,
    parent::{self, Parent},
    stop,
    telemetry::{self, Settings as Telemetry},
};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::{Check, Place, health, parent::ParentFlag};

/// A section of the one configuration file that is another service's.
pub type Ignored = toml::Table;

/// The command line of a service that is a program of its own.
pub fn command(place: Place) -> Command {
    let command = Command::new(place.program())
        .about(place.about())
        .version(env!("CARGO_PKG_VERSION"))
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .env("TETHER_CONFIG")
                .value_parser(value_parser!(PathBuf))
                .help("Configuration file; all services may share one"),
        )
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("KEY=VALUE")
                .action(ArgAction::Append)
                .help("Sets one key, as in listen.insecure=true"),
        )
        .arg(
            Arg::new("health")
                .long("health")
                .value_name("SERVICE")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("")
                .help("Only asks the one that runs with this configuration whether it serves: status 0 or 1"),
        );
    ParentFlag::augment_args(command)
}

/// Runs a service until it is asked to stop. `T` is the part of the configuration file it reads, with
/// [`Ignored`] for the rest; `serve` gets it, with the directory where its relative paths start.
pub fn service<T, F>(
    place: Place,
    serve: impl FnOnce(T, PathBuf, CancellationToken) -> F,
) -> ExitCode
where
    T: Check + DeserializeOwned + Serialize + Default,
    F: Future<Output = anyhow::Result<()>>,
{
    let name = place.program();
    let matches = command(place).get_matches();
    let parent = ParentFlag::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let parent = match parent.open() {
        Ok(parent) => parent,
        Err(error) => {
            say(name, &error.into());
            return ExitCode::from(stop::EXIT_CONFIG);
        }
    };
    let file = matches.get_one::<PathBuf>("config");
    let sets: Vec<String> = matches
        .get_many("set")
        .into_iter()
        .flatten()
        .cloned()
        .collect();

    if let Some(service) = matches.get_one::<String>("health") {
        return end(
            name,
            runtime().and_then(|runtime| {
                runtime.block_on(health::ask(
                    place,
                    file.map(PathBuf::as_path),
                    &sets,
                    service,
                ))
            }),
        );
    }

    // A configuration is refused before anything is opened, so that a slip of the keyboard cannot
    // take down what ran a moment ago.
    let loaded = match config::load::<T>(file.map(PathBuf::as_path), std::env::vars(), &sets) {
        Ok(loaded) => loaded,
        Err(report) => return refuse(&report),
    };
    warn(name, &loaded.warnings);
    if let Err(wrong) = loaded.value.check() {
        return refuse(&wrong.report(&loaded));
    }
    let base = file.and_then(|path| std::path::absolute(path).ok()?.parent().map(PathBuf::from));
    let base = base
        .or_else(|| std::env::current_dir().ok())
        .unwrap_or_default();
    run(name, parent, |stop| serve(loaded.value, base, stop))
}

/// Says on standard error what of a configuration was ignored.
#[expect(
    clippy::print_stderr,
    reason = "nothing is set up yet that could tell it otherwise"
)]
pub fn warn(name: &str, warnings: &[String]) {
    for warning in warnings {
        eprintln!("{name}: {warning}");
    }
}

/// Says on standard error why a configuration is refused.
#[expect(
    clippy::print_stderr,
    reason = "nothing is set up yet that could tell it otherwise"
)]
fn refuse(report: &miette::Report) -> ExitCode {
    eprintln!("{report:?}");
    ExitCode::from(stop::EXIT_CONFIG)
}

fn runtime() -> anyhow::Result<Runtime> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    Ok(runtime.enable_all().build()?)
}

/// The last word of a process that failed is for people, whose end of the pipe may be gone with the parent.
fn say(name: &str, error: &anyhow::Error) {
    let _ = writeln!(io::stderr(), "{name}: {error:#}");
}

fn run<F>(
    name: &'static str,
    parent: Option<Parent>,
    serve: impl FnOnce(CancellationToken) -> F,
) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let work = async {
        let telemetry = telemetry::start(name, &Telemetry::from_env())?;
        let stop = stop::on_signals()?;
        tokio::spawn(manager::follow(stop.clone()));
        let fate = match parent {
            Some(parent) => parent.watch(stop.clone())?,
            None => parent::Fate::default(),
        };
        let served = serve(stop).await;
        telemetry.finish().await;
        served?;
        Ok(fate.check()?)
    };
    end(name, runtime().and_then(|runtime| runtime.block_on(work)))
}

fn end(name: &str, ended: anyhow::Result<()>) -> ExitCode {
    match ended {
        Ok(()) => ExitCode::from(stop::EXIT_OK),
        Err(error) => {
            say(name, &error);
            ExitCode::from(match error.downcast_ref::<parent::Gone>() {
                Some(_) => stop::EXIT_PARENT,
                None => stop::EXIT_FAILURE,
            })
        }
    }
}
