//! Which owners may act: calls that carry the epoch of a session that is over, or was taken over, are refused.
//!
//! ```text
//!  arbiter --watch: owner, epoch--> table --admit(owner, epoch)--> the call goes on
//!                                     | age                    +-> LEASE_FENCED, a later epoch is known
//!                                     |                        +-> LEASE_EXPIRED, none is, or an earlier one
//!                                     +-- too old -------------+-> ARBITER_UNREACHABLE
//! ```
//!
//! The age counts from when the request was sent that was answered last: what was true when the arbiter read it
//! may be over by the time its answer is here, and not before it was asked. A gateway that is cut off thus
//! extends nobody's session; calls without an epoch are no concern of this.

use std::{collections::HashMap, sync::Arc, time::Duration};

use anyhow::bail;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_endpoints::Session;
use tether_history::{What, note};
use tether_proto::{
    Failure, NotLeader,
    gateway::{
        WatchOwnersRequest, WatchOwnersResponse, gateway_service_client::GatewayServiceClient,
    },
};
use tether_types::{Address, Epoch, OwnerName, Reason};
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    arbiters::Arbiters,
    config::{Config, WhenStale},
    questions::Questions,
    watch::connect,
};

/// Between two requests.
const ASK: Duration = Duration::from_millis(500);

/// How long a call waits for an epoch that its gateway has not been told of yet: the arbiter tells at once.
const AHEAD: Duration = Duration::from_secs(1);

/// In whose name a call is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acting {
    pub(crate) owner: OwnerName,
    pub(crate) epoch: Epoch,
}

impl From<&Session> for Acting {
    fn from(session: &Session) -> Self {
        Self {
            owner: session.owner.clone(),
            epoch: session.epoch,
        }
    }
}

/// What is known of sessions.
#[derive(Debug, Clone, Default)]
struct Table {
    epochs: HashMap<OwnerName, Epoch>,
    /// As of when; none while nothing was told.
    as_of: Option<Tick>,
}

/// How a call stands with the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Holds,
    Fenced(Epoch),
    Over,
    /// Its session is later than any that is known.
    Ahead,
    /// Nobody can say, as what is known is this old.
    Stale(Option<Duration>),
}

impl Table {
    fn take_in(&mut self, told: &WatchOwnersResponse, as_of: Option<Tick>) {
        if told.snapshot {
            self.epochs.clear();
        }
        for session in &told.owners {
            if let Ok(owner) = session.owner.parse() {
                self.epochs.insert(owner, Epoch(session.epoch));
            }
        }
        for gone in &told.gone {
            if let Ok(owner) = gone.parse::<OwnerName>() {
                self.epochs.remove(&owner);
            }
        }
        self.as_of = self.as_of.max(as_of);
    }

    fn standing(&self, acting: &Acting, oldest: Duration, now: Tick) -> Standing {
        let age = self.as_of.map(|as_of| now.since(as_of));
        let known = self.epochs.get(&acting.owner);
        match known {
            // However old the word is, it is not taken back.
            Some(known) if *known > acting.epoch => Standing::Fenced(*known),
            _ if age.is_none_or(|age| age > oldest) => Standing::Stale(age),
            Some(known) if *known == acting.epoch => Standing::Holds,
            Some(_) => Standing::Ahead,
            None => Standing::Over,
        }
    }
}

/// The table, shared by every call.
#[derive(Debug)]
pub(crate) struct Owners {
    table: watch::Sender<Table>,
    oldest: Duration,
    when_stale: WhenStale,
}

