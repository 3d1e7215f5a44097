//! Follows the agents of nodes whose workers are served: they say of an end before anybody has recorded it, and for how
//! long their workers may take calls.
//!
//! ```text
//!  discovery --an endpoint says where--> agents --one stream for each node--> endpoints: not picked any more
//!                                                                        `--> connections: closed with their calls
//! ```
//!
//! What is told here comes again by discovery, and changes nothing then. Where an agent is away, discovery is all there
//! is; what that agent allowed last is over when it said, by the clock of this machine, if nobody knows better. What is
//! left counts from when it was asked for.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{bail, ensure};
use backon::{BackoffBuilder as _, ExponentialBuilder};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_endpoints::{Fates, Gone, Word};
use tether_proto::{
    common::{Endpoint as Told, WorkerRef},
    fate::{
        Fate, WatchFatesRequest, WatchFatesResponse, WorkerFate,
        fate_service_client::FateServiceClient,
    },
};
use tether_types::{Address, Death, DeathCause, NodeName, PoolName, WorkerId};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{directory::Directory, questions::Questions, watch::connect};

/// Between two requests.
const ASK: Duration = Duration::from_millis(500);

/// How long a dead worker's connection is still read: what it had answered before it died is on its way.
const LAST_WORDS: Duration = Duration::from_millis(2);

/// Between two tries to reach an agent, at the most.
const SELDOM: Duration = Duration::from_secs(2);

/// Where the agents of nodes are that serve something.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    known: Mutex<HashMap<NodeName, Address>>,
    /// There is another one.
    news: Notify,
}

impl Agents {
    /// Discovery told of these endpoints, which are in the directory by now.
    pub(crate) fn find(&self, endpoints: &[Told]) {
        let mut known = self.lock();
        for endpoint in endpoints.iter().filter(|it| !it.fates.is_empty()) {
            let (Ok(node), Ok(address)) = (NodeName::new(&endpoint.node), endpoint.fates.parse())
            else {
                continue;
            };
            if known.get(&node) != Some(&address) {
                known.insert(node, address);
                self.news.notify_one();
            }
        }
    }

    fn at(&self, node: &NodeName) -> Option<Address> {
        self.lock().get(node).cloned()
    }

    fn nodes(&self) -> Vec<NodeName> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeName, Address>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows all agents for ever.
pub(crate) async fn follow(directory: Arc<Directory>, connect_timeout: Duration) {
    let mut followed = HashSet::new();
    let mut following = JoinSet::new();
    loop {
        for node in directory.agents.nodes() {
            if followed.insert(node.clone()) {
                following.spawn(follow_one(node, Arc::clone(&directory), connect_timeout));
            }
        }
        tokio::select! {
            () = directory.agents.news.notified() => {}
            Some(over) = following.join_next() => if let Ok(node) = over {
                followed.remove(&node);
            },
        }
    }
}

/// Follows the agent of a node for as long as workers of that are served.
async fn follow_one(
    node: NodeName,
    directory: Arc<Directory>,
    connect_timeout: Duration,
) -> NodeName {
    let delays = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(SELDOM)
        .without_max_times()
        .with_jitter();
    let mut delay = delays.build();
    let mut told = false;
    while let Some(address) = directory.agents.at(&node) {
        let mut heard = false;
        let Err(error) =
            watch_fates(&node, &address, connect_timeout, &directory, &mut heard).await;
        directory.on_feed_lost(&node);
        if heard {
            delay = delays.build();
            told = false;
        }
        if !directory.still_follows(&node, address.clone()) {
            break;
        }
        if !std::mem::replace(&mut told, true) {
            tracing::info!(%node, agent = %address, error = format!("{error:#}"), "The agent tells nothing of its workers, discovery does");
        }
        sleep(delay.next().unwrap_or(SELDOM)).await;
    }
    node
}

async fn watch_fates(
    node: &NodeName,
    agent: &Address,
    connect_timeout: Duration,
    directory: &Directory,
    heard: &mut bool,
) -> anyhow::Result<std::convert::Infallible> {
    let channel = connect(agent, connect_timeout).await?;
    let mut client = FateServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let (mut questions, requests) = Questions::new();
    let mut seen = 0;
    questions.ask(|seq| WatchFatesRequest { seq, seen });
    let mut stream = client.watch_fates(requests).await?.into_inner();
    let mut pause = interval(ASK);
    pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            word = stream.message() => {
                let Some(word) = word? else { bail!("it ended the stream") };
                // A socket's name may be another agent's on this machine.
                ensure!(word.node == node.as_str(), "it is that of node `{}`", word.node);
                let as_of = questions.answered(word.seq);
                directory.on_fates(node, fates(&word), until(&word, as_of));
                *heard = true;
                // Whoever has announced an end waits for that.
                if std::mem::replace(&mut seen, word.number) != word.number {
                    questions.ask(|seq| WatchFatesRequest { seq, seen });
                }
            }
            _ = pause.tick() => questions.ask(|seq| WatchFatesRequest { seq, seen }),
        }
    }
}

