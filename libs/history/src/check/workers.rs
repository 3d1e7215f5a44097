//! Whether workers end with their permission, one after the other, and for a recorded cause (H1, H2, H4, H5).

use std::{collections::BTreeMap, time::Duration};

use super::{At, Look, Report, Rule, SLACK};
use crate::{Scope, What, Worker};

/// What an agent says of the end of a lease.
const LEASE_EXPIRED: &str = "LEASE_EXPIRED";

/// Two clocks that are read one after the other.
const READING: Duration = Duration::from_millis(20);

/// What is known of one incarnation.
#[derive(Debug, Default)]
struct Life {
    started: Option<(At, String, Duration)>,
    /// When it was gone, where that is known, and why.
    died: Option<(Option<At>, String)>,
    /// When an arbiter recorded its death, each time one did.
    buried: Vec<At>,
}

/// One change of a permission: when, and until when workers may live.
type Change = (At, At);

/// What agents and arbiters said of workers.
#[derive(Debug, Default)]
pub(super) struct Workers {
    lives: BTreeMap<Worker, Life>,
    permitted: BTreeMap<Scope, Vec<Change>>,
    /// The last word of each node's agents.
    last_word: BTreeMap<String, Vec<At>>,
}

impl Workers {
    pub(super) fn read(&mut self, at: At, what: &What) {
        match what {
            What::Permitted { scope, alive, .. } => {
                let mut until = at.and(alive.map_or(Duration::MAX, Duration::from_nanos));
                let changes = self.permitted.entry(scope.clone()).or_default();
                // What is over already is not over anew each time it is told.
                if *alive == Some(0)
                    && let Some(&(_, before)) = changes.last()
                {
                    until = until.min(before);
                }
                changes.push((at, until));
                let (Scope::Node(node) | Scope::Pool { node, .. }) = scope;
                self.heard(node, at);
            }
            What::Started {
                worker,
                node,
                grace_ms,
            } => {
                let grace = Duration::from_millis(*grace_ms);
                let life = self.lives.entry(worker.clone()).or_default();
                // An agent that takes it over says so again.
                life.started
                    .get_or_insert_with(|| (at, node.clone(), grace));
                self.heard(node, at);
            }
            What::Died {
                worker,
                died,
                cause,
            } => {
                let died = died.map(|died| At::on(at.boot, died));
                let life = self.lives.entry(worker.clone()).or_default();
                life.died.get_or_insert_with(|| (died, cause.clone()));
            }
            What::Buried { worker, .. } => {
                let life = self.lives.entry(worker.clone()).or_default();
                life.buried.push(at);
            }
            What::Opened { .. }
            | What::Granted { .. }
            | What::Freed { .. }
            | What::Held { .. }
            | What::Stopped { .. }
            | What::Placed { .. }
            | What::Admitted { .. }
            | What::Refused { .. } => {}
        }
    }

    /// An agent of this node was there then.
    fn heard(&mut self, node: &str, at: At) {
        let words = self.last_word.entry(node.to_owned()).or_default();
        match words.iter_mut().find(|word| word.boot == at.boot) {
            Some(word) => *word = (*word).max(at),
            None => words.push(at),
        }
    }

    pub(super) fn judge(&self, report: &mut Report) {
        let mut places: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (worker, life) in &self.lives {
            report.add(Rule::H1, self.ends_in_time(worker, life));
            if let Some((died, cause)) = &life.died
                && cause == LEASE_EXPIRED
            {
                report.add(Rule::H4, self.had_run_out(worker, life, *died));
            }
            let times = life.buried.len();
            let look = Look::holds(times <= 1, || {
                format!("the death of `{}` was recorded {times} times", worker.0)
            });
            report.add(Rule::H5, look);
            places
                .entry(worker.place())
                .or_default()
                .push((worker, life));
        }
        // Incarnations of one place are numbered in the order of their starts.
        for lives in places.values() {
            for pair in lives.windows(2) {
                if let [before, after] = pair {
                    report.add(Rule::H2, self.one_after_the_other(*before, *after));
                }
            }
        }
    }

    /// The end of a worker's permission as it stood at `at`.
    fn limit(&self, worker: &Worker, node: &str, at: At) -> Option<At> {
        let scopes = [
            Scope::Node(node.to_owned()),
            Scope::Pool {
                node: node.to_owned(),
                pool: worker.0.pool.to_string(),
            },
        ];
        let last = |scope| {
            let changes = self.permitted.get(scope)?.iter();
            let before = changes.filter(|(told, _)| at.boot == told.boot && *told <= at);
            before
                .max_by_key(|(told, _)| *told)
                .map(|&(_, until)| until)
        };
        scopes.iter().filter_map(last).min()
    }

    fn ends_in_time(&self, worker: &Worker, life: &Life) -> Look {
        let Some((started, node, _)) = &life.started else {
            return Look::Unjudged;
        };
        let name = &worker.0;
        if let Some((died, _)) = &life.died {
            let Some(died) = *died else {
                return Look::Unjudged;
            };
            let Some(late) = self
                .limit(worker, node, died)
                .and_then(|limit| died.after(limit.and(SLACK)))
            else {
                return Look::Unjudged;
            };
            return Look::holds(late.is_zero(), || {
                format!("`{name}` was gone {late:?} too late after its permission was over")
            });
        }
        let words = self.last_word.get(node).into_iter().flatten();
        let Some(last) = words.copied().find(|word| word.boot == started.boot) else {
            return Look::Unjudged;
        };
        let Some(limit) = self.limit(worker, node, last) else {
            return Look::Unjudged;
        };
        match last.after(limit.and(SLACK)) {
            // Its agent was not there to see, or it lives on by right.
            None => Look::Unjudged,
            Some(beyond) if beyond.is_zero() => Look::Unjudged,
            Some(beyond) => Look::Broken(format!(
                "`{name}` is not known to have ended, though its agent was there {beyond:?} after its permission was over"
            )),
        }
    }

    /// Whether the lease on whose end a worker was ended had run out.
    fn had_run_out(&self, worker: &Worker, life: &Life, died: Option<At>) -> Look {
        let (Some((_, node, grace)), Some(died)) = (&life.started, died) else {
            return Look::Unjudged;
        };
        let Some(limit) = self.limit(worker, node, died) else {
            return Look::Unjudged;
        };
        match limit.after(died.and(*grace + READING)) {
            None => Look::Unjudged,
            Some(early) => Look::holds(early.is_zero(), || {
                format!(
                    "`{}` was ended for want of a permission that it had for {early:?} more",
                    worker.0
                )
            }),
        }
    }

    fn one_after_the_other(&self, before: (&Worker, &Life), after: (&Worker, &Life)) -> Look {
        let ((first, before), (second, after)) = (before, after);
        let Some((started, ..)) = &after.started else {
            return Look::Unjudged;
        };
        let Some((_, node, _)) = &before.started else {
            return Look::Unjudged;
        };
        let gone = match before.died {
            Some((Some(died), _)) => Some(died),
            // Nobody saw it end. Then it was gone when its permission was over, or when an arbiter had proof.
            Some((None, _)) | None => {
                let proven = before.buried.first().copied();
                proven.or_else(|| self.limit(first, node, *started))
            }
        };
        let Some(overlap) = gone.and_then(|gone| gone.after(*started)) else {
            return Look::Unjudged;
        };
        Look::holds(overlap.is_zero(), || {
            format!(
                "`{}` was started {overlap:?} before `{}` was gone",
                second.0, first.0
            )
        })
    }
}
