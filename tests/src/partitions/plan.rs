//! Every cut, and what the lease's arithmetic says must follow from it.

use std::{fmt, time::Duration};

/// Who stands on a host of its own.
pub(crate) const HOSTS: &[&str] = &[
    "store",
    "arbiter",
    "discovery",
    "gateway",
    "node-1",
    "node-2",
    "owner",
];

/// Rate error that either clock may have, in millionths; what the grantor waits on top.
const RHO_PPM: u32 = 5_000;
const SLACK: Duration = Duration::from_millis(500);

/// So many beats of a holder that hears no answers extend its lease: one leaves before the answer to the one
/// before can arrive, the other forgives one lost answer.
const UNPROVEN_BEATS: u32 = 2;

/// What a busy machine may add to what is seen: a timer that fires late, a reader that looks late.
pub(crate) const LATE: Duration = Duration::from_millis(500);

/// How long a node may take to be heard again, and a worker to be started: connections are tried again after
/// growing pauses.
const REJOIN: Duration = Duration::from_secs(10);

/// The leases of the matrix: as short as two cores can keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// The node's lease, and its beat.
    pub(crate) node_ttl: Duration,
    pub(crate) node_beat: Duration,
    /// How long workers live on, disabled, after it.
    pub(crate) partition_grace: Duration,
    /// The owner's session, its beat, and how long its workers wait for it.
    pub(crate) session_ttl: Duration,
    pub(crate) session_beat: Duration,
    pub(crate) heartbeat_timeout: Duration,
    /// How long an arbiter leads without a commit of the store.
    pub(crate) leader_ttl: Duration,
}

/// What the matrix runs with.
pub(crate) const TIMES: Times = Times {
    // An arbiter that others may follow takes none that a change of leader could end.
    node_ttl: Duration::from_millis(3_600),
    node_beat: Duration::from_millis(500),
    partition_grace: Duration::from_secs(2),
    session_ttl: Duration::from_secs(4),
    session_beat: Duration::from_millis(700),
    heartbeat_timeout: Duration::from_secs(4),
    leader_ttl: Duration::from_secs(1),
};

/// Which packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Both ways.
    Both,
    /// From the first to the second only.
    There,
    /// From the second to the first only.
    Back,
}

impl Direction {
    const ALL: &'static [Self] = &[Self::Both, Self::There, Self::Back];
}

/// Stands for all other hosts.
const EVERYBODY: &str = "everybody";

/// A cut between two hosts, or between one and all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    a: &'static str,
    b: &'static str,
    direction: Direction,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = match self.direction {
            Direction::Both => "x",
            Direction::There => "x>",
            Direction::Back => "<x",
        };
        write!(f, "{} {arrow} {}", self.a, self.b)
    }
}

impl Cut {
    /// Each pair of hosts and each host from all others, both ways and either way. All but the last leave
    /// others through which the two could still be heard.
    pub(crate) fn all() -> Vec<Self> {
        let pairs = HOSTS.iter().enumerate().flat_map(|(index, &a)| {
            let others = HOSTS[index + 1..].iter();
            others.chain([&EVERYBODY]).map(move |&b| (a, b))
        });
        let cuts = pairs.flat_map(|(a, b)| {
            let each = Direction::ALL.iter();
            each.map(move |&direction| Self { a, b, direction })
        });
        cuts.collect()
    }

    /// Which packets are lost: from whom to whom.
    pub(crate) fn ways(&self) -> Vec<(&'static str, &'static str)> {
        let others = HOSTS.iter().copied();
        let others =
            others.filter(|&host| host != self.a && (self.b == EVERYBODY || host == self.b));
        others
            .flat_map(|other| match self.direction {
                Direction::Both => vec![(self.a, other), (other, self.a)],
                Direction::There => vec![(self.a, other)],
                Direction::Back => vec![(other, self.a)],
            })
            .collect()
    }

    fn loses(&self, from: &str, to: &str) -> bool {
        self.ways().contains(&(from, to))
    }

    /// Whether it comes between these two.
    fn parts(&self, one: &str, other: &str) -> bool {
        self.loses(one, other) || self.loses(other, one)
    }
}

/// The modes for which partitions are defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Independent,
    Distributed,
}

impl Mode {
    pub(crate) const ALL: &'static [Self] = &[Self::Independent, Self::Distributed];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Independent => "independent",
            Self::Distributed => "distributed",
        }
    }
}

/// When the cut heals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heals {
    /// Before any lease is over.
    Before,
    /// After all that can end has ended.
    After,
}

impl Heals {
    pub(crate) const ALL: &'static [Self] = &[Self::Before, Self::After];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// From when to when something may be seen, counted from the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) earliest: Duration,
    pub(crate) latest: Duration,
}

impl Bounds {
    pub(crate) fn hold(&self, seen: Duration) -> bool {
        seen >= self.earliest && seen <= self.latest + LATE
    }
}

