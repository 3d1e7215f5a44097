//! The program that Snakepit starts for each worker: it owns a pool of one, says where the worker serves, and ends with
//! the worker's code.

mod asking;

use std::{
    env,
    ffi::OsString,
    io::{self, Read as _},
    os::unix::process::CommandExt as _,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use tether_client::{Client, Session};
use tether_kit::stop::on_signals;
use tether_proto::{
    common::WorkerPhase,
    worker::{Event, EventKind, Worker},
};
use tether_settings::{Connect, Listen, Place as Where, Whereabouts};
use tether_types::Death;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use asking::{open_session, within};

use crate::{
    OWN, Refusal,
    attach::{Attach, End, Word},
    berth::Berth,
    outward::{announce, told},
    pool, pulse, python,
    request::{self, Here, Mode, Request},
    story::Story,
};

/// Longer than the arbiter takes to hear of a death, also where it has to come back first.
const DEATH_WAIT: Duration = Duration::from_secs(20);

/// Between two looks at a worker that cannot be heard: an event may be missed, or never come. Hundreds may look at once.
const LOOK: Duration = Duration::from_secs(20);

/// Before the first look at one that could be heard until then.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// How long is spent on leaving nothing behind, once the worker is gone.
const TIDY_WAIT: Duration = Duration::from_secs(2);

/// How long the arbiter has to hear that a worker is not wanted any more, where this program's end is its end anyway.
const PARTING_WAIT: Duration = Duration::from_millis(100);

/// What a shell tells of a process that was ended by SIGTERM.
const TERMINATED: u8 = 128 + 15;

/// Goes on as [`own`] under a command line that says nothing of a run or an instance: by those a BEAM that starts
/// looks for processes to kill, also for those of another application. Comes back only where that cannot be.
pub(crate) fn begin(args: &[OsString]) -> anyhow::Error {
    let become_it = || {
        let own = env::current_exe()?;
        let error = Command::new(own)
            .arg(OWN)
            .args(request::shown(args))
            .env(request::ARGS, serde_json::to_string(args)?)
            .exec();
        Err::<(), _>(error)
    };
    let error = become_it()
        .err()
        .map_or_else(|| anyhow!("nothing was run"), anyhow::Error::from);
    error.context("cannot go on as another program")
}

/// Owns a worker from here to its end; tells the status to exit with.
///
/// # Errors
/// Where there is no worker, or it is another's.
pub(crate) fn own() -> anyhow::Result<u8> {
    let args = env::var(request::ARGS).context("`--tether-own` is for Tether's own use")?;
    let args: Vec<OsString> = serde_json::from_str(&args)?;
    let here = Here {
        python: python::find()?,
        cwd: env::current_dir().context("the current directory is gone")?,
        env: env::vars_os().collect(),
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        uid: rustix::process::getuid().as_raw(),
    };
    let request = Request::read(&args, here)?;
    if request.own_group {
        // Fails where it leads one already, which is as good.
        let _ = rustix::process::setsid();
    }
    let runtime = crate::runtime().context("cannot begin")?;
    runtime.block_on(Owner::run(&request))
}

struct Owner<'a> {
    request: &'a Request,
    client: Client,
    session: Session,
    berth: Berth,
}

/// Why to end before the worker does.
#[derive(Debug, Clone, Copy)]
enum Stopped {
    /// Somebody asked for it, by SIGTERM or SIGINT.
    Ordered,
    /// Standard input is at its end: the BEAM is gone, or has closed its port.
    Alone,
}

impl Stopped {
    /// What to end with where there is no worker yet.
    fn status(self, mode: Mode) -> u8 {
        match (self, mode) {
            (Self::Alone, Mode::Independent) => 0,
            (Self::Alone, Mode::Coupled) | (Self::Ordered, _) => TERMINATED,
        }
    }
}

/// A worker that was asked for.
struct Begun {
    story: Story,
    /// Whether it lived before.
    adopts: bool,
    /// The incarnation that was there before.
    known: u64,
    ready: bool,
}

/// What came of having a worker.
#[derive(Debug)]
enum Outcome {
    /// It is gone.
    Ended(u8),
    /// It lives on, for the next program to adopt.
    Left,
    /// It ends with this program.
    Abandoned,
    /// One that lived here before ended before anybody could use it.
    Stale,
}