impl Owners {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            table: watch::Sender::default(),
            oldest: config.fence_max_age,
            when_stale: config.when_fence_is_stale,
        }
    }

    /// Lets a call go on that is made in the name of a session which holds.
    pub(crate) async fn admit(&self, acting: &Acting) -> Result<(), Failure> {
        let admitted = self.decide(acting).await;
        note(|| on_record(acting, admitted.is_ok()));
        admitted
    }

    /// Waits until a session is known to be over. While nobody can tell, it may hold.
    pub(crate) async fn over(&self, acting: &Acting) {
        let mut table = self.table.subscribe();
        let is_over = |table: &Table| {
            let standing = table.standing(acting, self.oldest, BootClock.now());
            matches!(standing, Standing::Fenced(_) | Standing::Over)
        };
        // Fails only without a table, and that is borrowed here.
        let _ = table.wait_for(is_over).await;
    }

    /// Whether a call would go on.
    pub(crate) async fn decide(&self, acting: &Acting) -> Result<(), Failure> {
        let mut table = self.table.subscribe();
        let decided = async {
            loop {
                let standing = {
                    let table = table.borrow_and_update();
                    table.standing(acting, self.oldest, BootClock.now())
                };
                // One that opened a moment ago is told of in a moment; so is whether one is over, where a
                // gateway was told nothing yet.
                let settled = !matches!(
                    standing,
                    Standing::Ahead | Standing::Over | Standing::Stale(None)
                );
                if settled || table.changed().await.is_err() {
                    return standing;
                }
            }
        };
        let standing = timeout(AHEAD, decided).await.unwrap_or_else(|_| {
            let table = self.table.borrow();
            table.standing(acting, self.oldest, BootClock.now())
        });
        match (standing, self.when_stale) {
            (Standing::Holds, _) | (Standing::Stale(_), WhenStale::Allow) => Ok(()),
            (Standing::Fenced(by), _) => Err(fenced(acting, by)),
            (Standing::Over | Standing::Ahead, _) => Err(over(acting)),
            (Standing::Stale(age), WhenStale::Refuse) => Err(stale(acting, age)),
        }
    }
}

/// The line of a history.
fn on_record(acting: &Acting, admitted: bool) -> What {
    let (gate, fence) = ("gateway".to_owned(), acting.epoch.0);
    let resource = format!("session/{}", acting.owner);
    if admitted {
        What::Admitted {
            gate,
            resource,
            fence,
        }
    } else {
        What::Refused {
            gate,
            resource,
            fence,
        }
    }
}

fn fenced(acting: &Acting, by: Epoch) -> Failure {
    let Acting { owner, epoch } = acting;
    let text = format!(
        "epoch {epoch} of owner `{owner}` is fenced off, because epoch {by} has taken over: stop, and open a new session to act again"
    );
    Failure::new(Reason::LeaseFenced, text).fact("epoch", by)
}

fn over(acting: &Acting) -> Failure {
    let Acting { owner, epoch } = acting;
    let text = format!(
        "the session of owner `{owner}` with epoch {epoch} is over: its lease ran out, or it was closed; open a new session to act again"
    );
    Failure::new(Reason::LeaseExpired, text)
}

fn stale(acting: &Acting, age: Option<Duration>) -> Failure {
    let since = age.map_or_else(
        || "since it started".to_owned(),
        |age| format!("for {age:.1?}"),
    );
    let text = format!(
        "this gateway has not heard the arbiter {since}, and cannot tell whether epoch {} of owner `{}` still holds: try again or another gateway, leave `tether-epoch` out of calls that change nothing, or set `when_fence_is_stale = \"allow\"` under [gateway]",
        acting.epoch, acting.owner
    );
    Failure::new(Reason::ArbiterUnreachable, text).retry_after(ASK)
}

/// Follows the arbiter for ever.
pub(crate) async fn follow(
    arbiters: Arc<Arbiters>,
    connect_timeout: Duration,
    owners: Arc<Owners>,
) {
    let mut told = false;
    loop {
        let asked = arbiters.current();
        let arbiter = asked.address();
        let Err(error) = watch_owners(arbiter, connect_timeout, &owners, &mut told).await;
        if let Some(said) = error.downcast_ref().and_then(NotLeader::of) {
            arbiters.on_not_leader(&asked, said);
        }
        if !std::mem::replace(&mut told, true) {
            tracing::warn!(%arbiter, error = format!("{error:#}"), "The arbiter does not tell of owners, calls with an epoch will be refused");
        }
        sleep(ASK).await;
    }
}

