//! Whether a lease has one holder at a time: grantors free it after its holder has stopped, and not before it has
//! run out (H2, H4); an epoch that was followed by another is extended no more, and who is gone holds nothing (H2).

use std::{collections::BTreeMap, time::Duration};

use super::{At, Look, Report, Rule};
use crate::{Freed, What};

/// Between a decision and the line that tells it, on a busy machine.
const READING: Duration = Duration::from_millis(100);

/// What both sides said of one epoch of one lease.
#[derive(Debug, Default)]
struct Life {
    granted: Vec<At>,
    /// Until when each grant reached; as many as there are grants.
    until: Vec<At>,
    freed: Option<(At, Freed)>,
    held: Vec<(At, At)>,
    stopped: Option<At>,
}

/// By lease and epoch.
#[derive(Debug, Default)]
pub(super) struct Leases(BTreeMap<String, BTreeMap<u64, Life>>);

impl Leases {
    pub(super) fn read(&mut self, at: At, what: &What) {
        match what {
            What::Granted { lease, epoch, left } => {
                let life = self.life(lease, *epoch);
                life.granted.push(at);
                life.until.push(at.and(Duration::from_nanos(*left)));
            }
            What::Freed { lease, epoch, why } => {
                // Said again by a later arbiter it is no news.
                self.life(lease, *epoch).freed.get_or_insert((at, *why));
            }
            What::Held { lease, epoch, left } => {
                let until = at.and(Duration::from_nanos(*left));
                self.life(lease, *epoch).held.push((at, until));
            }
            What::Stopped { lease, epoch } => {
                self.life(lease, *epoch).stopped.get_or_insert(at);
            }
            What::Opened { .. }
            | What::Placed { .. }
            | What::Permitted { .. }
            | What::Started { .. }
            | What::Died { .. }
            | What::Buried { .. }
            | What::Admitted { .. }
            | What::Refused { .. } => {}
        }
    }

    fn life(&mut self, lease: &str, epoch: u64) -> &mut Life {
        if !self.0.contains_key(lease) {
            self.0.insert(lease.to_owned(), BTreeMap::new());
        }
        let epochs = self.0.entry(lease.to_owned()).or_default();
        epochs.entry(epoch).or_default()
    }

    pub(super) fn judge(&self, report: &mut Report) {
        for (lease, epochs) in &self.0 {
            for (epoch, life) in epochs {
                let name = format!("`{lease}` of epoch {epoch}");
                match life.freed {
                    Some((freed, Freed::Expired)) => judge_expiry(&name, life, freed, report),
                    Some((freed, Freed::Proof | Freed::Returned)) if !life.held.is_empty() => {
                        report.add(Rule::H2, held_from_the_grave(&name, life, freed));
                    }
                    Some(_) | None => {}
                }
            }
            let lives: Vec<_> = epochs.iter().collect();
            for pair in lives.windows(2) {
                if let [(first, before), (second, after)] = pair
                    && let Some(&granted) = after.granted.first()
                {
                    let look = succession(before, granted).unwrap_or_else(|text| {
                        Look::Broken(format!(
                            "`{lease}` was granted to epoch {second} while epoch {first} {text}"
                        ))
                    });
                    report.add(Rule::H2, look);
                    let late = before.granted.iter().filter_map(|at| at.after(granted));
                    if let Some(late) = late.max() {
                        let held = late <= READING;
                        let look = Look::holds(held, || {
                            format!(
                                "`{lease}` was extended for epoch {first} {late:?} after it was granted to epoch {second}"
                            )
                        });
                        report.add(Rule::H2, look);
                    }
                }
            }
        }
    }
}

/// A lease was freed because it ran out.
fn judge_expiry(name: &str, life: &Life, freed: At, report: &mut Report) {
    let told = freed.and(READING);
    let early = life.until.iter().filter_map(|until| until.after(told));
    let look = match early.max() {
        None => Look::Unjudged,
        Some(early) => Look::holds(early.is_zero(), || {
            format!("{name} was freed as run out {early:?} before its end")
        }),
    };
    report.add(Rule::H4, look);
    report.add(Rule::H2, still_held(name, life, freed));
}

/// Whether its holder had stopped when the grantor freed it.
fn still_held(name: &str, life: &Life, freed: At) -> Look {
    let stopped = life.stopped.and_then(|stopped| freed.after(stopped));
    if stopped.is_some_and(|ago| !ago.is_zero()) {
        return Look::Held;
    }
    let beyond = life.held.iter().filter_map(|(_, until)| until.after(freed));
    match beyond.max() {
        None => Look::Unjudged,
        Some(beyond) => Look::holds(beyond.is_zero(), || {
            format!("{name} was freed while its holder went on for {beyond:?}")
        }),
    }
}

/// Whether a holder that is dead, or gave its lease back, was heard to go on with it: who is gone writes nothing.
fn held_from_the_grave(name: &str, life: &Life, freed: At) -> Look {
    let late = life.held.iter().filter_map(|(at, _)| at.after(freed));
    match late.max() {
        None => Look::Unjudged,
        Some(late) => Look::holds(late <= READING, || {
            format!("{name} was held {late:?} after its holder was gone")
        }),
    }
}

/// Whether an epoch was over when the next one was granted.
fn succession(before: &Life, granted: At) -> Result<Look, String> {
    match before.freed {
        Some((freed, _)) if freed.after(granted).is_some_and(|late| !late.is_zero()) => {
            Err("was freed only afterwards".to_owned())
        }
        Some((freed, _)) if freed.boot == granted.boot => Ok(Look::Held),
        Some(_) => Ok(Look::Unjudged),
        // No grantor wrote of it: then what its holder wrote counts.
        None if before.held.is_empty() => Ok(Look::Unjudged),
        None => match still_held("it", before, granted) {
            Look::Broken(_) => Err("was held and nobody had freed it".to_owned()),
            look => Ok(look),
        },
    }
}
