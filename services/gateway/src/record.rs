//! What is noted of a call while it goes on: how far it has got, and for whoever watches calls also who had it.
//!
//! Each call is a task, and its record belongs to the task, so that whatever happens to the call can be noted where it
//! happens. A record costs a few bytes; what only those need who watch is there only while somebody does.

mod tail;

use std::cell::{Cell, RefCell};

use tether_types::WorkerId;

use crate::explain::Progress;

pub(crate) use tail::{Filter, Tail, unix_ms};

use tail::Trace;

tokio::task_local! {
    static RECORD: Record;
}

struct Record {
    progress: Cell<Progress>,
    trace: RefCell<Option<Box<Trace>>>,
}

/// Whose word was the last of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The worker's, passed on as it was.
    Answered,
    /// The gateway's.
    Failed,
}

/// Keeps a record of a call for as long as it lasts.
pub(crate) fn keep<F: Future>(call: F) -> impl Future<Output = F::Output> {
    let record = Record {
        progress: Cell::new(Progress::NeverSent),
        trace: RefCell::new(None),
    };
    RECORD.scope(record, call)
}

/// How far the call has got that this is asked by.
pub(crate) fn progress() -> Progress {
    RECORD
        .try_with(|record| record.progress.get())
        .unwrap_or(Progress::NeverSent)
}

/// The call goes to this worker.
pub(crate) fn on_worker(worker: &WorkerId) {
    note(|trace| trace.on_worker(worker));
}

/// It has got as far as that.
pub(crate) fn on_progress(progress: Progress) {
    let _ = RECORD.try_with(|record| record.progress.set(progress));
    if progress == Progress::SentUnknown {
        note(Trace::on_sent);
    }
}

/// Its caller is told this code.
pub(crate) fn on_end(code: u32, ended: Ended) {
    let outcome = match ended {
        Ended::Answered => tail::ANSWERED,
        Ended::Failed => progress().word(),
    };
    note(|trace| trace.on_end(code, outcome));
}

fn note(what: impl FnOnce(&mut Trace)) {
    let _ = RECORD.try_with(|record| {
        if let Some(trace) = record.trace.borrow_mut().as_mut() {
            what(trace);
        }
    });
}

fn follow(trace: Trace) {
    let _ = RECORD.try_with(|record| *record.trace.borrow_mut() = Some(Box::new(trace)));
}
