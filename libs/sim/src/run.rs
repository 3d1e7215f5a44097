//! Many schedules, one after the other and on several threads.

use std::{ops::Range, sync::Mutex, thread};

use crate::{Mutant, Violation, World};

/// What came of many schedules.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// How many were played.
    pub schedules: u64,
    /// Their events.
    pub events: u64,
    /// How often a slot was granted in them.
    pub grants: u64,
    /// How many broke a promise.
    pub violations: u64,
    /// The lowest seed that did, and how.
    pub first: Option<(u64, Violation)>,
}

impl Summary {
    fn add(&mut self, seed: u64, mutant: Option<Mutant>) {
        let outcome = World::new(seed, mutant).play();
        self.schedules += 1;
        self.events += outcome.events;
        self.grants += outcome.grants;
        if let Some(violation) = outcome.violation {
            self.violations += 1;
            self.first.get_or_insert((seed, violation));
        }
    }

    /// Takes over what came of others.
    pub fn merge(&mut self, other: Self) {
        self.schedules += other.schedules;
        self.events += other.events;
        self.grants += other.grants;
        self.violations += other.violations;
        let earlier = |(seed, _): &(u64, Violation)| {
            self.first.as_ref().is_none_or(|(first, _)| seed < first)
        };
        if other.first.as_ref().is_some_and(earlier) {
            self.first = other.first;
        }
    }
}

/// Plays the schedules of these seeds on so many threads.
pub fn all(seeds: Range<u64>, mutant: Option<Mutant>, threads: u64) -> Summary {
    let total = Mutex::new(Summary::default());
    thread::scope(|scope| {
        for thread in 0..threads.max(1) {
            let (total, seeds) = (&total, seeds.clone());
            scope.spawn(move || {
                let mut own = Summary::default();
                let step = usize::try_from(threads.max(1)).unwrap_or(1);
                let first = usize::try_from(thread).unwrap_or(0);
                for seed in seeds.skip(first).step_by(step) {
                    own.add(seed, mutant);
                }
                if let Ok(mut total) = total.lock() {
                    total.merge(own);
                }
            });
        }
    });
    total.into_inner().unwrap_or_default()
}

/// Plays the schedules of these seeds until one breaks a promise.
pub fn until_broken(seeds: Range<u64>, mutant: Option<Mutant>) -> Summary {
    let mut summary = Summary::default();
    for seed in seeds {
        summary.add(seed, mutant);
        if summary.violations > 0 {
            break;
        }
    }
    summary
}
