//! Whether a call is made again after an attempt failed, and what its client is told where it is not.

use std::{pin::Pin, time::Duration};

use http::{HeaderMap, HeaderValue};
use tether_proto::Failure;
use tether_types::{PoolName, WorkerId};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    answer::Answer,
    attempt::{Ended, Failed, Late},
    call,
    deadline::Deadline,
    explain::{self, Progress},
    forward::Forwarder,
    pump::Source,
    record,
};

/// How long a worker asks to be left alone before the call is made again (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// How many attempts at a call there were before this one, for the worker to know (gRFC A6).
const PREVIOUS: &str = "grpc-previous-rpc-attempts";
/// How many attempts there were in all, for the client.
const ATTEMPTS: &str = "tether-attempts";

/// Why an attempt failed, once that is known.
pub(crate) type Explanation = Pin<Box<dyn Future<Output = Failure> + Send>>;

/// What a failed attempt left to tell.
pub(crate) enum Last {
    Failure(Explanation),
    /// A worker's own.
    Answer(Box<Answer>),
}

/// The attempts at a call so far.
#[derive(Default)]
pub(crate) struct Tries {
    made: u32,
    /// How far the call got in the attempt in which it got furthest, and where.
    furthest: Option<(Progress, WorkerId)>,
    /// What there is to tell of that one.
    last: Option<Last>,
}

impl Tries {
    pub(crate) fn made(&self) -> u32 {
        self.made
    }

    /// Another attempt is made.
    pub(crate) fn begin(&mut self, worker: &WorkerId) {
        self.made += 1;
        if self.is_furthest(Progress::NeverSent) {
            self.furthest = Some((Progress::NeverSent, worker.clone()));
        }
    }

    /// An attempt failed. What one of before may have done is not undone by it.
    pub(crate) fn failed(&mut self, progress: Progress, worker: &WorkerId, last: Last) {
        if self.note(progress, worker) || self.last.is_none() {
            self.last = Some(last);
        }
    }

    /// An attempt came to its end without an answer. Answers with its request, where that was kept.
    pub(crate) fn ended(&mut self, ended: Ended) -> Option<Source> {
        let Ended {
            mut call,
            error,
            again,
        } = ended;
        let (worker, progress) = call
            .at()
            .map(|(worker, progress)| (worker.clone(), progress))?;
        match call::is_turned_away(&error) {
            true => {
                let explanation = Box::pin(call.turned_away(error));
                self.failed(Progress::Refused, &worker, Last::Failure(explanation));
            }
            false => {
                let explanation = Box::pin(call.broken(error));
                self.failed(progress, &worker, Last::Failure(explanation));
            }
        }
        again
    }

    /// The deadline passed in an attempt. What is told is how far the call got in all of them.
    pub(crate) fn late(&mut self, late: Late) -> Status {
        if let Some((worker, progress)) = late.call.at() {
            self.note(progress, worker);
        }
        self.tell(late.failure).into()
    }

    /// An attempt is over; answers whether no other has got further. Whoever watches is told of the same one.
    fn note(&mut self, progress: Progress, worker: &WorkerId) -> bool {
        record::on_progress(worker, progress);
        let is_furthest = self.is_furthest(progress);
        if is_furthest {
            self.furthest = Some((progress, worker.clone()));
        }
        is_furthest
    }

    fn is_furthest(&self, progress: Progress) -> bool {
        let furthest = self.furthest.as_ref();
        furthest.is_none_or(|(furthest, _)| progress >= *furthest)
    }

    /// What there is to tell, to be told by whoever takes it.
    pub(crate) fn take(&mut self) -> Option<Last> {
        self.last.take()
    }

    /// Says in a failure how far the call got.
    pub(crate) fn tell(&self, failure: Failure) -> Failure {
        match &self.furthest {
            Some((progress, worker)) => explain::got(failure, worker, *progress, self.made),
            None => explain::untried(failure),
        }
    }

    /// Says in an answer of a worker how often the call was made, where that was more than once.
    pub(crate) fn mark(&self, mut answer: Answer) -> Answer {
        match &mut answer.rest {
            Some(rest) => rest.call.on_attempts(self.made),
            None if self.made > 1 => {
                answer.head.headers.insert(ATTEMPTS, self.made.into());
            }
            None => {}
        }
        answer
    }

