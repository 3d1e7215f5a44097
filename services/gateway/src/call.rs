//! One forwarded call, whichever way it ends: what it holds is given back, what it says about its
//! worker is recorded, and its failure is explained.

use std::{future::Future, sync::Arc, task::Context, time::Duration};

use http::{HeaderMap, HeaderValue};
use tether_breaker::Outcome;
use tether_clock::{BootClock, Clock as _};
use tether_endpoints::{Claim, Ticket};
use tether_proto::Failure;
use tether_types::{Address, Reason, WorkerId};
use tonic::{Code, Status};

use crate::{
    answer,
    directory::Directory,
    explain::{self, Progress},
    record, route,
    slots::Slot,
    upload::Upload,
    wire::{self, Error},
};

/// A service of ours that calls are forwarded to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Control {
    Arbiter,
    Discovery,
}

/// Who serves a call.
#[derive(Debug)]
enum Server {
    Worker {
        directory: Arc<Directory>,
        worker: WorkerId,
        /// There until the call is over.
        ticket: Option<Ticket>,
        death_wait: Duration,
        /// Which attempt this is, from 1.
        attempt: u32,
        progress: Progress,
    },
    Control(Control, Address),
}

#[derive(Debug)]
pub(crate) struct Call {
    server: Server,
    limit: u32,
    /// Its place among the calls that the server takes at once over one connection.
    slot: Option<Slot>,
}

impl Call {
    pub(crate) fn to_worker(
        directory: Arc<Directory>,
        ticket: Ticket,
        attempt: u32,
        death_wait: Duration,
        limit: u32,
    ) -> Self {
        record::on_worker(ticket.worker());
        Self::new(
            Server::Worker {
                worker: ticket.worker().clone(),
                directory,
                ticket: Some(ticket),
                death_wait,
                attempt,
                progress: Progress::NeverSent,
            },
            limit,
        )
    }

    pub(crate) fn to_control(control: Control, address: Address, limit: u32) -> Self {
        Self::new(Server::Control(control, address), limit)
    }

    fn new(server: Server, limit: u32) -> Self {
        Self {
            server,
            limit,
            slot: None,
        }
    }

    /// The worker that serves it, and how far it is.
    pub(crate) fn at(&self) -> Option<(&WorkerId, Progress)> {
        match &self.server {
            Server::Worker {
                worker, progress, ..
            } => Some((worker, *progress)),
            Server::Control(..) => None,
        }
    }

    /// Says in a failure how far the call got.
    pub(crate) fn got(&self, failure: Failure) -> Failure {
        match &self.server {
            Server::Worker {
                worker,
                progress,
                attempt,
                ..
            } => explain::got(failure, worker, *progress, *attempt),
            Server::Control(..) => failure,
        }
    }

    /// So many attempts were made in all.
    pub(crate) fn on_attempts(&mut self, count: u32) {
        if let Server::Worker { attempt, .. } = &mut self.server {
            *attempt = count;
        }
    }

