//! `tether run`: this process owns pools for as long as it runs.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use tether_client::{Client, Problem, Session, SessionOptions};
use tether_proto::{
    pool::{ApplyPoolRequest, GetPoolRequest, PoolSpec},
    worker::{Event, EventKind, WatchEventsRequest, WatchEventsResponse},
};
use tether_settings::{Pool, PoolFile, Template};
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

use crate::{
    Refused, cli,
    output::{EventRow, Output},
};

/// How long an orderly end may take beyond the workers' own grace.
const END_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn run(client: &Client, args: cli::Run, out: &Output) -> anyhow::Result<()> {
    let specs = specs(&args)?;
    let owner = match &args.owner {
        Some(owner) => owner.clone(),
        None => format!(
            "run-{}@{}",
            std::process::id(),
            rustix::system::uname().nodename().to_string_lossy()
        ),
    };
    let options = SessionOptions {
        ttl: args.ttl,
        ..SessionOptions::default()
    };
    let session = client.open_session(owner.parse()?, options).await?;
    let mut watched = Watched::begin(client, &specs, out).await?;
    // From here on the session is ended in good order, whatever else goes wrong.
    let ended = own(client, &session, &specs, &args, &mut watched).await;
    if ended.is_ok() || !is_lost(&ended) {
        session
            .close()
            .await
            .context("cannot say goodbye; the owner's lease will run out instead")?;
        watched.until_ended(client).await?;
    }
    ended
}

/// The session was lost: there is nothing to say goodbye to.
fn is_lost(ended: &anyhow::Result<()>) -> bool {
    ended
        .as_ref()
        .is_err_and(|error| error.downcast_ref::<tether_client::Lost>().is_some())
}

fn specs(args: &cli::Run) -> anyhow::Result<Vec<PoolSpec>> {
    if let Some(path) = &args.file {
        let (file, base) = PoolFile::read(path).map_err(Refused)?;
        return file.specs(&base, args.pool.as_deref());
    }
    let (command, rest) = args
        .command
        .split_first()
        .ok_or_else(|| anyhow!("no command is given"))?;
    let here = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let template = Template {
        command: command.clone(),
        args: rest.to_vec(),
        cwd: here.display().to_string(),
        ..Template::default()
    };
    let pool = Pool {
        mode: args.mode.clone(),
        size: args.count,
        ..Pool::default()
    };
    let name = args
        .pool
        .clone()
        .unwrap_or_else(|| format!("run-{}", std::process::id()));
    Ok(vec![pool.to_wire(&name, Some(&template), &here)])
}

async fn own(
    client: &Client,
    session: &Session,
    specs: &[PoolSpec],
    args: &cli::Run,
    watched: &mut Watched<'_>,
) -> anyhow::Result<()> {
    let stop = tether_kit::stop::on_signals()?;
    for spec in specs {
        let request = ApplyPoolRequest {
            pool: Some(spec.clone()),
            owner: session.owner().to_string(),
            epoch: session.epoch().0,
        };
        let pool = client
            .pools()
            .apply_pool(request)
            .await
            .map_err(Problem::from)?
            .into_inner()
            .pool;
        let why = pool.map(|pool| pool.mode_why).unwrap_or_default();
        if !why.is_empty() && !watched.out.is_json() {
            watched.out.line(&why)?;
        }
    }
    let deadline = Instant::now() + args.ready_timeout;
    let mut ready = watched.all_ready(client).await?;
    loop {
        tokio::select! {
            event = watched.next() => {
                let gave_up = event?;
                if let Some(gave_up) = gave_up {
                    bail!("worker {}", gave_up);
                }
                if !ready {
                    ready = watched.all_ready(client).await?;
                }
            }
            lost = session.lost() => return Err(lost.into()),
            () = stop.cancelled() => return Ok(()),
            () = sleep_until(deadline), if !ready => {
                bail!("not all workers were ready within {:?}: `tether logs POOL/SLOT` shows what they wrote", args.ready_timeout);
            }
        }
    }
}

