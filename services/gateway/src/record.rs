//! What is noted of a call while it goes on: how far it has got and at which worker, and for whoever watches calls also
//! how long it took.
//!
//! Each call is a task, and its record belongs to the task, so that whatever happens to the call can be noted where it
//! happens. A record costs a few bytes; what only those need who watch is there only while somebody does.

mod tail;

use std::cell::RefCell;

use tether_types::WorkerId;

use crate::explain::Progress;

pub(crate) use tail::{Filter, Tail, unix_ms};

use tail::Trace;

tokio::task_local! {
    static RECORD: RefCell<Record>;
}

#[derive(Default)]
struct Record {
    at: At,
    trace: Option<Box<Trace>>,
}

/// Where a call stands: what its attempts have come to, two of which may be under way at a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct At {
    /// Most calls have one attempt, which needs no room elsewhere.
    first: Option<Attempt>,
    later: Vec<Attempt>,
    words: u32,
}

#[derive(Debug, Clone)]
struct Attempt {
    worker: WorkerId,
    progress: Progress,
    /// When there was last something to note of it: a later word has a higher number.
    noted: u32,
}

impl At {
    /// The worker of the attempt in which the call has got furthest.
    pub(crate) fn worker(&self) -> Option<&WorkerId> {
        self.furthest().map(|attempt| &attempt.worker)
    }

    /// How far it has got in that one.
    pub(crate) fn progress(&self) -> Progress {
        let furthest = self.furthest();
        furthest.map_or(Progress::NeverSent, |attempt| attempt.progress)
    }

    /// How many attempts there were.
    pub(crate) fn attempts(&self) -> u32 {
        u32::try_from(self.all().count()).unwrap_or(u32::MAX)
    }

    /// Of two that have got as far, the one that was noted last.
    fn furthest(&self) -> Option<&Attempt> {
        self.all()
            .max_by_key(|attempt| (attempt.progress, attempt.noted))
    }

    fn all(&self) -> impl Iterator<Item = &Attempt> {
        self.first.iter().chain(&self.later)
    }

    fn begin(&mut self, worker: &WorkerId) {
        self.words += 1;
        let attempt = Attempt {
            worker: worker.clone(),
            progress: Progress::NeverSent,
            noted: self.words,
        };
        match self.first {
            None => self.first = Some(attempt),
            Some(_) => self.later.push(attempt),
        }
    }

    /// The latest attempt at this worker has got as far as that: none is made at it while another one is under way.
    fn on_progress(&mut self, worker: &WorkerId, progress: Progress) {
        self.words += 1;
        let mut latest = self.later.iter_mut().rev().chain(&mut self.first);
        if let Some(attempt) = latest.find(|attempt| attempt.worker == *worker) {
            attempt.progress = progress;
            attempt.noted = self.words;
        }
    }
}

/// Whose word was the last of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// The worker's, passed on as it was.
    Worker,
    /// The gateway's.
    Gateway,
}

/// Keeps a record of a call for as long as it lasts.
pub(crate) fn keep<F: Future>(call: F) -> impl Future<Output = F::Output> {
    RECORD.scope(RefCell::default(), call)
}

/// Where the call stands that this is asked by.
pub(crate) fn at() -> At {
    let at = RECORD.try_with(|record| record.borrow().at.clone());
    at.unwrap_or_default()
}

/// The call goes to this worker.
pub(crate) fn on_worker(worker: &WorkerId) {
    note(|record| record.at.begin(worker));
}

/// It has got as far as that there.
pub(crate) fn on_progress(worker: &WorkerId, progress: Progress) {
    note(|record| {
        record.at.on_progress(worker, progress);
        if let Some(trace) = &mut record.trace
            && progress == Progress::SentUnknown
        {
            trace.on_sent();
        }
    });
}

/// Its caller is told this code.
pub(crate) fn on_end(code: u32, by: By) {
    note(|record| {
        let outcome = match by {
            By::Worker => tail::ANSWERED,
            By::Gateway => record.at.progress().word(),
        };
        if let Some(trace) = &mut record.trace {
            trace.on_end(code, outcome);
        }
    });
}

fn follow(trace: Trace) {
    note(|record| record.trace = Some(Box::new(trace)));
}

fn note(what: impl FnOnce(&mut Record)) {
    // What is not done for a call has no record.
    let _ = RECORD.try_with(|record| what(&mut record.borrow_mut()));
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(trace) = self.trace.take() {
            trace.tell(&self.at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attempt_that_got_furthest_is_told() {
        let worker = |text: &str| text.parse::<WorkerId>().unwrap();
        let (a, b) = (worker("p/0.1"), worker("p/1.1"));
        let mut at = At::default();
        let stands = |at: &At| (at.worker().cloned(), at.progress(), at.attempts());
        assert_eq!(stands(&at), (None, Progress::NeverSent, 0));

        at.begin(&a);
        at.on_progress(&a, Progress::SentUnknown);
        at.begin(&b);
        assert_eq!(stands(&at), (Some(a.clone()), Progress::SentUnknown, 2));
        at.on_progress(&b, Progress::SentUnknown);
        assert_eq!(at.worker(), Some(&b));
        at.on_progress(&a, Progress::Started);
        assert_eq!(stands(&at), (Some(a.clone()), Progress::Started, 2));

        // Made again at the same one, which has not begun with it this time.
        at.begin(&a);
        at.on_progress(&a, Progress::SentUnknown);
        at.on_progress(&a, Progress::Refused);
        assert_eq!(stands(&at), (Some(a), Progress::Started, 3));
    }
}
