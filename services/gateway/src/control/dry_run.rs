//! What would become of a call, said without making it.

use std::time::Duration;

use http::request::Parts;
use tether_clock::{BootClock, Clock as _};
use tether_endpoints::{Explained, Verdict, Why, Would};
use tether_proto::{
    Failure,
    gateway::{CallFate, CallRoute, Candidate, ExplainRequest, ExplainResponse},
};

use crate::{
    affinity::Found,
    deadline::Deadline,
    directory::refused,
    explain,
    owners::Acting,
    route::{self, Destination, Route},
    wake::Wake,
};

use super::{Control, board};

/// No connection has this number.
const NOBODY: u64 = u64::MAX;

impl Control {
    /// Goes the way of a call as far as the choice of a worker.
    pub(super) async fn dry_run(&self, asked: &ExplainRequest) -> ExplainResponse {
        let mut answer = ExplainResponse {
            fate: CallFate::Refused.into(),
            ..ExplainResponse::default()
        };
        if let Err(failure) = self.decide(asked, &mut answer).await {
            answer.text = failure.to_string();
            failure.reason().word().clone_into(&mut answer.reason);
        }
        answer
    }

    async fn decide(
        &self,
        asked: &ExplainRequest,
        answer: &mut ExplainResponse,
    ) -> Result<(), Failure> {
        let forwarder = &self.0.forwarder;
        let mut head = head(asked)?;
        let plan = route::plan(&head, forwarder.config.relay_nodes)?;
        let (route, text) = match plan.route {
            Route::Worker(to) => {
                answer.set_route(CallRoute::Worker);
                forwarder.sign(&mut head, &to.pool)?;
                if let Some(session) = to.session.as_deref() {
                    let acting = Acting::from(session);
                    forwarder.owners.decide(&acting).await?;
                }
                return self.choose(to, &head, plan.timeout, answer).await;
            }
            Route::Arbiter => (CallRoute::Arbiter, "it goes to the arbiter that leads"),
            Route::Discovery => (CallRoute::Discovery, "it goes to discovery"),
            Route::Own => (CallRoute::Gateway, "the gateway answers it itself"),
        };
        answer.set_route(route);
        answer.set_fate(CallFate::Sent);
        text.clone_into(&mut answer.text);
        Ok(())
    }

    /// Which worker would have it.
    async fn choose(
        &self,
        to: Destination,
        head: &Parts,
        timeout: Option<Duration>,
        answer: &mut ExplainResponse,
    ) -> Result<(), Failure> {
        let forwarder = &self.0.forwarder;
        let directory = &forwarder.directory;
        if !directory.is_informed() {
            let why = "it has told nothing yet";
            let discovery = forwarder.discovery.address();
            return Err(explain::discovery_unreachable(discovery, &why));
        }
        let pool = to.pool.clone();
        let (session, affinity) = (to.session.clone(), to.affinity);
        let mut ask = to.ask(NOBODY, Deadline::after(timeout).on_boot());
        let rule = forwarder.config.methods.rule(&pool, head.uri.path());
        let mut in_field = None;
        if let Some(tie) = rule.and_then(|rule| rule.tie(&ask.target)) {
            match tie.find(&head.headers, None).await {
                Found::Key(key) => ask.target = tie.target(key, session, affinity),
                Found::Nothing => {}
                Found::InField(number) => in_field = Some(number),
            }
        }
        let known = directory.lock();
        let now = BootClock.now();
        let Explained { would, workers } =
            known.endpoints.explain(&pool, &ask, fastrand::u64(..), now);
        let queued = known.endpoints.waiting(&pool);
        answer.queued = u32::try_from(queued).unwrap_or(u32::MAX);
        let chosen = match &would {
            Ok(Would::Go(worker)) if in_field.is_none() => Some(worker),
            Ok(_) | Err(_) => None,
        };
        answer.candidates = workers
            .iter()
            .map(|(view, verdict)| Candidate {
                worker: Some(board::worker(view)),
                chosen: chosen == Some(&view.endpoint.worker),
                eligible: *verdict == Verdict::Eligible,
                why: why(*verdict),
            })
            .collect();
        match (would, in_field) {
            (Ok(_), Some(number)) => {
                answer.set_fate(CallFate::Unspecified);
                answer.text = format!("its worker depends on field {number} of its first message");
            }
            (Ok(Would::Go(worker)), None) => {
                answer.set_fate(CallFate::Sent);
                answer.text = format!("it goes to worker `{worker}`");
                answer.worker = Some((&worker).into());
            }
            (Ok(Would::Wait), None) => {
                answer.set_fate(CallFate::Waits);
                answer.text = format!("it waits for a worker, as {queued} others do");
            }
            (Err(refusal), _) => {
                let refused = refused(&known.endpoints, &pool, &ask.target, refusal);
                if refused.is_for_want_of_workers()
                    && Wake::is_for(&ask.target)
                    && forwarder.wake.may_wake(&pool)
                {
                    answer.set_fate(CallFate::Waits);
                    "it waits, and the arbiter is asked for workers of its pool"
                        .clone_into(&mut answer.text);
                    return Ok(());
                }
                return Err(explain::refused(&pool, &ask.target, &refused));
            }
        }
        Ok(())
    }
}

/// The head of a call as it would come.
fn head(asked: &ExplainRequest) -> Result<Parts, Failure> {
    let mut request = http::Request::post(&asked.path).header("content-type", "application/grpc");
    for (key, value) in &asked.metadata {
        request = request.header(key, value);
    }
    let request = request.body(()).map_err(|error| {
        super::refuse(format!(
            "no call looks like this: {error}; write its path like `/package.Service/Method`, and keys of metadata in lower case"
        ))
    })?;
    Ok(request.into_parts().0)
}

/// What speaks against a worker.
fn why(verdict: Verdict) -> String {
    let why = match verdict {
        Verdict::Eligible => return String::new(),
        Verdict::Tried => return "it has refused the call".to_owned(),
        Verdict::NotMeant => return "the call is for another worker".to_owned(),
        Verdict::Refused(why) => why,
    };
    let left = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    match why {
        Why::NoneReady => "it is not ready".to_owned(),
        Why::Draining => "it is draining".to_owned(),
        Why::BreakersOpen { retry_after } => {
            format!("its breaker is open for another {}", left(retry_after))
        }
        Why::Ejected { retry_after } => {
            format!("it is ejected by order for another {}", left(retry_after))
        }
        Why::PoolBreakerOpen { retry_after } => {
            format!(
                "the breaker of its pool is open for another {}",
                left(retry_after)
            )
        }
        Why::SessionGone { .. } => "the worker that had the key is gone".to_owned(),
        Why::Lapsed => "its permission is over".to_owned(),
        Why::Busy => "it serves as many calls as it can".to_owned(),
        Why::Replaced { by } | Why::Superseded { by } => {
            format!("its place is at incarnation {by}")
        }
    }
}
