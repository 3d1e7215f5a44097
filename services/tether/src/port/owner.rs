//! The session in whose name everything is done: opened, kept while the BEAM runs, told of, closed.

use std::time::Duration;

use backon::BackoffBuilder as _;
use tether_client::{Acting, Client, Lost, Session, SessionOptions};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_port::{Hello, Pulse, Term};
use tether_proto::Failure;
use tether_types::{OwnerName, ProcessIdentity, Reason};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep,
};
use tonic::Status;

use super::{
    exchange::Head,
    failure::{Failed, Outcome},
    out::Out,
    way::Way,
};
use crate::run::{delays, may_pass};

/// How long nothing is looked at, at most.
const LOOK: Duration = Duration::from_secs(60);

/// Whose calls these are; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    name: String,
    stands: watch::Receiver<Stands>,
    bye: mpsc::Sender<oneshot::Sender<Result<(), Failed>>>,
}

#[derive(Debug, Clone)]
enum Stands {
    Coming,
    Open(Acting, u64),
    Over(Failure),
}

/// What is needed to keep a session.
pub(crate) struct Keeping {
    pub(crate) client: Client,
    pub(crate) way: Way,
    pub(crate) owner: OwnerName,
    pub(crate) ttl: Option<Duration>,
    pub(crate) heartbeat_timeout: Duration,
    pub(crate) beam: Option<ProcessIdentity>,
    /// When the BEAM beat last.
    pub(crate) beats: watch::Receiver<Option<Tick>>,
    pub(crate) out: Out,
}

impl Keeping {
    pub(crate) fn new(
        hello: &Hello,
        way: Way,
        beam: Option<ProcessIdentity>,
        beats: watch::Receiver<Option<Tick>>,
        out: Out,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::over(way.channel()),
            way,
            owner: hello.owner.parse()?,
            ttl: hello.ttl,
            heartbeat_timeout: hello.heartbeat_timeout,
            beam,
            beats,
            out,
        })
    }

    /// Opens the session, and keeps it for as long as this process runs.
    pub(crate) fn begin(self) -> Owner {
        let (told, stands) = watch::channel(Stands::Coming);
        let (bye, byes) = mpsc::channel(1);
        let name = self.owner.to_string();
        tokio::spawn(self.keep(told, byes));
        Owner { name, stands, bye }
    }

    async fn keep(
        self,
        told: watch::Sender<Stands>,
        mut byes: mpsc::Receiver<oneshot::Sender<Result<(), Failed>>>,
    ) {
        let opened = tokio::select! {
            opened = self.open() => opened,
            bye = byes.recv() => {
                told.send_replace(Stands::Over(closed()));
                if let Some(bye) = bye {
                    let _ = bye.send(Ok(()));
                }
                return;
            }
        };
        let session = match opened {
            Ok(session) => session,
            Err(refused) => return self.over(&refused, "closed", &told),
        };
        let pools = session.pools().iter().map(|pool| pool.as_str().into());
        let about = Term::map([
            ("epoch", session.epoch().0.into()),
            ("ttl", millis(session.ttl()).into()),
            ("pools", Term::List(pools.collect())),
        ]);
        self.out.soon(session_is("opened", about));
        told.send_replace(Stands::Open(session.acting(), session.epoch().0));
        let bye = tokio::select! {
            lost = session.lost() => return self.lost(&lost, &told),
            () = self.follow(&session) => return,
            bye = byes.recv() => bye,
        };
        told.send_replace(Stands::Over(closed()));
        let ended = session.close().await;
        if let Some(bye) = bye {
            let _ = bye.send(
                ended.map_err(|problem| Failed::from(Status::new(problem.code, problem.text))),
            );
        }
    }

    async fn open(&self) -> Result<Session, Lost> {
        let mut delays = delays().with_max_delay(Duration::from_millis(500)).build();
        loop {
            let options = SessionOptions {
                ttl: self.ttl,
                process: self.beam.clone(),
            };
            let problem = match self.client.open_session(self.owner.clone(), options).await {
                Ok(session) => return Ok(session),
                Err(problem) => problem,
            };
            let passes = may_pass(problem.reason, problem.code)
                || problem.reason == Some(Reason::StoreFailed);
            if !passes {
                return Err(match problem.reason {
                    Some(Reason::LeaseFenced) => Lost::Fenced(problem.text),
                    _ => Lost::Ended(problem.to_string()),
                });
            }
            tracing::info!(%problem, "The session cannot be opened yet");
            self.way.leave();
            tokio::time::sleep(delays.next().unwrap_or_default()).await;
        }
    }

    /// Of the arbiter and this side either may see first that the lease is over.
    fn lost(&self, lost: &Lost, told: &watch::Sender<Stands>) {
        self.over(lost, "lease_expired", told);
    }

    /// Tells the end, with this word for it but where there is another owner.
    fn over(&self, lost: &Lost, word: &'static str, told: &watch::Sender<Stands>) {
        let (word, reason) = match lost {
            Lost::Fenced(_) => ("fenced", Reason::LeaseFenced),
            Lost::Expired(_) | Lost::Ended(_) => (word, Reason::LeaseExpired),
        };
        tracing::error!(%lost, owner = %self.owner, "The session is lost");
        told.send_replace(Stands::Over(Failure::new(reason, lost.to_string())));
        let about = Term::map([
            ("reason", Term::Atom(word)),
            ("message", lost.to_string().into()),
        ]);
        self.out.soon(session_is("lost", about));
    }

    /// Tells how the session stands, and holds its beats back while the BEAM says nothing.
    async fn follow(&self, session: &Session) {
        let mut pulse = Pulse::new(self.heartbeat_timeout, session.ttl());
        let mut beats = self.beats.clone();
        let mut lease = session.lease();
        let (mut is_held, mut is_warned) = (false, false);
        loop {
            if let Some(beat) = *beats.borrow_and_update() {
                pulse.on_beat(beat);
            }
            let now = BootClock.now();
            let holds = !pulse.check(now);
            session.hold_back(holds);
            match (is_held, holds) {
                (false, true) => tracing::warn!(
                    "The BEAM has not beaten for too long and may hang: its session is not renewed until it does"
                ),
                (true, false) => tracing::warn!("The BEAM beats again, and its session is renewed"),
                _ => {}
            }
            is_held = holds;
            lease.borrow_and_update();
            let (left, half) = (session.remaining(), session.ttl() / 2);
            let is_fine = left > half;
            match (is_warned, is_fine) {
                (false, false) => {
                    let about = Term::map([("remaining", millis(left).into())]);
                    self.out.soon(session_is("warning", about));
                    // Nobody answers beats that are made: the gateway may be there, and its arbiter not.
                    if !is_held {
                        self.way.leave();
                    }
                }
                (true, true) => {
                    let about = Term::map([("ttl", millis(session.ttl()).into())]);
                    self.out.soon(session_is("renewed", about));
                }
                _ => {}
            }
            is_warned = !is_fine;
            let next = pulse.next_deadline().filter(|_| !is_held);
            let next = next.map_or(Duration::MAX, |next| next.since(now));
            let next = if is_fine { next.min(left - half) } else { next };
            // To the next millisecond, for what is told of time is no finer.
            let next = next.min(LOOK).max(Duration::from_millis(1));
            tokio::select! {
                changed = beats.changed() => if changed.is_err() { return },
                changed = lease.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = sleep(next) => {}
            }
        }
    }
}

