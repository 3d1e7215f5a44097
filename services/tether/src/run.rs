//! `tether run`: this process owns pools for as long as it runs.

use std::{fmt, future::pending, path::PathBuf, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use backon::{BackoffBuilder as _, ExponentialBuilder, Retryable as _};
use tether_client::{Client, Problem, Session, SessionOptions, Standing};
use tether_proto::{
    pool::{ApplyPoolRequest, GetPoolRequest, Pool as LivePool, PoolSpec},
    worker::{Event, EventKind, WatchEventsRequest, WatchEventsResponse},
};
use tether_settings::{Pool, PoolFile, Template};
use tether_types::{Death, DeathCause, Reason};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Response, Status, Streaming};

use crate::{
    Refused, cli,
    output::{EventRow, Output},
};

/// Lines of a worker's standard error that are shown when it is given up.
const TAIL_LINES: usize = 20;

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
    let ended = own(&session, &specs, &args, &mut watched).await;
    if is_lost(&ended) {
        return ended;
    }
    let closed = async {
        session
            .close()
            .await
            .context("cannot say goodbye; the owner's lease will run out instead")?;
        watched.until_ended().await
    };
    match (ended, closed.await) {
        (Ok(()), closed) => closed,
        (ended, Ok(())) => ended,
        // What went wrong first is what is to be told first.
        (Err(first), Err(second)) => Err(Both { first, second }.into()),
    }
}

/// Two things went wrong, the second one while the first was cleaned up after.
#[derive(Debug)]
pub(crate) struct Both {
    pub(crate) first: anyhow::Error,
    pub(crate) second: anyhow::Error,
}

impl fmt::Display for Both {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}; and then: {:#}", self.first, self.second)
    }
}

impl std::error::Error for Both {}

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

/// Holds the pools until it is told to stop, the session is lost or a worker is given up.
async fn own(
    session: &Session,
    specs: &[PoolSpec],
    args: &cli::Run,
    watched: &mut Watched<'_>,
) -> anyhow::Result<()> {
    let out = watched.out;
    let stop = tether_kit::stop::on_signals()?;
    let ready = CancellationToken::new();
    let too_late = async {
        let waited = timeout(args.ready_timeout, ready.cancelled()).await;
        if waited.is_ok() {
            pending::<()>().await;
        }
    };
    // One future for all of it: nothing that asks or waits keeps a lost session or a stop from being heard.
    let work = async {
        for spec in specs {
            watched.apply(session, spec).await?;
        }
        loop {
            if !ready.is_cancelled() && watched.all_ready().await? {
                ready.cancel();
            }
            if let Some(gave_up) = watched.next().await? {
                bail!(gave_up);
            }
        }
    };
    tokio::select! {
        ended = work => ended,
        lost = session.lost() => Err(anyhow::Error::from(lost).context(format!(
            "this command ends, as it owns nothing any more: what becomes of the workers of epoch {} is as their pools' policies say",
            session.epoch()
        ))),
        () = tell_standing(session, out) => Ok(()),
        () = stop.cancelled() => Ok(()),
        () = too_late => bail!(
            "not all workers were ready within {:?}: `tether logs POOL/SLOT` shows what they wrote",
            args.ready_timeout
        ),
    }
}

/// Tells how the session stands, until it is lost: that is told by another.
async fn tell_standing(session: &Session, out: Output) {
    let mut standing = session.standing();
    let mut before = *standing.borrow_and_update();
    while standing.changed().await.is_ok() {
        let now = *standing.borrow_and_update();
        match (before, now) {
            (Standing::Valid, Standing::Jeopardy | Standing::Stopping) => out.note(
                "the session is in jeopardy: no beat was answered for two thirds of its lease",
            ),
            (Standing::Jeopardy | Standing::Stopping, Standing::Valid) => {
                out.note("the session is safe again");
            }
            _ => {}
        }
        before = now;
    }
    pending::<()>().await;
}

/// How long to wait before each further try to reach the gateway.
pub(crate) fn delays() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .without_max_times()
        .with_jitter()
}

/// Whether a failure says that somebody on the way is away, who may come back: the workers live on their
/// leases meanwhile, and to give them up would kill them for nothing.
fn passes(status: &Status) -> bool {
    may_pass(tether_proto::reason_of(status), status.code())
}

