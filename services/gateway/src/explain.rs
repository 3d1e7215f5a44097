//! What a caller is told when a call fails: the cause, and what to do about it.

use std::{fmt::Display, time::Duration};

use tether_endpoints::{Overload, Refusal, Target, Why};
use tether_proto::Failure;
use tether_types::{Address, Death, DeathCause, PoolName, Reason, WorkerId};
use tonic::Code;

use crate::record::At;

/// When to try again where nothing better is known: a worker starts in about this time.
const RETRY: Duration = Duration::from_secs(1);

/// Pools listed to someone who asked for one that does not exist.
const POOLS_LISTED: usize = 5;

/// How far a call got before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Progress {
    /// The worker cannot have seen it.
    NeverSent,
    /// The worker said that it has not begun with it and will not.
    Refused,
    /// It was sent, and nothing came back: the worker may have begun with it.
    SentUnknown,
    /// The worker's answer had begun.
    Started,
}

impl Progress {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::NeverSent => "never_sent",
            Self::Refused => "refused",
            Self::SentUnknown => "sent_unknown",
            Self::Started => "started",
        }
    }
}

pub(crate) fn metadata(key: &str, value: &str, why: &str, example: &str) -> Failure {
    let shown: String = value.escape_debug().take(64).collect();
    Failure::new(
        Reason::MetadataInvalid,
        format!(
            "metadata `{key}` has the value `{shown}`: {why}; write it like `{key}: {example}`"
        ),
    )
    .fact("key", key)
}

pub(crate) fn no_destination(path: &str) -> Failure {
    let text = format!(
        "nothing says which worker serves `{path}`: set the metadata `tether-pool` to a pool's name, as in `tether-pool: digits`, or `tether-worker` to one worker, as in `tether-worker: digits/0`"
    );
    Failure::new(Reason::MetadataInvalid, text).fact("key", "tether-pool")
}

pub(crate) fn no_relay(path: &str) -> Failure {
    let text = format!(
        "this gateway does not relay `{path}`: an agent is to reach an arbiter itself, or `gateway.relay_nodes` is to be set here"
    );
    Failure::new(Reason::ConfigInvalid, text).fact("key", "gateway.relay_nodes")
}

/// It would come back for ever, and each time hold another stream.
pub(crate) fn came_back(pool: &PoolName) -> Failure {
    let text = format!(
        "the call came back to a gateway that had sent it on: an endpoint of pool `{pool}` has the address of a gateway; `tether endpoints` shows them, take it out of the pool's source"
    );
    Failure::new(Reason::NoWorkerReady, text)
}

/// What is known of a pool that cannot take a call.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) refusal: Refusal,
    pub(crate) pools: Vec<PoolName>,
    pub(crate) waiting: usize,
    /// How old what is known of the pool is, where it may be out of date.
    pub(crate) age: Option<Duration>,
    pub(crate) death: Option<(WorkerId, Death)>,
}

impl Refused {
    /// Whether there is a pool, and nobody in it that serves.
    pub(crate) fn is_for_want_of_workers(&self) -> bool {
        matches!(self.refusal, Refusal::NoWorker(Why::NoneReady))
    }
}

pub(crate) fn refused(pool: &PoolName, target: &Target, refused: &Refused) -> Failure {
    untried(refusal(pool, target, refused))
}