/// Reads what was told of workers. What cannot be read is left out.
fn fates(word: &WatchFatesResponse) -> Fates {
    let words = word.workers.iter().filter_map(|told| {
        let worker = WorkerRef::required(told.worker.as_ref()).ok()?;
        Some((worker, read(told)?))
    });
    let gone = word.gone.iter();
    Fates {
        snapshot: word.snapshot,
        words: words.collect(),
        gone: gone.filter_map(|worker| worker.try_into().ok()).collect(),
    }
}

fn read(told: &WorkerFate) -> Option<Word> {
    Some(match told.fate() {
        Fate::Unspecified => return None,
        Fate::Running => Word::Running,
        Fate::Doubtful => Word::Doubtful,
        Fate::Ending => Word::Ending,
        Fate::Dying | Fate::Dead => {
            let death = told.death.as_ref().map(Death::from);
            Word::Dead(death.unwrap_or_else(unexplained))
        }
    })
}

fn unexplained() -> Death {
    Death {
        cause: DeathCause::Unknown,
        exit_code: None,
        signal: None,
        detail: String::new(),
        stderr_tail: String::new(),
        measures: None,
    }
}

/// Until when workers may take calls: counted from when that was asked, as the time since is spent.
fn until(word: &WatchFatesResponse, as_of: Option<Tick>) -> BTreeMap<PoolName, Tick> {
    let permissions = word.permissions.iter();
    let ends = permissions.filter_map(|told| {
        let pool = PoolName::new(&told.pool).ok()?;
        Some((pool, as_of? + Duration::from_millis(told.remaining_ms)))
    });
    ends.collect()
}

impl Directory {
    /// The agent of a node speaks.
    fn on_fates(&self, node: &NodeName, fates: Fates, until: BTreeMap<PoolName, Tick>) {
        let is_news = fates.snapshot || !fates.words.is_empty() || !fates.gone.is_empty();
        let gone = {
            let mut known = self.lock();
            let gone = known.endpoints.on_fates(node, fates);
            let allows = known.endpoints.on_permissions(node, until, BootClock.now());
            // It answers twice a second, mostly to say that all may go on for longer.
            if !is_news && !allows {
                return;
            }
            known.settle_all();
            gone
        };
        for Gone { worker, .. } in gone {
            self.let_go(&worker);
        }
        self.told();
        self.moved();
    }

    fn on_feed_lost(&self, node: &NodeName) {
        let mut known = self.lock();
        known.endpoints.on_feed_lost(node);
        known.settle_all();
    }

    /// Whether the agent of a node is worth asking again.
    fn still_follows(&self, node: &NodeName, address: Address) -> bool {
        let serves = || self.lock().endpoints.serves_from(node);
        if serves() {
            return true;
        }
        self.agents.lock().remove(node);
        // One that was told of meanwhile may have been found before that.
        if serves() {
            self.agents.lock().entry(node.clone()).or_insert(address);
            return true;
        }
        self.lock().endpoints.forget_feed(node);
        false
    }