/// The same of a failure that was read.
pub(crate) fn may_pass(reason: Option<Reason>, code: Code) -> bool {
    match reason {
        Some(reason) => matches!(
            reason,
            Reason::ArbiterUnreachable | Reason::NotLeader | Reason::Draining
        ),
        None => matches!(
            code,
            Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::Aborted
        ),
    }
}

/// Asks until there is an answer, or a refusal that will stay one.
async fn persist<T, F>(out: Output, ask: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut told = false;
    let answer = ask
        .retry(delays())
        .when(passes)
        .notify(|status, _| {
            if !std::mem::replace(&mut told, true) {
                out.note(&format!(
                    "the gateway is away, the workers live on meanwhile: {}",
                    Problem::from(status.clone())
                ));
            }
        })
        .await?;
    if told {
        out.note("the gateway is back");
    }
    Ok(answer.into_inner())
}

/// The pools of this command, and what happens to them.
struct Watched<'a> {
    client: &'a Client,
    names: Vec<String>,
    sizes: Vec<u32>,
    /// The last event heard of.
    revision: u64,
    events: Streaming<WatchEventsResponse>,
    out: Output,
}

impl<'a> Watched<'a> {
    /// Begins before anything is applied, so that nothing is missed.
    async fn begin(client: &'a Client, specs: &[PoolSpec], out: &Output) -> anyhow::Result<Self> {
        let all = WatchEventsRequest::default();
        let mut past = client
            .workers()
            .watch_events(all)
            .await
            .map_err(Problem::from)?
            .into_inner();
        let mut revision = 0;
        while let Some(answer) = past.message().await.map_err(Problem::from)? {
            revision = answer.event.map_or(revision, |event| event.revision);
        }
        let events = client
            .workers()
            .watch_events(after(revision))
            .await
            .map_err(Problem::from)?
            .into_inner();
        Ok(Self {
            client,
            names: specs.iter().map(|spec| spec.name.clone()).collect(),
            sizes: specs.iter().map(|spec| spec.size).collect(),
            revision,
            events,
            out: *out,
        })
    }

    async fn apply(&self, session: &Session, spec: &PoolSpec) -> anyhow::Result<()> {
        let request = ApplyPoolRequest {
            pool: Some(spec.clone()),
            owner: session.owner().to_string(),
            epoch: session.epoch().0,
        };
        // Applied twice is applied once: the arbiter compares it with what there is.
        let answer = persist(self.out, || {
            let (mut pools, request) = (self.client.pools(), request.clone());
            async move { pools.apply_pool(request).await }
        });
        let pool = answer.await.map_err(Problem::from)?.pool;
        let why = pool.map(|pool| pool.mode_why).unwrap_or_default();
        if !why.is_empty() && !self.out.is_json() {
            self.out.line(&why)?;
        }
        Ok(())
    }

