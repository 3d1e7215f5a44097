//! Where a call goes: decided from its path and its metadata alone.

use http::{
    Method,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
    request::Parts,
};
use tether_clock::Tick;
use tether_endpoints::{Affinity, Ask, Party, Priority, Session, Target};
use tether_proto::Failure;
use tether_types::{Epoch, OwnerName, PoolName, WorkerId};

use std::{sync::Arc, time::Duration};

use crate::{explain, timeout};

/// Names the pool whose worker serves a call.
pub(crate) const POOL: &str = "tether-pool";
/// Names the one worker that may serve a call.
pub(crate) const WORKER: &str = "tether-worker";
/// Calls with the same value go to the same worker where possible.
pub(crate) const AFFINITY: &str = "tether-affinity";
/// What becomes of such a call while that worker is not free.
pub(crate) const AFFINITY_MODE: &str = "tether-affinity-mode";
/// Which calls go first, and which are shed last, where more come than the workers of a pool can serve.
pub(crate) const PRIORITY: &str = "tether-priority";
/// Names the owner in whose name a call is made.
pub(crate) const OWNER: &str = "tether-owner";
/// The epoch of that owner's session: a call with one that is over or was taken over is refused.
pub(crate) const EPOCH: &str = "tether-epoch";
/// Which gateways a call has gone through, by the word that each has made up for its life.
pub(crate) const VIA: &str = "tether-via";
/// How long the caller waits.
pub(crate) const TIMEOUT: &str = "grpc-timeout";

pub(crate) const AFFINITIES: [(&str, Affinity); 3] = [
    ("hint", Affinity::Hint),
    ("strict_queue", Affinity::StrictQueue),
    ("strict_fail_fast", Affinity::StrictFailFast),
];
const PRIORITIES: [(&str, Priority); 3] = [
    ("low", Priority::Low),
    ("normal", Priority::Normal),
    ("high", Priority::High),
];
const OWNER_EXAMPLE: &str = "checkout@host-1";

/// Services that are forwarded to the arbiter.
const ARBITER: [&str; 5] = [
    "/tether.session.v1.",
    "/tether.pool.v1.",
    "/tether.worker.v1.",
    "/tether.job.v1.",
    "/tether.registry.v1.",
];
/// The heartbeats of nodes, which are forwarded only by a gateway that relays them.
const NODE: &str = "/tether.node.v1.NodeService/";
/// The methods of those whose requests are streams: all others have sent all there is before they are answered.
const STREAMED: [&str; 3] = [
    "/tether.session.v1.SessionService/KeepAlive",
    "/tether.registry.v1.RegistryService/Register",
    "/tether.node.v1.NodeService/Heartbeat",
];
/// Services that are forwarded to discovery.
const DISCOVERY: &str = "/tether.discovery.v1.";
/// Services the gateway answers itself, unless the call names a pool.
const OWN: [&str; 2] = ["/grpc.health.v1.Health/", "/grpc.reflection."];

/// What a call may say, each once.
#[derive(Debug, Clone, Copy)]
enum Key {
    Pool,
    Worker,
    Affinity,
    AffinityMode,
    Priority,
    Owner,
    Epoch,
    Timeout,
}

impl Key {
    /// All of them, each in its own place.
    const ALL: [Self; 8] = [
        Self::Pool,
        Self::Worker,
        Self::Affinity,
        Self::AffinityMode,
        Self::Priority,
        Self::Owner,
        Self::Epoch,
        Self::Timeout,
    ];
    /// What the names of all but the last begin with.
    const OURS: &str = "tether-";

    fn name(self) -> &'static str {
        match self {
            Self::Pool => POOL,
            Self::Worker => WORKER,
            Self::Affinity => AFFINITY,
            Self::AffinityMode => AFFINITY_MODE,
            Self::Priority => PRIORITY,
            Self::Owner => OWNER,
            Self::Epoch => EPOCH,
            Self::Timeout => TIMEOUT,
        }
    }

    fn of(name: &str) -> Option<Self> {
        // Most fields are none of these.
        if !name.starts_with(Self::OURS) && name != TIMEOUT {
            return None;
        }
        Self::ALL.into_iter().find(|key| key.name() == name)
    }
}

