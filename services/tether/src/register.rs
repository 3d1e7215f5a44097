//! `tether register`: keeps a worker registered that somebody else runs.

mod check;

use std::time::Duration;

use anyhow::{Context as _, bail};
use backon::{BackoffBuilder as _, ExponentialBackoff};
use tether_client::{Client, Condition, Lost, Problem, Registrant, Registration};
use tether_proto::common::EndpointHealth;
use tether_types::{Address, InstanceName, Reason};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use check::{Checked, Pulse};

use crate::{
    cli,
    output::Output,
    run::{delays, may_pass},
};

/// One whose name or address is another's asks again this often: that one may say goodbye.
const ASK_AGAIN: Duration = Duration::from_secs(5);

pub(crate) async fn register(
    client: &Client,
    args: cli::Register,
    out: &Output,
) -> anyhow::Result<()> {
    let stop = tether_kit::stop::on_signals()?;
    let work = Registering::new(client, &args, out)?;
    loop {
        let registration = tokio::select! {
            registration = work.begin() => registration?,
            () = stop.cancelled() => return Ok(()),
        };
        match work.keep(&registration, &stop).await {
            None => return work.end(registration).await,
            Some(lost @ Lost::Fenced(_)) => return Err(lost.into()),
            // The worker is as it was: only its place is another's to give.
            Some(lost) => out.note(&format!("not registered any more: {lost}")),
        }
    }
}

struct Registering<'a> {
    client: &'a Client,
    registrant: Registrant,
    condition: Condition,
    check: Checked,
    args: &'a cli::Register,
    out: Output,
}

impl<'a> Registering<'a> {
    fn new(client: &'a Client, args: &'a cli::Register, out: &Output) -> anyhow::Result<Self> {
        let address: Address = args.address.parse()?;
        let name = match &args.name {
            Some(name) => name.clone(),
            None => usual_name(&address),
        };
        if args.protocol == cli::Protocol::Grpcs && args.check == cli::Check::Grpc {
            bail!(
                "a worker that wants TLS cannot be asked by `grpc.health.v1` here: add `--check tcp` or `--check none`"
            );
        }
        let registrant = Registrant {
            pool: args.pool.parse()?,
            name: InstanceName::new(name).context("give it another with `--name`")?,
            ttl: args.ttl,
            address,
            protocol: args.protocol.word().to_owned(),
        };
        let health = match args.check {
            cli::Check::Grpc | cli::Check::Tcp => EndpointHealth::Passing,
            cli::Check::None => EndpointHealth::Unspecified,
        };
        let condition = Condition {
            zone: args.zone.clone(),
            weight: args.weight,
            capacity: args.capacity,
            draining: false,
            health: health.into(),
        };
        let check = Checked::new(args.check, &registrant.address, args.check_interval);
        Ok(Self {
            client,
            registrant,
            condition,
            check,
            args,
            out: *out,
        })
    }

    /// Registers the worker, once it serves.
    async fn begin(&self) -> anyhow::Result<Registration> {
        let mut told = String::new();
        let mut tell = |text: String| {
            if text != told {
                self.out.note(&text);
                told = text;
            }
        };
        while let Err(why) = self.check.ask().await {
            tell(format!("waits until the worker serves: {why}"));
            sleep(self.args.check_interval).await;
        }
        let mut pauses = delays().build();
        loop {
            let asked = self
                .client
                .register(self.registrant.clone(), self.condition.clone());
            let problem = match asked.await {
                Ok(registration) => {
                    self.say("registered", &registration)?;
                    return Ok(registration);
                }
                Err(problem) => problem,
            };
            let pause = pause_after(&problem, &mut pauses).ok_or_else(|| problem.clone())?;
            tell(match problem.reason {
                // What is left of a lease is in it, and is another each time.
                Some(Reason::RegistrationTaken) => format!(
                    "waits: the name `{}` or the address `{}` is registered already, until that ends",
                    self.registrant.name, self.registrant.address
                ),
                _ => format!("tries again: {problem}"),
            });
            sleep(pause).await;
        }
    }

    /// Tells how the worker is, until it is to be withdrawn (none), or its registration is lost.
    async fn keep(&self, registration: &Registration, stop: &CancellationToken) -> Option<Lost> {
        let mut pulse = Pulse::new(self.args.check_failures);
        loop {
            tokio::select! {
                lost = registration.lost() => return Some(lost),
                () = stop.cancelled() => return None,
                answer = self.check.next() => {
                    let Some(serves) = pulse.on_answer(answer.is_ok()) else {
                        continue;
                    };
                    let health = match serves {
                        true => EndpointHealth::Passing,
                        false => EndpointHealth::Failing,
                    };
                    registration.change(|condition| {
                        (condition.draining, condition.health) = (!serves, health.into());
                    });
                    self.out.note(&match answer {
                        Ok(()) => "it serves again".to_owned(),
                        Err(why) => format!("it takes no new calls until it serves again: {why}"),
                    });
                }
            }
        }
    }

    /// Withdraws the worker in good order.
    async fn end(&self, registration: Registration) -> anyhow::Result<()> {
        registration.change(|condition| condition.draining = true);
        tokio::select! {
            () = sleep(self.args.drain) => {}
            lost = registration.lost() => {
                self.out.note(&format!("withdrawn before it was deregistered: {lost}"));
                return Ok(());
            }
        }
        self.say("deregistered", &registration)?;
        registration
            .close()
            .await
            .context("cannot deregister; it is withdrawn when its lease is over")
    }

    fn say(&self, what: &str, registration: &Registration) -> anyhow::Result<()> {
        let worker = registration.worker();
        self.out.line(&match self.out.is_json() {
            true => serde_json::json!({
                "event": what,
                "worker": worker.to_string(),
                "name": self.registrant.name.as_str(),
                "address": self.registrant.address.to_string(),
                "epoch": registration.epoch().0,
            })
            .to_string(),
            false => format!("{what} {worker} at {}", self.registrant.address),
        })
    }
}

/// How long to wait before asking again; none where that would not help.
fn pause_after(problem: &Problem, pauses: &mut ExponentialBackoff) -> Option<Duration> {
    match problem.reason {
        Some(Reason::RegistrationTaken) => {
            let left = problem.retry_after.unwrap_or(ASK_AGAIN);
            // What is said is rounded, and it is the arbiter who says when it is over.
            Some((left + Duration::from_millis(10)).min(ASK_AGAIN))
        }
        Some(Reason::StoreFailed) => pauses.next(),
        reason if may_pass(reason, problem.code) => pauses.next(),
        _ => None,
    }
}

/// This machine's name and what tells its workers apart: the same when this command is started again.
fn usual_name(address: &Address) -> String {
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let which = match address {
        Address::Tcp { port, .. } => port.to_string(),
        Address::Unix(path) => {
            let stem = path.file_stem().unwrap_or_default();
            stem.to_string_lossy().into_owned()
        }
    };
    format!("{host}-{which}")
}