impl Owner<'_> {
    async fn run(request: &Request) -> anyhow::Result<u8> {
        let (stop, beam) = (on_signals()?, end_of_input());
        let at = Whereabouts::new(&Listen::default(), &Connect::default())?;
        let gateway = match env::var("TETHER_GATEWAY") {
            Ok(text) if !text.is_empty() => text
                .parse()
                .map_err(|error| Refusal::Config(format!("`TETHER_GATEWAY`: {error}")))?,
            _ => at.find(Where::Gateway)?,
        };
        let adopts = matches!(request.mode, Mode::Independent);
        let base = at.runtime().join("snakepit");
        let berth = Berth::claim(&base, request.key, adopts)
            .with_context(|| format!("cannot use `{}`", base.display()))?;
        let client = Client::connect(&gateway);
        let stopped = async || {
            tokio::select! {
                () = stop.cancelled() => Stopped::Ordered,
                () = beam.cancelled() => Stopped::Alone,
            }
        };
        let name = pool::name(&berth);
        let opened = tokio::select! {
            opened = open_session(&client, &name, request.timeout) => opened,
            why = stopped() => return Ok(why.status(request.mode)),
        };
        let session = match opened {
            Err(problem) if matches!(problem.code, Code::Unavailable | Code::DeadlineExceeded) => {
                return Err(Refusal::Unavailable(format!(
                    "no gateway serves at `{gateway}`, so there is nobody to start the worker: start `tether up` on this machine, or name another gateway with TETHER_GATEWAY, or set python_executable back to the real Python ({problem})"
                ))
                .into());
            }
            opened => opened?,
        };
        let own = Owner {
            request,
            client,
            session,
            berth,
        };
        let owned = async {
            loop {
                let stopped = std::pin::pin!(stopped());
                match Box::pin(own.have_one(stopped)).await? {
                    Outcome::Stale => {}
                    outcome => return anyhow::Ok(outcome),
                }
            }
        };
        let beam = &request.elixir_address;
        let pulse = pulse::follow(beam, pool::pulse(request), |answers| {
            own.session.hold_back(!answers);
        });
        let outcome = tokio::select! {
            outcome = owned => outcome?,
            () = pulse => unreachable!("it asks for as long as there is a session"),
            lost = own.session.lost() => return Err(Refusal::Lost(format!(
                "`{}` is not ours any more: {lost}", own.session.owner()
            )).into()),
        };
        match outcome {
            Outcome::Ended(code) => {
                let _ = timeout(TIDY_WAIT, own.tidy()).await;
                Ok(code)
            }
            Outcome::Abandoned => Ok(TERMINATED),
            Outcome::Left | Outcome::Stale => Ok(0),
        }
    }

    /// Has the worker of this berth, adopted or new, until it ends or is left.
    async fn have_one(
        &self,
        mut stopped: impl Future<Output = Stopped> + Unpin,
    ) -> anyhow::Result<Outcome> {
        let name = pool::name(&self.berth);
        let begun = tokio::select! {
            begun = self.begin(&name) => begun?,
            why = &mut stopped => {
                if let (Stopped::Alone, Mode::Independent) = (why, self.request.mode) {
                    return Ok(Outcome::Left);
                }
                // It may have been asked for already.
                if !self.dismiss(&name, why).await? {
                    return Ok(Outcome::Abandoned);
                }
                return Ok(Outcome::Ended(TERMINATED));
            }
        };
        let Begun {
            mut story,
            adopts,
            known,
            mut ready,
        } = begun;
        let of = |event: &Event| event.worker.as_ref().map_or(0, |worker| worker.incarnation);
        let is_ours = |number: u64| {
            if adopts {
                number == known
            } else {
                number > known
            }
        };
        let mut started = adopts;
        let mut serves = false;
        let mut stopping = false;
        let mut link: Option<End> = None;
        let mut deadline: Option<Instant> = None;
        let mut look = Instant::now() + LOOK;
        let (death, text) = loop {
            if std::mem::take(&mut ready) && !stopping {
                link = self.attach().await;
                deadline = match link {
                    Some(_) => None,
                    // It ends as it becomes ready: that is told by its death.
                    None => deadline.or_else(|| Some(Instant::now() + DEATH_WAIT)),
                };
            }
            tokio::select! {
                event = story.next() => match event.kind() {
                    EventKind::WorkerStarted if is_ours(of(&event)) => started = true,
                    EventKind::WorkerReady if is_ours(of(&event)) => ready = link.is_none(),
                    EventKind::WorkerDied | EventKind::WorkerCrashLoop if is_ours(of(&event)) => {
                        break (event.death, event.text);
                    }
                    _ => {}
                },
                seen = self.look(&name, look), if link.is_none() => {
                    look = Instant::now() + LOOK;
                    let Ok(seen) = seen else { continue };
                    let ours = seen.filter(|worker| is_ours(incarnation(worker)));
                    match ours.as_ref().map(Worker::phase) {
                        Some(WorkerPhase::Starting) => started = true,
                        Some(WorkerPhase::Ready) => (started, ready) = (true, true),
                        Some(WorkerPhase::Dead | WorkerPhase::CrashLoop) => {
                            break ours.map(|worker| (worker.last_death, worker.status)).unwrap_or_default();
                        }
                        // Its death is to be told yet.
                        _ if started => {
                            deadline.get_or_insert_with(|| Instant::now() + DEATH_WAIT);
                        }
                        _ => {}
                    }
                }
                word = next_word(&mut link) => match word {
                    Some(Word::Serves(port)) => {
                        let file = &self.request.ready_file;
                        announce(file, port).with_context(|| format!("cannot write `{}`", file.display()))?;
                        serves = true;
                    }
                    Some(Word::Fenced(epoch)) => return Err(Refusal::Lost(format!(
                        "`{name}` is not ours any more: another program with epoch {epoch} has taken it over"
                    )).into()),
                    None => {
                        link = None;
                        look = Instant::now() + FIRST_LOOK;
                        deadline.get_or_insert_with(|| Instant::now() + DEATH_WAIT);
                    }
                },
                why = &mut stopped, if !stopping => match (why, self.request.mode) {
                    (Stopped::Alone, Mode::Independent) => return Ok(Outcome::Left),
                    (Stopped::Alone, Mode::Coupled) | (Stopped::Ordered, _) => {
                        if !self.dismiss(&name, why).await? {
                            return Ok(Outcome::Abandoned);
                        }
                        if !started {
                            return Ok(Outcome::Ended(TERMINATED));
                        }
                        stopping = true;
                        deadline = Some(Instant::now() + Duration::from_millis(pool::GRACE_MS) + DEATH_WAIT);
                    }
                },
                () = until(deadline) => bail!("`{name}` does not answer, and nobody tells of its death: look at `tether ps` and `tether events`"),
            }
        };
        if adopts && !serves && !stopping {
            return Ok(Outcome::Stale);
        }
        let death = death.as_ref().map(Death::from);
        Ok(Outcome::Ended(told(&name, death.as_ref(), &text, stopping)))
    }

    /// Asks for the worker of this berth.
    async fn begin(&self, name: &str) -> anyhow::Result<Begun> {
        let story = within(Story::from_here(&self.client, name)).await?;
        let before = self.worker(name).await?;
        let lives =
            |worker: &Worker| matches!(worker.phase(), WorkerPhase::Starting | WorkerPhase::Ready);
        let adopts = matches!(self.request.mode, Mode::Independent)
            && before.as_ref().is_some_and(lives)
            && !self.berth.is_known_to(&self.request.run_id)
            && self.berth.has_worker();
        if !adopts {
            self.berth
                .write(&self.request.launch)
                .context("cannot write down what is to be started")?;
            // What is applied after it comes when the last of it is gone.
            self.delete(name).await?;
        }
        self.apply().await?;
        // From here on it is this BEAM's, also if there is no time to say so.
        self.berth
            .note(&self.request.run_id)
            .context("cannot write down whose it is")?;
        Ok(Begun {
            story,
            adopts,
            known: before.as_ref().map_or(0, incarnation),
            ready: adopts && before.is_some_and(|worker| worker.phase() == WorkerPhase::Ready),
        })
    }

    /// Has the worker end; false where nobody has taken that in time, and the end of this process has to do.
    async fn dismiss(&self, name: &str, why: Stopped) -> anyhow::Result<bool> {
        if let (Stopped::Alone, Mode::Coupled) = (why, self.request.mode) {
            let deleted = timeout(PARTING_WAIT, self.delete(name)).await;
            return Ok(matches!(deleted, Ok(Ok(()))));
        }
        self.delete(name).await?;
        Ok(true)
    }

    /// Tells the worker where the BEAM is.
    async fn attach(&self) -> Option<End> {
        let mut link = End::connect(&self.berth.relay()).await.ok()?;
        let attach = Attach {
            epoch: self.session.epoch().0,
            elixir_address: self.request.elixir_address.clone(),
        };
        link.say(&attach).await.ok()?;
        Some(link)
    }
}

/// Cancelled when standard input is at its end.
fn end_of_input() -> CancellationToken {
    let ended = CancellationToken::new();
    let told = ended.clone();
    // A thread of its own, since nothing else can wait for whatever standard input is. It ends with the process.
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut some = [0; 256];
        loop {
            match input.read(&mut some) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => break,
                Ok(_) | Err(_) => {}
            }
        }
        told.cancel();
    });
    ended
}

/// What the worker says next; none where it is gone, nothing ever where there is none.
async fn next_word(link: &mut Option<End>) -> Option<Word> {
    match link {
        Some(link) => link.next().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn incarnation(worker: &Worker) -> u64 {
    worker
        .worker
        .as_ref()
        .map_or(0, |worker| worker.incarnation)
}