async fn watch_owners(
    arbiter: &Address,
    connect_timeout: Duration,
    owners: &Owners,
    told: &mut bool,
) -> anyhow::Result<std::convert::Infallible> {
    let mut client = GatewayServiceClient::new(connect(arbiter, connect_timeout).await?);
    let (mut questions, requests) = Questions::new();
    // Before the call is awaited: the arbiter answers only once it has heard something.
    questions.ask(|seq| WatchOwnersRequest { seq });
    let mut stream = client.watch_owners(requests).await?.into_inner();
    let mut pause = interval(ASK);
    pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            word = stream.message() => {
                let Some(word) = word? else { bail!("the arbiter ended the stream") };
                let as_of = questions.answered(word.seq);
                owners.table.send_modify(|table| table.take_in(&word, as_of));
                *told = false;
            }
            _ = pause.tick() => questions.ask(|seq| WatchOwnersRequest { seq }),
        }
    }
}

#[cfg(test)]
mod tests {
    use tether_proto::gateway::OwnerEpoch;

    use super::*;

    const OLDEST: Duration = Duration::from_secs(2);

    fn acting(epoch: u64) -> Acting {
        Acting {
            owner: "beam@a".parse().unwrap(),
            epoch: Epoch(epoch),
        }
    }

    fn at(millis: u64) -> Tick {
        Tick::ZERO + Duration::from_millis(millis)
    }

    fn told(epoch: u64) -> WatchOwnersResponse {
        let session = OwnerEpoch {
            owner: "beam@a".to_owned(),
            epoch,
        };
        WatchOwnersResponse {
            snapshot: true,
            owners: vec![session],
            ..WatchOwnersResponse::default()
        }
    }

    #[test]
    fn a_session_acts_until_it_is_over_or_taken_over_or_nobody_can_say() {
        let mut table = Table::default();
        let standing =
            |table: &Table, epoch, millis| table.standing(&acting(epoch), OLDEST, at(millis));
        assert_eq!(standing(&table, 5, 0), Standing::Stale(None));

        table.take_in(&told(5), Some(at(1_000)));
        assert_eq!(standing(&table, 5, 3_000), Standing::Holds);
        assert_eq!(
            standing(&table, 5, 3_001),
            Standing::Stale(Some(Duration::from_millis(2_001)))
        );
        assert_eq!(
            standing(&table, 4, 9_000),
            Standing::Fenced(Epoch(5)),
            "however old"
        );
        assert_eq!(standing(&table, 6, 1_000), Standing::Ahead);

        let gone = WatchOwnersResponse {
            gone: vec!["beam@a".to_owned()],
            ..WatchOwnersResponse::default()
        };
        table.take_in(&gone, Some(at(2_000)));
        assert_eq!(standing(&table, 5, 2_000), Standing::Over);
    }

    #[test]
    fn a_word_nobody_asked_for_makes_what_is_known_no_younger() {
        let mut table = Table::default();
        table.take_in(&told(5), Some(at(1_000)));

        table.take_in(&told(5), None);
        table.take_in(&told(5), Some(at(500)));

        assert_eq!(table.as_of, Some(at(1_000)));
    }

    #[tokio::test]
    async fn what_nobody_can_say_is_refused_unless_the_configuration_allows_it() {
        let with = |when_fence_is_stale| {
            let config = Config {
                when_fence_is_stale,
                ..Config::default()
            };
            let owners = Owners::new(&config);
            owners
                .table
                .send_modify(|table| table.take_in(&told(5), Some(Tick::ZERO)));
            owners
        };

        let refused = with(WhenStale::Refuse).admit(&acting(5)).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::ArbiterUnreachable);
        assert!(with(WhenStale::Allow).admit(&acting(5)).await.is_ok());
        let fenced = with(WhenStale::Allow).admit(&acting(4)).await.unwrap_err();
        assert_eq!(fenced.reason(), Reason::LeaseFenced);
    }
}