fn refusal(pool: &PoolName, target: &Target, refused: &Refused) -> Failure {
    let why = match refused.refusal {
        Refusal::NoPool => return unknown_pool(pool, &refused.pools),
        Refusal::Overloaded(overload) => return overloaded(pool, overload),
        Refusal::NoWorker(why) => why,
    };
    let whom = match target {
        Target::Worker { slot, incarnation } if incarnation.0 == 0 => {
            format!("worker `{pool}/{slot}` is not ready")
        }
        Target::Worker { slot, incarnation } => {
            format!("worker `{pool}/{slot}.{incarnation}` is not ready")
        }
        Target::Any | Target::Affinity { .. } => format!("no worker of pool `{pool}` is ready"),
    };
    match why {
        Why::NoneReady => {
            let ended = refused
                .death
                .as_ref()
                .map_or_else(String::new, |(worker, death)| {
                    format!("; the last to end was `{worker}`: {}", describe(death))
                });
            let old = refused.age.map_or_else(String::new, |age| {
                let age = age.as_secs_f64();
                format!("; that may be out of date, it was known {age:.1} s ago: `tether endpoints` shows who is away")
            });
            let text = format!("{whom}{ended}{old}; `tether ps` shows what the workers are doing");
            let mut failure = Failure::new(Reason::NoWorkerReady, text).retry_after(RETRY);
            if let Some(age) = refused.age {
                failure = failure.fact("knowledge_age_ms", age.as_millis());
            }
            match &refused.death {
                Some((worker, death)) => with_death(failure, worker, Some(death)),
                None => failure,
            }
        }
        Why::Draining => {
            let text = format!(
                "{whom}: it is draining and takes no new calls; `tether ps` shows when it is back, and `tether gateway orders` whether somebody has ordered it here"
            );
            Failure::new(Reason::Draining, text).retry_after(RETRY)
        }
        Why::BreakersOpen { retry_after } => {
            let slot = match target {
                Target::Worker { slot, .. } => slot.to_string(),
                Target::Any | Target::Affinity { .. } => "SLOT".to_owned(),
            };
            let text = format!(
                "{whom}: it failed too many calls, or took too long for them, and is left alone for another {:.1} s; `tether logs {pool}/{slot}` shows what it said",
                retry_after.as_secs_f64()
            );
            Failure::new(Reason::BreakerOpen, text).retry_after(retry_after)
        }
        Why::PoolBreakerOpen { retry_after } => {
            let text = format!(
                "calls to pool `{pool}` failed too often, whichever of its workers had them, and it is left alone for another {:.1} s; `tether logs {pool}/SLOT` shows what a worker said",
                retry_after.as_secs_f64()
            );
            Failure::new(Reason::BreakerOpen, text).retry_after(retry_after)
        }
        Why::Ejected { retry_after } => {
            let text = format!(
                "{whom}: somebody has ordered this gateway to leave it alone for another {:.1} s; `tether gateway orders` shows who and why, `tether gateway restore` undoes it",
                retry_after.as_secs_f64()
            );
            Failure::new(Reason::BreakerOpen, text).retry_after(retry_after)
        }
        Why::Busy => {
            let who = match target {
                Target::Worker { slot, .. } => format!("worker `{pool}/{slot}` serves"),
                Target::Affinity { .. } => {
                    format!("the worker of pool `{pool}` that this call's affinity asks for serves")
                }
                Target::Any => format!("all workers of pool `{pool}` serve"),
            };
            let text = format!(
                "{who} as many calls as the template's `capacity` allows, or as was found to be good for them, and {} calls wait: more workers would help, or a longer `queue.max_wait` of the gateway",
                refused.waiting
            );
            overload(text)
        }
        Why::Lapsed => {
            let text = format!(
                "{whom}: the permission to serve is over, as its agent said last, and nobody has said since that it was renewed; `tether nodes` shows which node is cut off"
            );
            Failure::new(Reason::LeaseExpired, text).retry_after(RETRY)
        }
        Why::Replaced { by } => {
            let text = format!(
                "{whom}: another one serves at its address, of incarnation {by}; leave the incarnation out to reach whichever does"
            );
            Failure::new(Reason::UnknownWorker, text)
        }
        Why::SessionGone { slot, incarnation } => {
            let gone = WorkerId {
                pool: pool.clone(),
                slot,
                incarnation,
            };
            session_gone(&gone, refused.death.as_ref())
        }
        Why::Superseded { by } => {
            let text = format!(
                "{whom} and will not be: its place is at incarnation {by} or later; leave the incarnation out to reach whichever lives"
            );
            Failure::new(Reason::UnknownWorker, text)
        }
    }
}