/// What a call says, found in one look at its metadata.
#[derive(Debug, Default)]
struct Said<'a>([(Option<&'a HeaderValue>, bool); Key::ALL.len()]);

impl<'a> Said<'a> {
    fn in_all(headers: &'a HeaderMap) -> Self {
        let mut said = Self::default();
        for (name, value) in headers {
            if let Some(key) = Key::of(name.as_str()) {
                match &mut said.0[key as usize] {
                    (first @ None, _) => *first = Some(value),
                    (Some(_), again) => *again = true,
                }
            }
        }
        said
    }

    /// The value of a key that may be there once, as visible ASCII.
    fn single(&self, key: Key, example: &str) -> Result<Option<&'a str>, Failure> {
        let (Some(value), again) = self.0[key as usize] else {
            return Ok(None);
        };
        let refuse = |shown: &str, why| explain::metadata(key.name(), shown, why, example);
        let text = value.to_str().map_err(|_| {
            let shown = String::from_utf8_lossy(value.as_bytes());
            refuse(&shown, "it is not visible ASCII")
        })?;
        match again {
            true => Err(refuse(text, "it is there more than once")),
            false => Ok(Some(text)),
        }
    }
}

/// Who serves a call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Arbiter,
    Discovery,
    Own,
    Worker(Destination),
}

/// Whom a call to a worker is for, and how much it matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) pool: PoolName,
    pub(crate) target: Target,
    pub(crate) priority: Priority,
    /// What it says of how closely it is tied to the worker of its key.
    pub(crate) affinity: Option<Affinity>,
    /// Whose call it is, where it says.
    pub(crate) owner: Option<OwnerName>,
    /// In which session of that owner it is made, where it says.
    pub(crate) session: Option<Arc<Session>>,
}

impl Destination {
    /// What a call asks of its pool that came over a connection of this number.
    pub(crate) fn ask(self, connection: u64, deadline: Option<Tick>) -> Ask {
        // Whoever names an owner and no session of it may be anybody.
        let party = match &self.session {
            Some(session) => Party::Owner(session.owner.clone()),
            None => Party::Connection(connection),
        };
        Ask {
            target: self.target,
            tried: Vec::new(),
            party,
            priority: self.priority,
            deadline,
        }
    }
}

/// What a call's head says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) route: Route,
    /// How long the caller waits, where it says.
    pub(crate) timeout: Option<Duration>,
}

/// Whether a call to the arbiter can be made again by whoever has its request.
pub(crate) fn is_repeatable(path: &str) -> bool {
    !STREAMED.contains(&path)
}

/// Reads the head of a call, for a gateway that `relays` heartbeats of nodes or does not.
pub(crate) fn plan(head: &Parts, relays: bool) -> Result<Plan, Failure> {
    check_grpc(head)?;
    let said = Said::in_all(&head.headers);
    let timeout = match said.single(Key::Timeout, "1500m")? {
        None => None,
        Some(value) => Some(timeout::parse(value.as_bytes()).ok_or_else(|| {
            let why = "it is not one to eight digits and one of H M S m u n";
            explain::metadata(TIMEOUT, value, why, "1500m")
        })?),
    };
    let path = head.uri.path();
    let route = if ARBITER.iter().any(|service| path.starts_with(service)) {
        Route::Arbiter
    } else if path.starts_with(NODE) {
        match relays {
            true => Route::Arbiter,
            false => return Err(explain::no_relay(path)),
        }
    } else if path.starts_with(DISCOVERY) {
        Route::Discovery
    } else {
        match (destination(&said)?, path) {
            (Some(destination), _) => Route::Worker(destination),
            (None, path) if OWN.iter().any(|service| path.starts_with(service)) => Route::Own,
            (None, path) => return Err(explain::no_destination(path)),
        }
    };
    Ok(Plan { route, timeout })
}