    /// Ends the calls on a worker that is dead.
    fn let_go(&self, worker: &WorkerId) {
        let links = self.links().iter();
        let links: Vec<_> = links.filter_map(|links| links.close(worker)).collect();
        if links.is_empty() {
            return;
        }
        tokio::spawn(async move {
            sleep(LAST_WORDS).await;
            for link in links {
                link.sever();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tether_endpoints::{Ages, Endpoint, Standing, Update};
    use tether_proto::{common::Death as ToldDeath, fate::Permission};
    use tether_types::WorkerId;

    use super::*;
    use crate::directory::Extent;

    fn worker(slot: u32) -> WorkerRef {
        WorkerRef {
            pool: "digits".to_owned(),
            slot,
            incarnation: 7,
        }
    }

    #[test]
    fn what_is_left_counts_from_when_it_was_asked_and_what_nobody_asked_for_allows_nothing() {
        let word = WatchFatesResponse {
            permissions: vec![Permission {
                pool: "digits".to_owned(),
                remaining_ms: 1_500,
            }],
            ..WatchFatesResponse::default()
        };
        let asked = Tick::ZERO + Duration::from_secs(10);

        let ends = until(&word, Some(asked));
        assert_eq!(
            ends.into_values().collect::<Vec<_>>(),
            [asked + Duration::from_millis(1_500)]
        );
        assert!(until(&word, None).is_empty());
    }

    #[test]
    fn who_only_says_for_longer_what_it_said_wakes_nobody() {
        let directory = Directory::new(&crate::config::Config::default(), Vec::new());
        let node: NodeName = "n".parse().unwrap();
        let served = Endpoint {
            worker: WorkerId::try_from(&worker(0)).unwrap(),
            address: "unix:/w".parse().unwrap(),
            tls: false,
            node: Some(node.clone()),
            draining: false,
            counted: false,
            unordered: false,
            capacity: None,
            weight: 0,
            standing: Standing::Near,
        };
        let id = served.worker.clone();
        let update = Update {
            upserts: vec![served],
            ..Update::default()
        };
        directory.apply(Extent::Snapshot, update, Ages::default());
        let mut moves = directory.moves.subscribe();
        let mut says = |words: &[(WorkerId, Word)], left: Duration| {
            let fates = Fates {
                words: words.to_vec(),
                ..Fates::default()
            };
            let until = BTreeMap::from([(id.pool.clone(), BootClock.now() + left)]);
            directory.on_fates(&node, fates, until);
            let woke = moves.has_changed().unwrap();
            moves.mark_unchanged();
            woke
        };
        let long = Duration::from_secs(60);

        assert!(says(&[(id.clone(), Word::Running)], long), "it is new");
        assert!(!says(&[], long), "nothing is");
        assert!(says(&[], Duration::ZERO), "its permission is over");
        assert!(!says(&[], Duration::ZERO), "it is still over");
        assert!(says(&[], long), "it has one again");
    }

    #[test]
    fn one_that_dies_is_dead_with_what_is_known_of_the_cause() {
        let told = |fate: Fate, death| WorkerFate {
            worker: Some(worker(0)),
            fate: fate.into(),
            death,
        };
        let killed = ToldDeath {
            cause: tether_proto::common::DeathCause::Signaled.into(),
            signal: Some(9),
            ..ToldDeath::default()
        };

        let Some(Word::Dead(death)) = read(&told(Fate::Dying, Some(killed))) else {
            panic!("it lives");
        };
        assert_eq!(death.cause, DeathCause::Signaled(9));
        assert_eq!(
            read(&told(Fate::Dead, None)),
            Some(Word::Dead(unexplained()))
        );
        assert_eq!(read(&told(Fate::Ending, None)), Some(Word::Ending));
        assert_eq!(read(&told(Fate::Unspecified, None)), None);
    }
}