/// Who had the state that a strict call needs is gone. No other may take the call as if nothing had happened.
fn session_gone(gone: &WorkerId, death: Option<&(WorkerId, Death)>) -> Failure {
    let death = death.filter(|(worker, _)| worker == gone);
    let death = death.map(|(_, death)| death);
    let how = death.map_or_else(String::new, |death| format!(" ({})", describe(death)));
    let text = format!(
        "worker `{gone}`, which served the calls of this affinity key, is gone{how}, and with it what it knew of the key: begin anew with another key or in a new session, or bind the key to another worker by a call with `tether-affinity-mode: hint`"
    );
    with_death(Failure::new(Reason::SessionWorkerGone, text), gone, death)
}

/// A call may not even wait.
fn overloaded(pool: &PoolName, why: Overload) -> Failure {
    match why {
        Overload::Full { waiting } => overload(format!(
            "all workers of pool `{pool}` are busy and {waiting} calls wait for them, as many as may: more workers would help, or a larger `queue.max_calls` of the gateway"
        )),
        Overload::Shed => overload(format!(
            "all workers of pool `{pool}` are busy, and calls with a higher `tether-priority`, or of somebody with fewer of them, have taken the place of this one: more workers would help, or a higher `tether-priority`"
        )),
        Overload::TooLate { expected } => overload(format!(
            "all workers of pool `{pool}` are busy: this call would wait for about {:.1} s, which is longer than its deadline allows: more workers would help, or a later deadline",
            expected.as_secs_f64()
        ))
        .fact("expected_ms", expected.as_millis()),
    }
}

fn overload(text: String) -> Failure {
    Failure::new(Reason::Overloaded, text).retry_after(RETRY)
}

fn unknown_pool(pool: &PoolName, pools: &[PoolName]) -> Failure {
    let listed: Vec<String> = pools
        .iter()
        .take(POOLS_LISTED)
        .map(|name| format!("`{name}`"))
        .collect();
    let known = match (listed.len(), pools.len()) {
        (0, _) => "there is none; make one with `tether pool apply`".to_owned(),
        (shown, all) if shown < all => {
            format!("known are {} and {} more", listed.join(", "), all - shown)
        }
        (_, _) => format!("known are {}", listed.join(", ")),
    };
    Failure::new(
        Reason::UnknownPool,
        format!("no pool is named `{pool}`: {known}"),
    )
    .fact("pool", pool)
}

/// A worker is known to have died with a call under way.
pub(crate) fn died(worker: &WorkerId, death: &Death, progress: Progress, attempts: u32) -> Failure {
    let when = match progress {
        Progress::NeverSent | Progress::Refused => "before it began with the call",
        Progress::SentUnknown | Progress::Started => "during the call",
    };
    let text = format!(
        "worker `{worker}` died {when}: {}; see `tether events`",
        describe(death)
    );
    let failure = Failure::new(Reason::WorkerDied, text)
        .fact("outcome", progress.word())
        .fact("attempts", attempts);
    with_death(failure, worker, Some(death))
}

/// The connection to a worker broke, and nobody has said that the worker died.
pub(crate) fn lost(
    worker: &WorkerId,
    error: &dyn Display,
    progress: Progress,
    attempts: u32,
) -> Failure {
    let text = format!(
        "connection to worker `{worker}` lost: {error}; its death has not been reported, see `tether events`"
    );
    let failure = Failure::new(Reason::WorkerDied, text)
        .fact("outcome", progress.word())
        .fact("attempts", attempts);
    with_death(failure, worker, None)
}

