//! What is tried: victims, phases, behaviours and levels, and what must follow from each kill.

use std::{fmt, str::FromStr};

macro_rules! axis {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum $name { $($(#[$word_doc])* $variant,)+ }

        impl $name {
            /// All of them, in the order of the table.
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)+];
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(match self { $(Self::$variant => $word,)+ })
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("`{word}` is none of: {}", [$($word),+].join(", "))),
                }
            }
        }
    };
}

axis! {
    /// What a node guarantees by.
    Level {
        /// A PID namespace and a cgroup.
        G1 = "G1",
        /// A PID namespace.
        G2 = "G2",
        /// A cgroup.
        G3 = "G3",
        /// Neither, but the agent is the first process of a container.
        G4 = "G4",
        /// Neither.
        G5 = "G5",
    }
}

axis! {
    /// Who is killed.
    Victim {
        /// The process that owns the pools.
        Client = "client",
        /// The agent.
        Agent = "agent",
        /// The process that shims are forked from.
        Zygote = "zygote",
        /// One worker's shim.
        OneShim = "one-shim",
        /// The first process of one worker's namespace.
        Init = "init",
        /// Every shim of the node.
        AllShims = "all-shims",
        /// Owner, arbiter, gateway, agent, zygote and every shim in the same instant.
        Everything = "everything",
    }
}

axis! {
    /// When.
    Phase {
        /// All workers run.
        Idle = "idle",
        /// The pools are being started.
        Spawn = "spawn",
        /// The workers were asked to stop and have not yet.
        Stop = "stop",
        /// The agent was replaced and the new one takes the workers over.
        Upgrade = "upgrade",
    }
}

axis! {
    /// What kind of worker it hits.
    Behaviour {
        /// Ends when asked to.
        Polite = "polite",
        /// Hears no signal that can be blocked.
        Stubborn = "stubborn",
        /// Left a daemon behind by double fork and setsid.
        Daemon = "daemon",
        /// Left a chain of processes behind, each of which forks its successor and ends.
        Chain = "chain",
        /// Stopped by SIGSTOP.
        Stopped = "stopped",
        /// Frozen by its cgroup.
        Frozen = "frozen",
        /// Runs a set-uid program, which clears its parent-death signal.
        SetUid = "setuid",
    }
}

/// What must follow from a kill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// Nothing of the worker is left.
    Gone,
    /// As documented of this level, it may be left until the next agent starts, or a container's first
    /// process runs, which ends it.
    GoneOrHole,
    /// It lives on, the same process.
    Lives,
    /// It may have been overtaken by what was under way; it is gone once its owner is.
    GoneWithOwner,
}

/// One event: who is killed and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Event {
    pub(crate) victim: Victim,
    pub(crate) phase: Phase,
    /// Whether the pools keep their workers when the agent is lost.
    pub(crate) held: bool,
    /// Whether the container's first process is stopped until it is seen what is left meanwhile.
    pub(crate) dozes: bool,
}

impl Level {
    pub(crate) fn has_cgroup(self) -> bool {
        matches!(self, Self::G1 | Self::G3)
    }

    pub(crate) fn has_namespace(self) -> bool {
        matches!(self, Self::G1 | Self::G2)
    }
}

impl Event {
    /// What must follow for a worker that it hits.
    pub(crate) fn expect(self, level: Level, behaviour: Behaviour) -> Expect {
        let escapes = matches!(
            behaviour,
            Behaviour::Daemon | Behaviour::Chain | Behaviour::SetUid
        );
        match self.victim {
            Victim::OneShim | Victim::AllShims if self.waits_for_first(level) && escapes => {
                Expect::GoneOrHole
            }
            Victim::Client | Victim::OneShim | Victim::Init | Victim::AllShims => Expect::Gone,
            // It is the container's first process, with which everything ends there.
            Victim::Zygote if level == Level::G4 => Expect::Gone,
            Victim::Everything => match level {
                Level::G3 | Level::G5 if escapes => Expect::GoneOrHole,
                Level::G1 | Level::G2 | Level::G3 | Level::G4 | Level::G5 => Expect::Gone,
            },
            Victim::Agent | Victim::Zygote => match self.phase {
                Phase::Spawn | Phase::Stop => Expect::GoneWithOwner,
                Phase::Idle | Phase::Upgrade if self.victim == Victim::Agent && !self.held => {
                    Expect::Gone
                }
                Phase::Idle | Phase::Upgrade => Expect::Lives,
            },
        }
    }

    /// Whether workers of other owners live on.
    pub(crate) fn spares_others(self, level: Level) -> bool {
        match self.victim {
            Victim::AllShims | Victim::Everything => false,
            Victim::Zygote => level != Level::G4,
            Victim::Client | Victim::Agent | Victim::OneShim | Victim::Init => true,
        }
    }