    /// Prints the next event of these pools; tells the words for a worker that was given up.
    async fn next(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            let event = self.event().await?;
            if !self.is_ours(&event) {
                continue;
            }
            self.out.item(&EventRow::new(&event))?;
            return Ok((event.kind() == EventKind::WorkerCrashLoop).then(|| gave_up(&event)));
        }
    }

    /// The next event of all; a stream that broke is opened again after the last one heard.
    async fn event(&mut self) -> anyhow::Result<Event> {
        loop {
            match self.events.message().await {
                Ok(Some(WatchEventsResponse { event: Some(event) })) => {
                    self.revision = event.revision;
                    return Ok(event);
                }
                Ok(Some(_)) => {}
                Err(status) if !passes(&status) => return Err(Problem::from(status).into()),
                Ok(None) | Err(_) => self.reopen().await?,
            }
        }
    }

    async fn reopen(&mut self) -> anyhow::Result<()> {
        // A gateway that takes streams and drops them at once must not be asked without a pause.
        tokio::time::sleep(delays().build().next().unwrap_or_default()).await;
        let answer = persist(self.out, || {
            let (mut workers, request) = (self.client.workers(), after(self.revision));
            async move { workers.watch_events(request).await }
        });
        self.events = answer.await.map_err(Problem::from)?;
        Ok(())
    }

    fn is_ours(&self, event: &Event) -> bool {
        event
            .worker
            .as_ref()
            .is_some_and(|worker| self.names.contains(&worker.pool))
    }

    async fn pool(&self, name: &str) -> Result<Option<LivePool>, Status> {
        let answer = persist(self.out, || {
            let mut pools = self.client.pools();
            let name = name.to_owned();
            async move { pools.get_pool(GetPoolRequest { name }).await }
        });
        Ok(answer.await?.pool)
    }

    async fn all_ready(&self) -> anyhow::Result<bool> {
        for (name, &size) in self.names.iter().zip(&self.sizes) {
            let pool = self.pool(name).await.map_err(Problem::from)?;
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
    async fn until_ended(&mut self) -> anyhow::Result<()> {
        let ended = async {
            while self.are_ending().await? {
                let event = self.event().await?;
                if self.is_ours(&event) {
                    self.out.item(&EventRow::new(&event))?;
                }
            }
            anyhow::Ok(())
        };
        timeout(END_TIMEOUT, ended).await.map_err(|_| {
            anyhow!("some workers did not end within {END_TIMEOUT:?}; `tether ps` shows them")
        })??;
        match self.out.is_json() {
            true => Ok(()),
            false => self
                .out
                .line("ended; workers that outlive their owner stay as their policy says"),
        }
    }

    /// Only what was told to end is waited for.
    async fn are_ending(&self) -> anyhow::Result<bool> {
        for name in &self.names {
            match self.pool(name).await {
                Ok(pool) if pool.as_ref().is_some_and(|pool| pool.ending) => return Ok(true),
                Ok(_) => {}
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(Problem::from(status).into()),
            }
        }
        Ok(false)
    }
}

fn after(revision: u64) -> WatchEventsRequest {
    WatchEventsRequest {
        after_revision: revision,
        follow: true,
        ..WatchEventsRequest::default()
    }
}

/// Why a worker was given up, with what it wrote last: its pool ends with this command, and then there
/// are no logs to look at.
fn gave_up(event: &Event) -> String {
    let worker = event.worker.clone().unwrap_or_default();
    let mut text = format!(
        "worker `{}/{}` was {}",
        worker.pool, worker.slot, event.text
    );
    let Some(death) = event.death.as_ref().map(Death::from) else {
        return text;
    };
    text.push_str(&format!("; its last end: {}", death.cause));
    if !death.detail.is_empty() && !event.text.contains(&death.detail) {
        text.push_str(&format!(" ({})", death.detail));
    }
    let by_itself = matches!(
        death.cause,
        DeathCause::Exited(_) | DeathCause::Signaled(_) | DeathCause::NeverReady
    );
    let written: Vec<&str> = death.stderr_tail.trim_end().lines().collect();
    if by_itself && !written.is_empty() {
        text.push_str("; the last it wrote to its standard error:");
        for line in &written[written.len().saturating_sub(TAIL_LINES)..] {
            text.push_str("\n  | ");
            text.push_str(line);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use tether_proto::common::WorkerRef;

    use super::*;

    fn crash_loop(cause: DeathCause, stderr_tail: &str) -> Event {
        let death = Death {
            cause,
            exit_code: match cause {
                DeathCause::Exited(code) => Some(code),
                _ => None,
            },
            signal: None,
            detail: "it said why".to_owned(),
            stderr_tail: stderr_tail.to_owned(),
            measures: None,
        };
        Event {
            kind: EventKind::WorkerCrashLoop.into(),
            worker: Some(WorkerRef {
                pool: "digits".to_owned(),
                slot: 3,
                incarnation: 9,
            }),
            death: Some((&death).into()),
            text: "given up: it dies again and again".to_owned(),
            ..Event::default()
        }
    }

    #[test]
    fn a_worker_that_is_given_up_leaves_its_last_words() {
        let written: String = (0..40).map(|line| format!("line {line}\n")).collect();

        let text = gave_up(&crash_loop(DeathCause::Exited(3), &written));

        let head = "worker `digits/3` was given up: it dies again and again; its last end: EXITED with code 3 (it said why); the last it wrote to its standard error:\n  | line 20\n";
        assert!(text.starts_with(head), "{text}");
        assert!(text.ends_with("\n  | line 39"), "{text}");
    }

    #[test]
    fn what_never_ran_has_no_last_words() {
        let text = gave_up(&crash_loop(DeathCause::SpawnFailed, ""));

        assert!(
            text.ends_with("its last end: SPAWN_FAILED (it said why)"),
            "{text}"
        );
    }

    #[test]
    fn only_what_can_come_back_is_asked_again() {
        assert!(passes(&Status::unavailable("nobody listens")));
        assert!(!passes(&Status::not_found("no such pool")));
        assert!(!passes(&Status::failed_precondition("fenced")));
    }
}
