//! A call that is made at a second worker where the first takes long, for whichever answers first.

use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use futures::future::Either;
use http::request::Parts;
use tether_endpoints::Ask;
use tether_types::PoolName;

use crate::{
    answer::Answer,
    attempt::{Attempt, Failed},
    call::Call,
    deadline::Deadline,
    explain::Progress,
    forward::Forwarder,
    pump::Source,
    repeat::{self, Last, Tries},
    slots::Sender,
    upstream::Upstream,
};

/// A call to a pool, with what is known of it so far.
pub(crate) struct Hedge<'a> {
    /// When it is made at a second worker.
    pub(crate) after: Duration,
    pub(crate) pool: &'a PoolName,
    pub(crate) ask: &'a mut Ask,
    pub(crate) tries: &'a mut Tries,
    pub(crate) head: &'a Parts,
    pub(crate) deadline: Deadline,
}

impl Forwarder {
    /// Sends a call, and waits for its answer, after a while for that of another worker too. Whatever is not the answer
    /// is given up by being dropped.
    pub(crate) async fn hedged(
        &self,
        sender: Sender,
        call: Call,
        source: Source,
        at: Hedge<'_>,
    ) -> Result<Answer, Failed> {
        let deadline = at.deadline;
        let mut first = self.begin(sender, call, &mut at.head.clone(), source, deadline)?;
        let soon = tokio::time::timeout(at.after, poll_fn(|cx| first.poll(cx)));
        match deadline.bound(soon).await {
            Err(late) => return Err(first.late(late)),
            Ok(Ok(polled)) => return first.end(polled, deadline, true),
            Ok(Err(_)) => {}
        }
        let may = at.tries.made() < self.config.max_attempts.get();
        let second = may.then(|| self.second(&first, at.pool, at.ask)).flatten();
        let Some((call, upstream, source)) = second else {
            return first.answer(deadline, true).await;
        };
        if let Some((worker, _)) = call.at() {
            at.tries.begin(worker);
        }
        let tries = at.tries;
        // The second was given the key too, and its time here ends with the first one's answer.
        let claim = first.call.claim();
        let won = |ended: Result<Answer, Failed>| {
            if let (Ok(_), Some(claim)) = (&ended, &claim) {
                self.directory.on_won(claim);
            }
            ended
        };
        first.call.on_attempts(tries.made());
        let mut head = at.head.clone();
        repeat::count(&mut head.headers);
        let mut second = Box::pin(self.at_second(call, &upstream, head, source, deadline, tries));
        let raced = poll_fn(|cx| match first.poll(cx) {
            Poll::Ready(polled) => Poll::Ready(Either::Left(polled)),
            Poll::Pending => second.as_mut().poll(cx).map(Either::Right),
        });
        match deadline.bound(raced).await {
            Err(late) => Err(first.late(late)),
            Ok(Either::Right(Some(answer))) => {
                first.call.on_late();
                Ok(answer)
            }
            Ok(Either::Right(None)) => won(first.answer(deadline, true).await),
            Ok(Either::Left(polled)) => match first.end(polled, deadline, true) {
                Err(failed @ (Failed::Ended(_) | Failed::Unavailable(_))) => {
                    second.await.ok_or(failed)
                }
                ended => won(ended),
            },
        }
    }

    /// A second worker for a call, where the first may go on without it.
    fn second(
        &self,
        first: &Attempt,
        pool: &PoolName,
        ask: &mut Ask,
    ) -> Option<(Call, Arc<Upstream>, Source)> {
        let source = first.copy()?;
        ask.tried
            .extend(first.call.at().map(|(worker, _)| worker.clone()));
        let chosen = self
            .directory
            .spare(pool, ask, self.config.retries.terms())?;
        ask.tried.push(chosen.ticket.worker().clone());
        let (call, upstream) = self.call(chosen, first.call.attempt() + 1, first.call.limit());
        Some((call, upstream, source))
    }

    /// Makes a call once more. Where that fails the first decides, and what is told.
    async fn at_second(
        &self,
        mut call: Call,
        upstream: &Upstream,
        mut head: Parts,
        source: Source,
        deadline: Deadline,
        tries: &mut Tries,
    ) -> Option<Answer> {
        let sender = match upstream.ready().await {
            Ok(sender) => sender,
            Err(error) => {
                let worker = call.at()?.0.clone();
                let explanation = Box::pin(call.unreachable(error));
                tries.failed(Progress::NeverSent, &worker, Last::Failure(explanation));
                return None;
            }
        };
        let worker = call.at()?.0.clone();
        match self
            .send(sender, call, &mut head, source, deadline, true)
            .await
        {
            Ok(answer) => Some(answer),
            Err(Failed::Ended(ended)) => {
                tries.ended(*ended);
                None
            }
            Err(Failed::Unavailable(said)) => {
                tries.failed(Progress::Started, &worker, Last::Answer(Box::new(said.0)));
                None
            }
            Err(Failed::Late(late)) => {
                tries.late(*late);
                None
            }
            Err(Failed::Said(_)) => None,
        }
    }
}
