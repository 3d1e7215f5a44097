//! `tether`: all four services in one process (`tether up`), and the command line for people on call.

mod call;
mod choose;
mod cli;
mod config;
mod doctor;
mod endpoints;
mod events;
mod gateway;
mod job;
mod lease_check;
mod logs;
mod nodes;
mod orders;
mod output;
mod pool;
mod port;
mod ps;
mod reflection;
mod register;
mod registrations;
mod run;
mod shell;
mod up;

use std::{io::Write as _, process::ExitCode};

use clap::Parser as _;
use tether_client::{Client, Lost, Problem};
use tether_kit::{
    parent,
    stop::{EXIT_CONFIG, EXIT_FAILURE, EXIT_LATE, EXIT_LOST, EXIT_OK, EXIT_PARENT},
    telemetry::{self, Settings as Telemetry},
};
use tether_settings::{Connect, Listen, Place, Whereabouts};

use cli::{Cli, Command};

fn main() -> ExitCode {
    if let Some(code) = tether_agent::play_part_where_asked() {
        return code;
    }
    if std::env::args_os()
        .nth(1)
        .is_some_and(|command| command == "up")
    {
        if let Err(error) = tether_agent::become_first_where_asked() {
            return complain(
                &anyhow::Error::from(error).context("cannot be the first process of a container"),
            );
        }
        tether_agent::make_room();
    }
    let cli = Cli::parse();
    let mut runtime = match cli.command {
        // Each call does little and goes through several tasks: handing it from thread to thread would be most of what
        // it costs.
        Command::Port => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return complain(&anyhow::Error::from(error).context("cannot start the runtime"));
        }
    };
    let is_port = matches!(cli.command, Command::Port);
    let status = runtime.block_on(dispatch(cli));
    if is_port {
        // What is left of services in it has nobody to be left for, and ends with the process.
        runtime.shutdown_background();
    }
    status
}

async fn dispatch(cli: Cli) -> ExitCode {
    // The long-running commands log; the others print what was asked for and nothing else.
    let telemetry = match &cli.command {
        Command::Up(_) | Command::Port => telemetry::start("tether", &Telemetry::from_env()),
        _ => telemetry::start(
            "tether",
            &Telemetry {
                filter: std::env::var("TETHER_LOG").unwrap_or_else(|_| "error".to_owned()),
                ..Telemetry::from_env()
            },
        ),
    };
    let telemetry = match telemetry {
        Ok(telemetry) => telemetry,
        Err(error) => return complain(&error.into()),
    };
    let ended = obey(cli).await;
    telemetry.finish().await;
    match ended {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(error) => complain(&error),
    }
}

/// A configuration or a pool file is refused; the report points at the line.
#[derive(Debug)]
struct Refused(miette::Report);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl std::error::Error for Refused {}

async fn obey(cli: Cli) -> anyhow::Result<()> {
    let out = output::Output::new(cli.output);
    let client = || connect(cli.gateway.as_deref());
    match cli.command {
        Command::Up(args) => up::up(args).await,
        Command::Config(args) => config::config(&args),
        Command::LeaseCheck(args) => lease_check::lease_check(&args, &out),
        Command::Version => out.version(),
        Command::Shell { folder } => Ok(shell::write(&folder)?),
        Command::Run(args) => run::run(&client()?, args, &out).await,
        Command::Pool(args) => pool::pool(&client()?, args, &out).await,
        Command::Job(args) => job::job(&client()?, args, &out).await,
        Command::Port => port::port().await,
        Command::Ps(args) => ps::ps(&client()?, &args, &out).await,
        Command::Nodes => nodes::nodes(&client()?, &out).await,
        Command::Node(args) => nodes::node(&client()?, args, &out).await,
        Command::Doctor(args) => doctor::doctor(&args, client().ok(), &out).await,
        Command::Choose(args) => choose::choose(args),
        Command::Logs(args) => logs::logs(&client()?, &args, &out).await,
        Command::Events(args) => events::events(&client()?, &args, &out).await,
        Command::Endpoints(args) => endpoints::endpoints(&client()?, &args, &out).await,
        Command::Discover(args) => endpoints::discover(&client()?, &args, &out).await,
        Command::Register(args) => register::register(&client()?, args, &out).await,
        Command::Registrations(args) => registrations::registrations(&client()?, &args, &out).await,
        Command::Gateway(args) => gateway::gateway(cli.gateway.as_deref(), args, &out).await,
        Command::Stop(args) => orders::stop(&client()?, &args).await,
        Command::Signal(args) => orders::signal(&client()?, &args).await,
        Command::Call(args) => call::call(&client()?, args, &out).await,
    }
}

fn connect(gateway: Option<&str>) -> anyhow::Result<Client> {
    let address = match gateway {
        Some(text) => text.parse()?,
        None => Whereabouts::new(&Listen::default(), &Connect::default())?.find(Place::Gateway)?,
    };
    Ok(Client::connect(&address))
}

fn complain(error: &anyhow::Error) -> ExitCode {
    if let Some(refused) = error.downcast_ref::<Refused>() {
        say(format_args!("{refused}"));
        return ExitCode::from(EXIT_CONFIG);
    }
    if let Some(both) = error.downcast_ref::<run::Both>() {
        let status = complain(&both.first);
        say(format_args!("  and then: {:#}", both.second));
        return status;
    }
    say(format_args!("tether: {error:#}"));
    if let Some(problem) = error.downcast_ref::<Problem>() {
        for (name, value) in &problem.facts {
            say(format_args!("  {name}: {value}"));
        }
        if let Some(delay) = problem.retry_after {
            say(format_args!("  worth trying again in {delay:?}"));
        }
    }
    ExitCode::from(if error.is::<nodes::drain::Late>() {
        EXIT_LATE
    } else if error.is::<Lost>() {
        EXIT_LOST
    } else if error.is::<parent::Gone>() {
        EXIT_PARENT
    } else if error.is::<parent::Error>() {
        EXIT_CONFIG
    } else {
        EXIT_FAILURE
    })
}

/// What went wrong is told to whoever gave the command, whose end of the pipe may be gone.
fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