impl Owner {
    /// Waits until there is a session.
    ///
    /// # Errors
    /// When it is over.
    pub(crate) async fn epoch(&self) -> Result<(&str, u64), Failed> {
        let mut stands = self.stands.clone();
        let is_known = |stands: &Stands| !matches!(stands, Stands::Coming);
        let stands = stands.wait_for(is_known).await;
        let refused = |failure| Err(Failed::here(failure, Outcome::NotSent));
        match stands.as_deref() {
            Ok(Stands::Open(acting, epoch)) => match acting.check() {
                Ok(()) => Ok((&self.name, *epoch)),
                Err(failure) => refused(failure),
            },
            Ok(Stands::Over(failure)) => refused(failure.clone()),
            Ok(Stands::Coming) | Err(_) => refused(closed()),
        }
    }

    /// Says in a call in whose name it is made.
    pub(crate) async fn sign(&self, head: &mut Head) -> Result<(), Failed> {
        let (owner, epoch) = self.epoch().await?;
        head.set("tether-owner", owner)?;
        head.set("tether-epoch", epoch.to_string())
    }

    /// Says goodbye.
    pub(crate) async fn close(&self) -> Result<(), Failed> {
        let (bye, ended) = oneshot::channel();
        if self.bye.send(bye).await.is_err() {
            // It is lost: there is nothing to say goodbye to.
            return Ok(());
        }
        ended
            .await
            .unwrap_or_else(|_| Err(Failed::internal("the session is gone")))
    }
}

fn closed() -> Failure {
    Failure::new(Reason::LeaseExpired, "the session is closed")
}

fn session_is(how: &'static str, about: Term) -> Term {
    Term::tagged("session", [Term::Atom(how), about])
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