/// The session in whose name a call is made. An owner without an epoch says nothing that could be over.
fn session(said: &Said<'_>, owner: Option<&OwnerName>) -> Result<Option<Arc<Session>>, Failure> {
    let Some(text) = said.single(Key::Epoch, "17")? else {
        return Ok(None);
    };
    let refuse = |key, text: &str, why: &str, example| explain::metadata(key, text, why, example);
    let epoch = match text.parse() {
        Ok(epoch) if epoch > 0 => Epoch(epoch),
        _ => return Err(refuse(EPOCH, text, "it is not a number from 1", "17")),
    };
    let Some(owner) = owner.cloned() else {
        let why = "it says nothing without `tether-owner` beside it";
        return Err(refuse(EPOCH, text, why, "17"));
    };
    Ok(Some(Arc::new(Session { owner, epoch })))
}

fn check_grpc(head: &Parts) -> Result<(), Failure> {
    if head.method != Method::POST {
        let why = "a gRPC call is a POST";
        return Err(explain::metadata(
            ":method",
            head.method.as_str(),
            why,
            "POST",
        ));
    }
    let content_type = head.headers.get(CONTENT_TYPE);
    let text = content_type.map_or("", |value| value.to_str().unwrap_or("?"));
    let is_grpc = text
        .strip_prefix("application/grpc")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['+', ';']));
    if is_grpc {
        return Ok(());
    }
    let why = "the gateway forwards gRPC alone";
    Err(explain::metadata(
        "content-type",
        text,
        why,
        "application/grpc",
    ))
}

/// The pool and the worker in it that the metadata asks for, where it names any.
fn destination(said: &Said<'_>) -> Result<Option<Destination>, Failure> {
    let pool = match said.single(Key::Pool, "digits")? {
        None => None,
        Some(text) => Some(
            PoolName::new(text)
                .map_err(|why| explain::metadata(POOL, text, &why.to_string(), "digits"))?,
        ),
    };
    if let Some(text) = said.single(Key::Worker, "digits/0")? {
        let refuse = |why: &str| explain::metadata(WORKER, text, why, "digits/0");
        let worker: WorkerId = text.parse().map_err(|_| {
            refuse("it is not a pool, a slash and a slot, with or without an incarnation")
        })?;
        if pool.as_ref().is_some_and(|pool| *pool != worker.pool) {
            return Err(refuse("it is of another pool than `tether-pool` says"));
        }
        let target = Target::Worker {
            slot: worker.slot,
            incarnation: worker.incarnation,
        };
        return Ok(Some(worth(said, worker.pool, target)?));
    }
    let Some(pool) = pool else { return Ok(None) };
    let mut destination = worth(said, pool, Target::Any)?;
    if let Some(key) = said.single(Key::Affinity, "session-42")? {
        destination.target = Target::Affinity {
            key: key.into(),
            session: destination.session.clone(),
            affinity: destination.affinity.unwrap_or_default(),
        };
    }
    Ok(Some(destination))
}

/// How much a call to `target` matters, and to whom.
fn worth(said: &Said<'_>, pool: PoolName, target: Target) -> Result<Destination, Failure> {
    let owner = match said.single(Key::Owner, OWNER_EXAMPLE)? {
        None => None,
        Some(name) => Some(name.parse().map_err(|error: tether_types::InvalidName| {
            explain::metadata(OWNER, name, &error.to_string(), OWNER_EXAMPLE)
        })?),
    };
    Ok(Destination {
        pool,
        target,
        priority: word(said, Key::Priority, &PRIORITIES)?.unwrap_or_default(),
        affinity: word(said, Key::AffinityMode, &AFFINITIES)?,
        session: session(said, owner.as_ref())?,
        owner,
    })
}

