//! Whether a history keeps the promises.

mod gates;
mod leases;
mod workers;

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;

use crate::{Record, What};
use gates::Gates;
use leases::Leases;
use workers::Workers;

/// What a kill may take beyond a deadline: what the grantor of a lease waits beyond its end.
const SLACK: Duration = Duration::from_millis(500);

/// A tick, on one machine since one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    boot: usize,
    tick: u64,
}

impl At {
    fn on(boot: usize, tick: u64) -> Self {
        Self { boot, tick }
    }

    /// How much later this is than `other`; nothing where the two cannot be compared, zero where it is not.
    fn after(self, other: Self) -> Option<Duration> {
        let nanos = self.tick.saturating_sub(other.tick);
        (self.boot == other.boot).then_some(Duration::from_nanos(nanos))
    }

    fn and(self, more: Duration) -> Self {
        let nanos = u64::try_from(more.as_nanos()).unwrap_or(u64::MAX);
        Self::on(self.boot, self.tick.saturating_add(nanos))
    }
}

/// A rule of the crate's front page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Rule {
    /// No orphan.
    H1,
    /// No double life, live.
    H2,
    /// No double life, effective.
    H3,
    /// No innocent death.
    H4,
    /// No silence.
    H5,
}

impl Rule {
    /// All of them.
    pub const ALL: &'static [Self] = &[Self::H1, Self::H2, Self::H3, Self::H4, Self::H5];

    /// The promise behind it.
    pub const fn promise(self) -> &'static str {
        match self {
            Self::H1 => "no orphan",
            Self::H2 => "no double life, live",
            Self::H3 => "no double life, effective",
            Self::H4 => "no innocent death",
            Self::H5 => "no silence",
        }
    }
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// What happened, in one sentence.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} ({}): {}",
            self.rule,
            self.rule.promise(),
            self.text
        )
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What was broken.
    pub violations: Vec<Violation>,
    /// How often each rule was looked at and held.
    pub held: BTreeMap<Rule, u64>,
    /// How often a rule could not be looked at: ticks of two machines, or lines that are missing.
    pub unjudged: BTreeMap<Rule, u64>,
    /// Lines read.
    pub lines: u64,
}

/// What one look at one rule found.
enum Look {
    Held,
    Unjudged,
    Broken(String),
}

impl Look {
    fn holds(held: bool, text: impl FnOnce() -> String) -> Self {
        if held {
            Self::Held
        } else {
            Self::Broken(text())
        }
    }
}

impl Report {
    fn add(&mut self, rule: Rule, look: Look) {
        match look {
            Look::Held => *self.held.entry(rule).or_default() += 1,
            Look::Unjudged => *self.unjudged.entry(rule).or_default() += 1,
            Look::Broken(text) => self.violations.push(Violation { rule, text }),
        }
    }
}

/// Reads a history, file by file, and then judges it.
#[derive(Debug, Default)]
pub struct Checker {
    boots: Vec<String>,
    /// That of the file that is being read; none before its `opened`.
    boot: Option<usize>,
    lines: u64,
    leases: Leases,
    workers: Workers,
    gates: Gates,
}

impl Checker {
    /// One that has read nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another file begins.
    pub fn next_file(&mut self) {
        self.boot = None;
    }

    /// The next line of the file. One before the file's `opened` belongs to no machine and is left out.
    pub fn read(&mut self, record: &Record) {
        self.lines += 1;
        if let What::Opened { boot, .. } = &record.what {
            let known = self.boots.iter().position(|known| known == boot);
            self.boot = known.or_else(|| {
                self.boots.push(boot.clone());
                Some(self.boots.len() - 1)
            });
            return;
        }
        let Some(boot) = self.boot else { return };
        let at = At::on(boot, record.at);
        self.leases.read(at, &record.what);
        self.workers.read(at, &record.what);
        self.gates.read(at, &record.what);
    }

    /// Judges all that was read.
    pub fn finish(&self) -> Report {
        let mut report = Report {
            lines: self.lines,
            ..Report::default()
        };
        self.leases.judge(&mut report);
        self.workers.judge(&mut report);
        self.gates.judge(&mut report);
        report
    }
}