    /// There is no further attempt.
    pub(crate) async fn end(mut self, deadline: Deadline) -> Result<Answer, Status> {
        match self.take() {
            Some(Last::Answer(answer)) => Ok(self.mark(*answer)),
            Some(Last::Failure(explanation)) => {
                let explained = deadline.bound(explanation).await;
                let failure = explained.unwrap_or_else(|late| late);
                Err(self.tell(failure).into())
            }
            None => Err(Status::internal("no worker was tried")),
        }
    }
}

impl Forwarder {
    /// Whether what a worker may have begun with is made once more. Answers with its request, and with the time to wait
    /// before that where the worker has asked for it.
    pub(crate) fn once_more(
        &self,
        pool: &PoolName,
        failed: Failed,
        repeatable: bool,
        worker: &WorkerId,
        tries: &mut Tries,
        deadline: Deadline,
    ) -> Option<(Source, Option<Duration>)> {
        let (again, pause) = match failed {
            Failed::Ended(ended) => (tries.ended(*ended), Some(None)),
            Failed::Unavailable(said) => {
                let (answer, again) = *said;
                let pause = pushback(&answer.head.headers);
                tries.failed(Progress::Started, worker, Last::Answer(Box::new(answer)));
                (again, pause)
            }
            Failed::Said(_) | Failed::Late(_) => return None,
        };
        let again = again.filter(Source::is_whole)?;
        let pause = pause?;
        let left = deadline
            .at()
            .map(|at| at.saturating_duration_since(Instant::now()));
        let may = repeatable
            && left.is_none_or(|left| left > pause.unwrap_or_default())
            && tries.made() < self.config.max_attempts.get()
            && self.directory.may_repeat(pool, self.config.retries.terms());
        may.then_some((again, pause))
    }
}

/// When a worker that answered that it cannot serve now may be asked again; `None` for never.
pub(crate) fn pushback(headers: &HeaderMap) -> Option<Option<Duration>> {
    let Some(value) = headers.get(PUSHBACK) else {
        return Some(None);
    };
    // A sign, or anything else that is no number of milliseconds, means never.
    let text = value.to_str().ok()?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let milliseconds = digits.then(|| text.parse().ok()).flatten()?;
    Some(Some(Duration::from_millis(milliseconds)))
}

/// Tells the next worker of one more attempt before, beside those that the client knows of.
pub(crate) fn count(headers: &mut HeaderMap) {
    let before = headers.get(PREVIOUS);
    let before = before.and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    let count = before.unwrap_or(0).saturating_add(1);
    headers.insert(PREVIOUS, HeaderValue::from(count));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(value: &str) -> Option<Option<Duration>> {
        let mut headers = HeaderMap::new();
        headers.insert(PUSHBACK, value.parse().unwrap());
        pushback(&headers)
    }

    #[test]
    fn a_worker_says_when_it_may_be_asked_again_or_never() {
        assert_eq!(pushback(&HeaderMap::new()), Some(None));
        assert_eq!(asked("0"), Some(Some(Duration::ZERO)));
        assert_eq!(asked("1500"), Some(Some(Duration::from_millis(1500))));
        for never in ["-1", "", "+5", "soon", "1.5", "99999999999999999999999"] {
            assert_eq!(asked(never), None, "{never}");
        }
    }

    #[test]
    fn attempts_of_the_client_count_too() {
        let mut headers = HeaderMap::new();
        count(&mut headers);
        assert_eq!(headers[PREVIOUS], "1");
        headers.insert(PREVIOUS, "4".parse().unwrap());
        count(&mut headers);
        assert_eq!(headers[PREVIOUS], "5");
    }

    #[tokio::test]
    async fn what_an_earlier_attempt_may_have_done_is_not_forgotten() {
        let worker = |text: &str| text.parse::<WorkerId>().unwrap();
        let why = |text: &'static str| -> Last {
            let failure = Failure::new(tether_types::Reason::WorkerDied, text);
            Last::Failure(Box::pin(async move { failure }))
        };
        let mut tries = Tries::default();
        tries.begin(&worker("a/0.1"));
        tries.failed(Progress::SentUnknown, &worker("a/0.1"), why("it died"));
        tries.begin(&worker("a/1.1"));
        tries.failed(Progress::NeverSent, &worker("a/1.1"), why("it is away"));

        let told = tries.end(Deadline::after(None)).await.unwrap_err();

        assert_eq!(told.message(), "it died");
        let shown = |key: &str| {
            told.metadata()
                .get(key)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(shown("tether-outcome"), "sent_unknown");
        assert_eq!(shown("tether-worker"), "a/0.1");
        assert_eq!(shown("tether-attempts"), "2");
    }
}