    /// Which attempt this is, from 1.
    pub(crate) fn attempt(&self) -> u32 {
        match self.server {
            Server::Worker { attempt, .. } => attempt,
            Server::Control(..) => 1,
        }
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    /// Passes on what there is of the request. Fails where it is given up, which says nothing about a worker.
    pub(crate) fn poll_upload(
        &self,
        cx: &mut Context<'_>,
        upload: Option<&mut Upload>,
    ) -> Result<(), Status> {
        match upload {
            None => Ok(()),
            Some(upload) => upload
                .poll(cx)
                .map_err(|why| self.got(why.explain(self.limit)).into()),
        }
    }

    /// The call is on its way to the server.
    pub(crate) fn on_sent(&mut self, slot: Slot) {
        self.slot = Some(slot);
        if let Server::Worker {
            ticket: Some(ticket),
            worker,
            progress,
            ..
        } = &mut self.server
        {
            *progress = Progress::SentUnknown;
            ticket.on_sent(BootClock.now());
            record::on_progress(worker, Progress::SentUnknown);
        }
    }

    /// The head of the server's answer is there. It says nothing of the worker yet: the failure may be in it, or behind it.
    pub(crate) fn on_head(&mut self, headers: &HeaderMap) {
        if let Server::Worker {
            worker,
            progress,
            ticket,
            directory,
            ..
        } = &mut self.server
        {
            *progress = Progress::Started;
            record::on_progress(worker, Progress::Started);
            if let Some(ticket) = ticket {
                // One that is refused out of hand says nothing of how long the work takes.
                let counts = answer::code_of(headers).is_none_or(|code| code == 0);
                directory.on_answered(ticket, counts);
            }
        }
    }

    /// Says in the head of an answer which worker gives it, where the call has a key: its caller may ask for that one.
    pub(crate) fn sign(&self, headers: &mut HeaderMap) {
        if let Server::Worker {
            ticket: Some(ticket),
            worker,
            ..
        } = &self.server
            && ticket.has_key()
        {
            if let Ok(worker) = HeaderValue::try_from(worker.to_string()) {
                headers.insert(route::WORKER, worker);
            }
            if ticket.has_moved() {
                headers.insert(route::AFFINITY, HeaderValue::from_static("moved"));
            }
        }
    }

    /// The server answered with this gRPC code.
    pub(crate) fn on_code(&mut self, code: u32) {
        if let Server::Worker {
            directory,
            ticket: Some(ticket),
            ..
        } = &mut self.server
        {
            directory.on_code(ticket, code);
        }
    }

    /// The server has ended the call, with this gRPC code.
    pub(crate) fn over(&mut self, code: u32) {
        if let Server::Worker {
            directory, ticket, ..
        } = &mut self.server
            && let Some(ticket) = ticket.take()
        {
            directory.over(ticket, code);
        }
    }

    /// It is known what the call says about its worker.
    pub(crate) fn on_outcome(&mut self, outcome: Outcome) {
        if let Server::Worker {
            directory,
            ticket: Some(ticket),
            ..
        } = &mut self.server
        {
            directory.on_outcome(ticket, outcome);
        }
    }

    /// What it comes to where another worker has the same call, and this one's answer counts.
    pub(crate) fn claim(&self) -> Option<Claim> {
        match &self.server {
            Server::Worker { ticket, .. } => ticket.as_ref()?.claim(),
            Server::Control(..) => None,
        }
    }

    /// Another worker's answer came first.
    pub(crate) fn on_late(&mut self) {
        if let Server::Worker {
            directory,
            ticket: Some(ticket),
            ..
        } = &mut self.server
        {
            directory.on_late(ticket);
        }
    }

    /// A message arrived. A worker on trial has passed with it: the rest of a stream may take hours.
    pub(crate) fn on_message(&mut self) {
        if let Server::Worker {
            ticket: Some(ticket),
            ..
        } = &self.server
            && ticket.is_probe()
        {
            self.on_outcome(Outcome::Success);
        }
    }

    /// The server could not be connected to, so it has not seen the call.
    pub(crate) fn unreachable(
        &mut self,
        error: crate::upstream::Error,
    ) -> impl Future<Output = Failure> + Send + use<> {
        self.on_outcome(Outcome::Failure);
        let source = self.source();
        async move {
            match source {
                Source::Control(control, address) => control.unreachable(&address, &error),
                Source::Worker(at) => {
                    let (worker, attempts) = (&at.worker, at.attempt);
                    match at.directory.death(worker, at.death_wait).await {
                        Some(death) => explain::died(worker, &death, Progress::NeverSent, attempts),
                        None => explain::unreachable(worker, &error, attempts),
                    }
                }
            }
        }
    }

    /// The call broke; the future says why, once that is known.
    pub(crate) fn broken(&mut self, error: Error) -> impl Future<Output = Failure> + Send + use<> {
        match reset_code(&error) {
            Some(code) => self.on_code(code as u32),
            None => self.on_outcome(Outcome::Failure),
        }
        let source = self.source();
        async move {
            let at = match source {
                Source::Control(control, address) => {
                    return match reset_code(&error) {
                        Some(code) => {
                            let text = format!("the call was reset: {error}");
                            Failure::new(Reason::CallReset, text).with_code(code)
                        }
                        None => control.unreachable(&address, &error),
                    };
                }
                Source::Worker(at) => at,
            };
            let (worker, progress, attempts) = (&at.worker, at.progress, at.attempt);
            // A worker that resets a call and stays has decided so; one that is leaving resets
            // what it cannot finish.
            if let Some(code) = reset_code(&error)
                && !at.directory.is_leaving(worker)
            {
                return explain::reset(worker, code, &error, progress, attempts);
            }
            match at.directory.death(worker, at.death_wait).await {
                Some(death) => explain::died(worker, &death, progress, attempts),
                None => explain::lost(worker, &error, progress, attempts),
            }
        }
    }

    /// The server has refused the call without having begun with it, and said so; the future says why.
    pub(crate) fn turned_away(
        &mut self,
        error: Error,
    ) -> impl Future<Output = Failure> + Send + use<> {
        // It is full, or about to go.
        if let Server::Worker {
            directory,
            ticket: Some(ticket),
            ..
        } = &mut self.server
        {
            directory.on_refused(ticket);
        }
        let source = self.source();
        async move {
            match source {
                Source::Control(control, address) => control.unreachable(&address, &error),
                Source::Worker(at) => {
                    let (worker, attempts) = (&at.worker, at.attempt);
                    let leaves = at.directory.is_leaving(worker);
                    // One that stays has no death to wait for.
                    let wait = match leaves {
                        true => at.death_wait,
                        false => Duration::ZERO,
                    };
                    match at.directory.death(worker, wait).await {
                        Some(death) => explain::died(worker, &death, Progress::Refused, attempts),
                        None => explain::turned_away(worker, &error, attempts),
                    }
                }
            }
        }
    }

    fn source(&self) -> Source {
        match &self.server {
            Server::Control(control, address) => Source::Control(*control, address.clone()),
            Server::Worker {
                directory,
                worker,
                death_wait,
                attempt,
                progress,
                ..
            } => Source::Worker(At {
                directory: Arc::clone(directory),
                worker: worker.clone(),
                death_wait: *death_wait,
                attempt: *attempt,
                progress: *progress,
            }),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Server::Worker {
            directory, ticket, ..
        } = &mut self.server
            && let Some(ticket) = ticket.take()
        {
            directory.release(ticket);
        }
    }
}

/// What an explanation needs to know of the server after the call has let go of it.
enum Source {
    Worker(At),
    Control(Control, Address),
}

/// Where a call to a worker stood.
struct At {
    directory: Arc<Directory>,
    worker: WorkerId,
    death_wait: Duration,
    attempt: u32,
    progress: Progress,
}

impl Control {
    fn unreachable(self, address: &Address, error: &dyn std::fmt::Display) -> Failure {
        match self {
            Self::Arbiter => explain::arbiter_unreachable(address, error),
            Self::Discovery => explain::discovery_unreachable(address, error),
        }
    }
}

/// Whether the other side has said that it did not begin with a call and will not: it refused its stream, or went away
/// and named the last stream that it had taken, which is an earlier one (RFC 9113, 6.8 and 8.7).
pub(crate) fn is_turned_away(error: &Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(wire::Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

/// Whether the other side cancelled this call.
pub(crate) fn is_cancel(error: &Error) -> bool {
    reset_code(error) == Some(Code::Cancelled)
}

/// The gRPC code of a stream that the other side reset, as the gRPC protocol lays down; `None` when
/// the whole connection broke.
fn reset_code(error: &Error) -> Option<Code> {
    if !error.is_reset() || !error.is_remote() {
        return None;
    }
    Some(match error.reason()? {
        wire::Reason::REFUSED_STREAM => Code::Unavailable,
        wire::Reason::CANCEL => Code::Cancelled,
        wire::Reason::ENHANCE_YOUR_CALM => Code::ResourceExhausted,
        wire::Reason::INADEQUATE_SECURITY => Code::PermissionDenied,
        _ => Code::Internal,
    })
}