/// What the one of these words stands for that a key may have as its value.
fn word<T: Copy>(
    said: &Said<'_>,
    key: Key,
    words: &[(&'static str, T)],
) -> Result<Option<T>, Failure> {
    let Some(text) = said.single(key, words[0].0)? else {
        return Ok(None);
    };
    let known = words.iter().find(|(word, _)| *word == text);
    let Some((_, meaning)) = known else {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let why = format!("it is none of {}", words.join(", "));
        return Err(explain::metadata(key.name(), text, &why, words[0]));
    };
    Ok(Some(*meaning))
}

#[cfg(test)]
mod tests {
    use tether_types::{Incarnation, Reason};

    use prost::Message as _;

    use super::*;

    fn head(path: &str, metadata: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::post(path).header("content-type", "application/grpc");
        for (key, value) in metadata {
            request = request.header(*key, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn to(target: Target) -> Route {
        Route::Worker(Destination {
            pool: PoolName::new("digits").unwrap(),
            target,
            priority: Priority::Normal,
            affinity: None,
            owner: None,
            session: None,
        })
    }

    fn strictly_to(target: Target) -> Route {
        match to(target) {
            Route::Worker(destination) => Route::Worker(Destination {
                affinity: Some(Affinity::StrictQueue),
                ..destination
            }),
            other => other,
        }
    }

    fn route(path: &str, metadata: &[(&str, &str)]) -> Result<Route, Failure> {
        plan(&head(path, metadata), false).map(|plan| plan.route)
    }

    #[test]
    fn all_calls_to_the_arbiter_but_streams_can_be_made_again() {
        let all = prost_types::FileDescriptorSet::decode(tether_proto::DESCRIPTORS).unwrap();
        let mut streamed = Vec::new();
        for file in &all.file {
            for service in &file.service {
                let name = format!("/{}.{}/", file.package(), service.name());
                let of_arbiter = ARBITER.iter().chain([&NODE]);
                if of_arbiter.clone().any(|service| name.starts_with(service)) {
                    let streams = service
                        .method
                        .iter()
                        .filter(|method| method.client_streaming());
                    streamed.extend(streams.map(|method| format!("{name}{}", method.name())));
                }
            }
        }

        streamed.sort();
        let mut known = STREAMED;
        known.sort_unstable();
        assert_eq!(streamed, known);
        assert!(!STREAMED.iter().any(|path| is_repeatable(path)));
        assert!(is_repeatable("/tether.pool.v1.PoolService/ApplyPool"));
    }

    #[test]
    fn heartbeats_of_nodes_are_relayed_only_where_that_is_wanted() {
        let beat = head("/tether.node.v1.NodeService/Heartbeat", &[]);

        assert_eq!(plan(&beat, true).unwrap().route, Route::Arbiter);
        let refused = plan(&beat, false).unwrap_err();
        assert!(
            refused.to_string().contains("gateway.relay_nodes"),
            "{refused}"
        );
    }

    #[test]
    fn control_calls_go_to_their_service_whatever_the_metadata() {
        for service in [
            "session.v1.SessionService",
            "pool.v1.PoolService",
            "job.v1.JobService",
            "registry.v1.RegistryService",
        ] {
            let route = route(&format!("/tether.{service}/Get"), &[(POOL, "digits")]);
            assert_eq!(route.unwrap(), Route::Arbiter);
        }
        let watch = "/tether.discovery.v1.DiscoveryService/WatchEndpoints";
        assert_eq!(route(watch, &[]).unwrap(), Route::Discovery);
    }

    #[test]
    fn health_is_the_gateways_own_unless_a_pool_is_named() {
        let check = "/grpc.health.v1.Health/Check";
        let any = to(Target::Any);

        assert_eq!(route(check, &[]).unwrap(), Route::Own);
        assert_eq!(route(check, &[(POOL, "digits")]).unwrap(), any);
    }

    #[test]
    fn metadata_chooses_the_worker() {
        let one = Target::Worker {
            slot: 2,
            incarnation: Incarnation(5),
        };
        let session = |affinity| Target::Affinity {
            key: b"session-42".to_vec(),
            session: None,
            affinity,
        };

        let chosen = |metadata: &[(&str, &str)]| route("/a.B/C", metadata).unwrap();
        assert_eq!(chosen(&[(WORKER, "digits/2.5")]), to(one));
        assert_eq!(
            chosen(&[(POOL, "digits"), (AFFINITY, "session-42")]),
            to(session(Affinity::Hint))
        );
        let strict = (AFFINITY_MODE, "strict_queue");
        assert_eq!(
            chosen(&[(POOL, "digits"), (AFFINITY, "session-42"), strict]),
            strictly_to(session(Affinity::StrictQueue))
        );
    }

    #[test]
    fn a_call_says_whose_it_is_and_how_much_it_matters() {
        let metadata = [
            (POOL, "digits"),
            (OWNER, "beam@a"),
            (EPOCH, "7"),
            (PRIORITY, "low"),
        ];

        let Route::Worker(destination) = route("/a.B/C", &metadata).unwrap() else {
            panic!("it is for a worker");
        };

        assert_eq!(destination.priority, Priority::Low);
        assert_eq!(destination.session.unwrap().owner.as_str(), "beam@a");
    }

    #[test]
    fn a_call_is_made_in_the_name_of_a_session_where_it_gives_an_epoch() {
        let session = |metadata: &[(&str, &str)]| match route("/a.B/C", metadata).unwrap() {
            Route::Worker(destination) => destination.session,
            other => panic!("it is for a worker: {other:?}"),
        };

        let given = session(&[(POOL, "a"), (OWNER, "beam@a"), (EPOCH, "7")]).unwrap();
        assert_eq!((given.owner.as_str(), given.epoch), ("beam@a", Epoch(7)));
        assert_eq!(session(&[(POOL, "a"), (OWNER, "beam@a")]), None);
    }

    #[test]
    fn malformed_metadata_is_refused_by_key() {
        let cases: [(&[(&str, &str)], &str); 12] = [
            (&[], "tether-pool"),
            (&[(POOL, "a b")], "tether-pool"),
            (&[(POOL, "a"), (POOL, "b")], "more than once"),
            (&[(WORKER, "digits")], "tether-worker"),
            (&[(WORKER, "a/1"), (POOL, "b")], "another pool"),
            (&[(POOL, "a"), (TIMEOUT, "5s")], "grpc-timeout"),
            (&[(POOL, "ä")], "visible ASCII"),
            (&[(POOL, "a"), (OWNER, "b"), (EPOCH, "0")], EPOCH),
            (&[(POOL, "a"), (EPOCH, "4")], OWNER),
            (&[(POOL, "a"), (PRIORITY, "9")], "low, normal, high"),
            (
                &[(POOL, "a"), (AFFINITY, "b"), (AFFINITY_MODE, "strict")],
                "strict_queue",
            ),
            (&[(POOL, "a"), (OWNER, " "), (EPOCH, "4")], OWNER),
        ];
        for (metadata, hint) in cases {
            let failure = route("/a.B/C", metadata).unwrap_err();

            assert_eq!(failure.reason(), Reason::MetadataInvalid);
            assert!(failure.to_string().contains(hint), "{failure}");
        }
    }

    #[test]
    fn what_is_not_grpc_is_refused() {
        let mut json = head("/a.B/C", &[(POOL, "digits")]);
        json.headers
            .insert(CONTENT_TYPE, "application/json".parse().unwrap());
        let mut get = head("/a.B/C", &[(POOL, "digits")]);
        get.method = Method::GET;

        assert!(
            plan(&json, false)
                .unwrap_err()
                .to_string()
                .contains("content-type")
        );
        assert!(
            plan(&get, false)
                .unwrap_err()
                .to_string()
                .contains(":method")
        );
    }
}
