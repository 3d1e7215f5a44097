//! What is under way for the BEAM: each by its id, until its one reply.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tether_port::{Call, Id, NIL, Term, UNSENT_MAX};
use tether_proto::Failure;
use tether_types::Reason;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    body::Piece,
    exchange::{self, Begun, Head},
    failure::{Failed, Outcome, headers, worker_of},
    link::Link,
    out::Out,
    owner::Owner,
};

/// Calls and streams that are under way; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    live: Arc<Mutex<HashMap<Id, Live>>>,
    begun: Arc<AtomicU64>,
    pub(crate) link: Link,
    pub(crate) owner: Owner,
    pub(crate) out: Out,
}

/// One of them.
#[derive(Debug)]
struct Live {
    /// How many began before it: an id may be used twice.
    number: u64,
    progress: Progress,
    /// Gives it up, and says why.
    end: oneshot::Sender<Failed>,
    /// Where the messages of a stream go, until the last.
    pieces: Option<mpsc::Sender<Piece>>,
    credit: Arc<Semaphore>,
}

/// How far something is, for who has to say it when it fails.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress(Arc<AtomicU8>);

impl Progress {
    pub(crate) fn set(&self, outcome: Outcome) {
        let step = match outcome {
            Outcome::NotSent => 0,
            Outcome::Unknown => 1,
            Outcome::Failed => 2,
        };
        self.0.store(step, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> Outcome {
        match self.0.load(Ordering::Relaxed) {
            0 => Outcome::NotSent,
            1 => Outcome::Unknown,
            _ => Outcome::Failed,
        }
    }
}

impl Calls {
    pub(crate) fn new(link: Link, owner: Owner, out: Out) -> Self {
        Self {
            live: Arc::default(),
            begun: Arc::default(),
            link,
            owner,
            out,
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Id, Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something under an id, and replies once it is done or not wanted any more.
    pub(crate) fn begin<F>(&self, id: Id, progress: Progress, work: F)
    where
        F: Future<Output = Result<Term, Failed>> + Send + 'static,
    {
        self.start(id, None, Arc::new(Semaphore::new(0)), progress, work);
    }

    pub(crate) fn start<F>(
        &self,
        id: Id,
        pieces: Option<mpsc::Sender<Piece>>,
        credit: Arc<Semaphore>,
        progress: Progress,
        work: F,
    ) where
        F: Future<Output = Result<Term, Failed>> + Send + 'static,
    {
        let (end, given_up) = oneshot::channel();
        let live = Live {
            number: self.begun.fetch_add(1, Ordering::Relaxed),
            progress,
            end,
            pieces,
            credit,
        };
        let calls = self.clone();
        let number = live.number;
        {
            let mut all = self.live();
            if all.contains_key(&id) {
                tracing::error!(id, "An id is used twice: the earlier call is given up");
                give_up(&mut all, id, |progress| Failed::cancelled(progress.get()));
            }
            all.insert(id, live);
        }
        tokio::spawn(async move {
            let answer = tokio::select! {
                biased;
                // What is given up may also fail for that.
                Ok(why) = given_up => Err(why),
                answer = work => answer,
            };
            calls.over(id, number);
            calls.out.reply(id, answer).await;
        });
    }

    /// What this id is of is over, where it is not another's by now.
    fn over(&self, id: Id, number: u64) {
        let mut all = self.live();
        if all.get(&id).is_some_and(|live| live.number == number) {
            all.remove(&id);
        }
    }

    /// A call with one message and one answer.
    pub(crate) fn call(&self, id: Id, call: Call, body: Bytes) {
        let (calls, progress) = (self.clone(), Progress::default());
        self.begin(id, progress.clone(), async move {
            let mut head = Head::of(call)?;
            let deadline = head.deadline();
            let work = async {
                calls.owner.sign(&mut head).await?;
                exchange::unary(&calls.link, &head, &body, &progress).await
            };
            let (head, body, trailers) = exchange::in_time(deadline, work, &progress).await?;
            let worker = worker_of(&head);
            Ok(Term::map([
                ("body", Term::Binary(body)),
                ("metadata", headers(head)),
                ("trailers", headers(trailers)),
                ("worker", worker.unwrap_or(NIL)),
            ]))
        });
    }

    /// A call whose messages follow.
    pub(crate) fn stream(&self, id: Id, call: Call) {
        let (calls, progress) = (self.clone(), Progress::default());
        let (given, pieces) = mpsc::channel(UNSENT_MAX + 1);
        // For as many as the BEAM has said that it takes, none at first.
        let credit = Arc::new(Semaphore::new(0));
        let taken = Arc::clone(&credit);
        self.start(id, Some(given), credit, progress.clone(), async move {
            let mut head = Head::of(call)?;
            let deadline = head.deadline();
            let work = async {
                calls.owner.sign(&mut head).await?;
                let (next, goes_on) = mpsc::channel(1);
                let answered = async {
                    let begun =
                        exchange::send_pieces(&calls.link, &head, goes_on, &progress).await?;
                    calls.pass_on(id, begun, &taken).await
                };
                tokio::pin!(answered);
                tokio::select! {
                    answer = &mut answered => return answer,
                    () = calls.send_on(id, pieces, next) => {}
                }
                answered.await
            };
            exchange::in_time(deadline, work, &progress).await
        });
    }

    /// Gives messages to the call as it takes them, and tells the BEAM.
    async fn send_on(&self, id: Id, mut pieces: mpsc::Receiver<Piece>, next: mpsc::Sender<Piece>) {
        while let Some(piece) = pieces.recv().await {
            let is_last = matches!(piece, Piece::End);
            if next.send(piece).await.is_err() {
                // It has heard enough, and its answer says so.
                std::future::pending::<()>().await;
            }
            if is_last {
                return;
            }
            self.out.tell("sent", id, Term::from(1_u32)).await;
        }
        // Given up without a last word: the call hears of that when this is dropped.
    }

    /// Gives answers to the BEAM as it takes them.
    async fn pass_on(&self, id: Id, mut begun: Begun, credit: &Semaphore) -> Result<Term, Failed> {
        let worker = worker_of(&begun.head);
        self.out
            .tell("headers", id, headers(begun.head.clone()))
            .await;
        while let Some(message) = begun.next().await? {
            take(credit).await?;
            self.out.tell("message", id, Term::Binary(message)).await;
        }
        let ended = begun.end()?;
        Ok(Term::map([
            ("trailers", headers(ended.trailers)),
            ("worker", worker.unwrap_or(NIL)),
        ]))
    }

    /// A message of a stream, or the last word of it.
    pub(crate) fn send(&self, id: Id, piece: Piece) {
        let mut live = self.live();
        let Some(stream) = live.get_mut(&id) else {
            // It is over, and the BEAM has not heard of that when it sent this.
            return;
        };
        let Some(pieces) = &stream.pieces else {
            return;
        };
        let is_last = matches!(piece, Piece::End);
        match pieces.try_send(piece) {
            Ok(()) if is_last => stream.pieces = None,
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                give_up(&mut live, id, |_| too_fast());
            }
        }
    }

    /// So many more messages can be taken.
    pub(crate) fn credit(&self, id: Id, more: u64) {
        if let Some(stream) = self.live().get(&id) {
            let more = usize::try_from(more).unwrap_or(usize::MAX);
            let room = Semaphore::MAX_PERMITS - stream.credit.available_permits();
            stream.credit.add_permits(more.min(room));
        }
    }

    /// It is not wanted any more.
    pub(crate) fn cancel(&self, id: Id) {
        give_up(&mut self.live(), id, |progress| {
            Failed::cancelled(progress.get())
        });
    }

    /// Replies without doing anything; what is under way with this id ends with that reply.
    pub(crate) fn refuse(&self, id: Id, why: Failed) {
        let mut live = self.live();
        if live.contains_key(&id) {
            return give_up(&mut live, id, |progress| why.after(progress.get()));
        }
        drop(live);
        let out = self.out.clone();
        tokio::spawn(async move { out.reply(id, Err(why)).await });
    }
}

/// Waits for the credit of one more answer.
pub(crate) async fn take(credit: &Semaphore) -> Result<(), Failed> {
    match credit.acquire().await {
        Ok(one) => {
            one.forget();
            Ok(())
        }
        Err(_) => Err(Failed::internal("no credit is given any more")),
    }
}

/// Has what is under way end, and reply why.
fn give_up(live: &mut HashMap<Id, Live>, id: Id, why: impl FnOnce(&Progress) -> Failed) {
    if let Some(live) = live.remove(&id) {
        // What has just ended by itself has replied.
        let _ = live.end.send(why(&live.progress));
    }
}

fn too_fast() -> Failed {
    let text = format!(
        "more than {UNSENT_MAX} messages of one stream were given before they went on; wait for `sent`"
    );
    Failed::here(Failure::new(Reason::Overloaded, text), Outcome::Unknown)
}
