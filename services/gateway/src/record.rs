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

/// Where a call stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct At {
    /// The worker that has it, or had it last.
    pub(crate) worker: Option<WorkerId>,
    /// How many were tried.
    pub(crate) attempts: u32,
    now: Option<Progress>,
    before: Option<Progress>,
}

impl At {
    /// How far the call has got in the attempt in which it got furthest.
    pub(crate) fn progress(&self) -> Progress {
        self.now.max(self.before).unwrap_or(Progress::NeverSent)
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
    note(|record| {
        let at = &mut record.at;
        at.before = at.before.max(at.now.take());
        at.worker = Some(worker.clone());
        at.attempts += 1;
    });
}

/// It has got as far as that.
pub(crate) fn on_progress(progress: Progress) {
    note(|record| {
        record.at.now = Some(progress);
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