/// Every worker that was tried could not be connected to.
pub(crate) fn unreachable(worker: &WorkerId, error: &dyn Display, attempts: u32) -> Failure {
    let text = format!(
        "cannot connect to worker `{worker}`: {error}; tried {attempts} worker(s), none has seen the call"
    );
    let failure = Failure::new(Reason::NoWorkerReady, text)
        .retry_after(RETRY)
        .fact("outcome", Progress::NeverSent.word())
        .fact("attempts", attempts);
    with_death(failure, worker, None)
}

/// Every worker that was tried refused the call without having begun with it.
pub(crate) fn turned_away(worker: &WorkerId, error: &dyn Display, attempts: u32) -> Failure {
    let text = format!(
        "worker `{worker}` refused the call: {error}; tried {attempts} worker(s), none has begun with it"
    );
    Failure::new(Reason::NoWorkerReady, text)
        .retry_after(RETRY)
        .fact("outcome", Progress::Refused.word())
        .fact("worker", worker)
        .fact("incarnation", worker.incarnation)
        .fact("attempts", attempts)
}

/// A worker that lives reset the call.
pub(crate) fn reset(
    worker: &WorkerId,
    code: Code,
    error: &dyn Display,
    progress: Progress,
    attempts: u32,
) -> Failure {
    let text = format!(
        "worker `{worker}` reset the call: {error}; `tether logs {}/{}` shows why",
        worker.pool, worker.slot
    );
    let failure = Failure::new(Reason::CallReset, text).with_code(code);
    got(failure, worker, progress, attempts)
}

/// How far the attempts at a call got, of which the last was at `worker`.
pub(crate) fn got(
    failure: Failure,
    worker: &WorkerId,
    progress: Progress,
    attempts: u32,
) -> Failure {
    failure
        .fact("outcome", progress.word())
        .fact("worker", worker)
        .fact("incarnation", worker.incarnation)
        .fact("attempts", attempts)
}

/// The gateway ends, and the call may go on no longer.
pub(crate) fn dismissed(at: &At) -> Failure {
    let text = "this gateway is ending and the call has gone on for as long as it may (`gateway.drain`, and `gateway.session_drain` for calls of sessions that hold): make it again, at its successor or another gateway";
    let failure = Failure::new(Reason::Draining, text);
    match at.worker() {
        Some(worker) => got(failure, worker, at.progress(), at.attempts()),
        None => untried(failure),
    }
}

/// No worker has seen the call, since none was tried.
pub(crate) fn untried(failure: Failure) -> Failure {
    failure
        .fact("outcome", Progress::NeverSent.word())
        .fact("attempts", 0)
}

fn with_death(failure: Failure, worker: &WorkerId, death: Option<&Death>) -> Failure {
    let cause = death.map_or(DeathCause::Unknown, |death| death.cause);
    let mut failure = failure
        .fact("worker", worker)
        .fact("incarnation", worker.incarnation)
        .fact("cause", cause.word());
    if let Some(code) = death.and_then(|death| death.exit_code) {
        failure = failure.fact("exit_code", code);
    }
    if let Some(signal) = death.and_then(|death| death.signal) {
        failure = failure.fact("signal", signal);
    }
    failure
}

fn describe(death: &Death) -> String {
    match death.detail.as_str() {
        "" => death.cause.to_string(),
        detail => format!("{} ({detail})", death.cause),
    }
}

pub(crate) fn arbiter_unreachable(address: &Address, error: &dyn Display) -> Failure {
    let text = format!(
        "cannot reach the arbiter at `{address}`: {error}; is `tether-arbiter` (or `tether up`) running?"
    );
    Failure::new(Reason::ArbiterUnreachable, text).retry_after(RETRY)
}

pub(crate) fn discovery_unreachable(address: &Address, error: &dyn Display) -> Failure {
    let text = format!(
        "cannot reach discovery at `{address}`: {error}; is `tether-discovery` (or `tether up`) running?"
    );
    Failure::new(Reason::DiscoveryUnreachable, text).retry_after(RETRY)
}