    /// Whether the agent is stopped meanwhile: what a shim leaves is the first process's to end, alone.
    pub(crate) fn stops_agent(self, level: Level) -> bool {
        level == Level::G4 && matches!(self.victim, Victim::OneShim | Victim::AllShims)
    }

    /// Whether the container's first process is stopped as well: the moment that it takes is drawn out.
    pub(crate) fn waits_for_first(self, level: Level) -> bool {
        self.dozes && self.stops_agent(level)
    }
}

/// Which cells to run: all but what `--only` leaves out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Only {
    victim: Option<Victim>,
    phase: Option<Phase>,
    level: Option<Level>,
}

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut only = Self::default();
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("victim", word)) => only.victim = Some(word.parse()?),
                Some(("phase", word)) => only.phase = Some(word.parse()?),
                Some(("level", word)) => only.level = Some(word.parse()?),
                _ => {
                    return Err(format!(
                        "`{part}` is not one of victim=, phase=, level= with a word"
                    ));
                }
            }
        }
        Ok(only)
    }
}

impl Only {
    pub(crate) fn level(&self, level: Level) -> bool {
        self.level.is_none_or(|only| only == level)
    }

    pub(crate) fn event(&self, victim: Victim, phase: Phase) -> bool {
        self.victim.is_none_or(|only| only == victim) && self.phase.is_none_or(|only| only == phase)
    }
}

/// Random numbers that a seed repeats (SplitMix64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// One of `0..below`.
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below.max(1)
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.roll(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(victim: Victim, phase: Phase) -> Event {
        Event {
            victim,
            phase,
            held: true,
            dozes: false,
        }
    }

    #[test]
    fn a_hole_is_only_where_it_is_documented() {
        for &level in Level::ALL {
            for &victim in Victim::ALL {
                for &phase in Phase::ALL {
                    for &behaviour in Behaviour::ALL {
                        let escapes = [Behaviour::Daemon, Behaviour::Chain, Behaviour::SetUid]
                            .contains(&behaviour);
                        let mut event = event(victim, phase);
                        for dozes in [false, true] {
                            event.dozes = dozes;
                            let hole = event.expect(level, behaviour) == Expect::GoneOrHole;
                            let documented = match level {
                                Level::G1 | Level::G2 => false,
                                Level::G3 | Level::G5 => victim == Victim::Everything,
                                Level::G4 => {
                                    dozes && [Victim::OneShim, Victim::AllShims].contains(&victim)
                                }
                            };
                            let documented = documented && escapes;
                            assert_eq!(
                                hole, documented,
                                "{level} {victim} {phase} {behaviour} {dozes}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_worker_outlives_its_agent_only_where_its_pool_says_so() {
        let mut lost = event(Victim::Agent, Phase::Idle);
        assert_eq!(lost.expect(Level::G5, Behaviour::Polite), Expect::Lives);
        lost.held = false;
        assert_eq!(lost.expect(Level::G5, Behaviour::Polite), Expect::Gone);
        lost.victim = Victim::Zygote;
        assert_eq!(lost.expect(Level::G5, Behaviour::Polite), Expect::Lives);
    }

    #[test]
    fn with_the_first_process_of_a_container_all_workers_end_and_elsewhere_they_outlive_a_zygote() {
        let zygote = event(Victim::Zygote, Phase::Idle);
        for &level in Level::ALL {
            let ends = level == Level::G4;
            let expect = if ends { Expect::Gone } else { Expect::Lives };
            assert_eq!(zygote.expect(level, Behaviour::Polite), expect, "{level}");
            assert_eq!(zygote.spares_others(level), !ends, "{level}");
        }
    }

    #[test]
    fn one_cell_is_chosen_by_its_words_and_a_wrong_word_is_answered_with_the_right_ones() {
        let only: Only = "victim=agent,phase=idle,level=G5".parse().unwrap();
        assert!(only.level(Level::G5) && !only.level(Level::G1));
        assert!(only.event(Victim::Agent, Phase::Idle));
        assert!(
            !only.event(Victim::Agent, Phase::Stop) && !only.event(Victim::Client, Phase::Idle)
        );
        assert!(
            "phase=lunch"
                .parse::<Only>()
                .unwrap_err()
                .contains("idle, spawn, stop, upgrade")
        );
    }

    #[test]
    fn a_seed_repeats_its_order_and_another_seed_has_another() {
        let order = |seed| {
            let mut items: Vec<u32> = (0..28).collect();
            Dice::new(seed).shuffle(&mut items);
            items
        };
        assert_eq!(order(7), order(7));
        assert_ne!(order(7), order(8));
    }
}