impl Bounds {
    /// Whichever of two comes first.
    fn either(self, other: Self) -> Self {
        Self {
            earliest: self.earliest.min(other.earliest),
            latest: self.latest.min(other.latest),
        }
    }

    fn later(self, by: Duration) -> Self {
        Self {
            latest: self.latest + by,
            ..self
        }
    }
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (earliest, latest) = (self.earliest.as_secs_f64(), self.latest.as_secs_f64());
        write!(f, "{earliest:.2} to {latest:.2} s")
    }
}

/// What must follow from a cut that lasts; absent is what must not happen at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Expected {
    /// The worker ends.
    pub(crate) worker_ends: Option<Bounds>,
    /// Another incarnation of it starts.
    pub(crate) starts_again: Option<Bounds>,
    /// The owner gives its session up.
    pub(crate) owner_ends: Option<Bounds>,
}

impl Times {
    /// What is left of a span to its holder, and what its grantor makes of it.
    fn held(span: Duration) -> Duration {
        span - span * RHO_PPM / 1_000_000
    }

    fn waited(span: Duration) -> Duration {
        span * (1_000_000 + RHO_PPM) / (1_000_000 - RHO_PPM) + SLACK
    }

    /// From when to when what is held for `span`, renewed each `beat`, may end after the last beat that
    /// arrived: the cut comes up to a beat after that, and the answer on its way may be the last that does.
    fn ends(span: Duration, beat: Duration, early: Duration) -> Bounds {
        Bounds {
            earliest: span.saturating_sub(beat * 2 + early),
            latest: span,
        }
    }

    /// How long a cut lasts that heals so.
    pub(crate) fn lasts(&self, heals: Heals) -> Duration {
        match heals {
            Heals::Before => self.node_ttl.min(self.session_ttl) / 3,
            Heals::After => {
                let node = Self::waited(self.node_ttl) + Self::waited(self.partition_grace);
                let owner = Self::waited(self.session_ttl) + self.heartbeat_timeout;
                node.max(owner) + LATE * 2
            }
        }
    }

    /// What must follow from a cut that heals so, where gateways relay beats or do not. The worker is on the
    /// first node.
    pub(crate) fn expected(&self, cut: Cut, mode: Mode, heals: Heals, relay: bool) -> Expected {
        if heals == Heals::Before {
            return Expected::default();
        }
        let around = !cut.parts("arbiter", "gateway") && !cut.parts("gateway", "node-1");
        let node = cut.parts("arbiter", "node-1") && !(relay && around);
        let owner = cut.parts("gateway", "owner") || cut.parts("arbiter", "gateway");
        // Without its store the arbiter leads for a little longer, and then answers nobody.
        let deposed = cut.parts("store", "arbiter");
        let reigns = |cut: bool| match cut {
            true => Duration::ZERO,
            false => self.leader_ttl,
        };
        let of_node = (node || deposed).then(|| self.node_ends().later(reigns(node)));
        let heard = !cut.loses("owner", "gateway") && !cut.loses("gateway", "arbiter");
        let ends_with_owner = (owner || deposed) && mode == Mode::Independent;
        let of_owner = ends_with_owner.then(|| self.timeout_ends(heard).later(reigns(owner)));
        // Its owner's word reaches a worker by its node alone.
        let untold = node && mode == Mode::Independent;
        let of_silence = untold.then(|| self.timeout_ends(false));
        let ends = of_node.into_iter().chain(of_owner).chain(of_silence);
        let ends = ends.reduce(Bounds::either);
        let owner_ends = (owner || deposed).then(|| {
            let held = Self::held(self.session_ttl);
            Self::ends(held, self.session_beat, Duration::ZERO).later(reigns(owner))
        });
        // An arbiter that hears neither takes the owner for lost, and its pool ends. One that did not lead
        // meanwhile begins with what the store says: the pool is there, and its worker is not.
        let again = ends.filter(|_| deposed || (node && of_owner.is_none()));
        // Nor can anything be ordered before the heal where nobody leads, or the other node is not heard.
        let wait = if deposed || cut.parts("arbiter", "node-2") {
            self.lasts(heals) + REJOIN
        } else {
            let unproven = self.node_beat * UNPROVEN_BEATS;
            Self::waited(self.node_ttl) + Self::waited(self.partition_grace) + unproven
        };
        Expected {
            worker_ends: ends,
            starts_again: again.map(|ends| Bounds {
                earliest: ends.earliest,
                latest: wait,
            }),
            owner_ends,
        }
    }

    fn node_ends(&self) -> Bounds {
        let alive = Self::held(self.node_ttl) + self.partition_grace;
        Self::ends(alive, self.node_beat, self.node_ttl / 6)
    }

    /// An owner that is `heard` hears nothing itself.
    fn timeout_ends(&self, heard: bool) -> Bounds {
        let span = self.heartbeat_timeout;
        let mut bounds = Self::ends(span, self.session_beat, self.node_ttl / 6);
        if heard {
            bounds.latest += self.session_beat * UNPROVEN_BEATS;
        }
        bounds
    }
}