/// The pools of this command, and what happens to them.
struct Watched<'a> {
    names: Vec<String>,
    sizes: Vec<u32>,
    events: Streaming<WatchEventsResponse>,
    out: &'a Output,
}

impl<'a> Watched<'a> {
    /// Begins before anything is applied, so that nothing is missed.
    async fn begin(client: &Client, specs: &[PoolSpec], out: &'a Output) -> anyhow::Result<Self> {
        let all = WatchEventsRequest::default();
        let mut past = client
            .workers()
            .watch_events(all.clone())
            .await
            .map_err(Problem::from)?
            .into_inner();
        let mut after_revision = 0;
        while let Some(answer) = past.message().await.map_err(Problem::from)? {
            after_revision = answer.event.map_or(after_revision, |event| event.revision);
        }
        let request = WatchEventsRequest {
            after_revision,
            follow: true,
            ..all
        };
        let events = client
            .workers()
            .watch_events(request)
            .await
            .map_err(Problem::from)?
            .into_inner();
        Ok(Self {
            names: specs.iter().map(|spec| spec.name.clone()).collect(),
            sizes: specs.iter().map(|spec| spec.size).collect(),
            events,
            out,
        })
    }

    /// Prints the next event of these pools; tells the words for one that was given up.
    async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let answer = self.events.message().await.map_err(Problem::from)?;
            let event = answer
                .ok_or_else(|| anyhow!("the gateway ended the stream of events"))?
                .event;
            let Some(event) = event.filter(|event| self.is_ours(event)) else {
                continue;
            };
            self.out.item(&EventRow::new(&event))?;
            let worker = event.worker.clone().unwrap_or_default();
            let gave_up = event.kind() == EventKind::WorkerCrashLoop;
            return Ok(
                gave_up.then(|| format!("`{}/{}` was {}", worker.pool, worker.slot, event.text))
            );
        }
    }

    fn is_ours(&self, event: &Event) -> bool {
        event
            .worker
            .as_ref()
            .is_some_and(|worker| self.names.contains(&worker.pool))
    }

    async fn all_ready(&self, client: &Client) -> anyhow::Result<bool> {
        for (name, &size) in self.names.iter().zip(&self.sizes) {
            let request = GetPoolRequest { name: name.clone() };
            let pool = client
                .pools()
                .get_pool(request)
                .await
                .map_err(Problem::from)?
                .into_inner()
                .pool;
            if pool.is_none_or(|pool| pool.ready < size) {
                return Ok(false);
            }
        }
        if !self.out.is_json() {
            let total: u32 = self.sizes.iter().sum();
            self.out
                .line(&format!("ready: {total} of {total} workers; Ctrl-C ends"))?;
        }
        Ok(true)
    }

    /// Waits until the pools that end with their owner are gone; the others stay as their policy says.
    async fn until_ended(&mut self, client: &Client) -> anyhow::Result<()> {
        let deadline = Instant::now() + END_TIMEOUT;
        loop {
            let mut ending = false;
            for name in &self.names {
                match client
                    .pools()
                    .get_pool(GetPoolRequest { name: name.clone() })
                    .await
                {
                    // Only what was told to end is waited for.
                    Ok(answer) => {
                        ending |= answer.into_inner().pool.is_some_and(|pool| pool.ending)
                    }
                    Err(status) if status.code() == tonic::Code::NotFound => {}
                    Err(status) => return Err(Problem::from(status).into()),
                }
            }
            if !ending {
                return match self.out.is_json() {
                    true => Ok(()),
                    false => self
                        .out
                        .line("ended; workers that outlive their owner stay as their policy says"),
                };
            }
            let mut events = std::pin::pin!(self.events.message());
            tokio::select! {
                event = &mut events => {
                    if let Some(event) = event.map_err(Problem::from)?.and_then(|answer| answer.event)
                        && self.names.iter().any(|name| event.worker.as_ref().is_some_and(|worker| worker.pool == *name))
                    {
                        self.out.item(&EventRow::new(&event))?;
                    }
                }
                () = sleep_until(deadline) => bail!("some workers did not end within {END_TIMEOUT:?}; `tether ps` shows them"),
            }
        }
    }
}