pub(crate) fn too_large(bytes: u32, limit: u32) -> Failure {
    let text = format!(
        "a message has {bytes} bytes, at most {limit} are allowed; send less, or raise `max_message_bytes` of the gateway"
    );
    Failure::new(Reason::MessageTooLarge, text)
        .fact("bytes", bytes)
        .fact("limit_bytes", limit)
}

/// No attempt was made at a call, and nothing told why.
pub(crate) fn nowhere() -> Failure {
    let text = "no worker was tried: that is a fault of the gateway, please report it with its log";
    Failure::new(Reason::NoWorkerReady, text).with_code(Code::Internal)
}

/// The path of a call is none that can be sent.
pub(crate) fn bad_path(error: &dyn Display) -> Failure {
    let text =
        format!("the path cannot be sent on: {error}; write it like `/package.Service/Method`");
    Failure::new(Reason::MetadataInvalid, text).fact("key", ":path")
}

/// The server has said how much metadata it takes.
pub(crate) fn metadata_too_large(bytes: usize, limit: usize) -> Failure {
    let text = format!(
        "the call has {bytes} bytes of metadata, of which the server takes at most {limit}; send less"
    );
    Failure::new(Reason::MessageTooLarge, text)
        .fact("bytes", bytes)
        .fact("limit_bytes", limit)
}

/// A call waits for a worker, with more in hand than may wait.
pub(crate) fn unsent(pool: &PoolName) -> Failure {
    let text = format!(
        "the call had to wait for a worker of pool `{pool}`, and too many bytes wait in the gateway for those who do not read: more workers would help, or a larger `max_unread_bytes` of the gateway"
    );
    overload(text)
}

/// Whoever is to get messages does not read them.
pub(crate) fn unread(who: &str) -> Failure {
    let text = format!(
        "{who} does not read, and too many bytes wait in the gateway for those who do not: read faster, or raise `max_unread_bytes` of the gateway"
    );
    Failure::new(Reason::Overloaded, text)
}

/// Said to nobody, as a rule: whoever cancels does not listen.
pub(crate) fn cancelled() -> Failure {
    Failure::new(Reason::CallReset, "the client cancelled").with_code(Code::Cancelled)
}

pub(crate) fn deadline(timeout: Duration) -> Failure {
    let text = format!(
        "the deadline passed: there was no answer within {timeout:?}, as the call's `grpc-timeout` asked; allow more, or see with `tether ps` what the workers are doing"
    );
    Failure::new(Reason::DeadlineExceeded, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_to_do_about_it() {
        let pool = PoolName::new("digits").unwrap();
        let worker: WorkerId = "digits/0.1".parse().unwrap();
        let refused = |refusal| {
            let refused = Refused {
                refusal,
                pools: Vec::new(),
                waiting: 0,
                age: None,
                death: None,
            };
            super::refused(&pool, &Target::Any, &refused)
        };
        let expected = Duration::from_secs(3);
        let retry_after = Duration::from_secs(1);
        let open = refused(Refusal::NoWorker(Why::BreakersOpen { retry_after }));
        let text = |failure: Failure| tonic::Status::from(failure).message().to_owned();
        for (failure, what) in [
            (open, "`tether logs digits/SLOT`"),
            (
                refused(Refusal::Overloaded(Overload::Shed)),
                "`tether-priority`",
            ),
            (
                refused(Refusal::Overloaded(Overload::TooLate { expected })),
                "a later deadline",
            ),
            (
                reset(&worker, Code::Internal, &"why", Progress::SentUnknown, 1),
                "`tether logs digits/0`",
            ),
            (deadline(expected), "`tether ps`"),
            (unsent(&pool), "`max_unread_bytes`"),
            (bad_path(&"why"), "`/package.Service/Method`"),
        ] {
            let text = text(failure);
            assert!(text.contains(what) && !text.contains("in a row"), "{text}");
        }
    }
}
