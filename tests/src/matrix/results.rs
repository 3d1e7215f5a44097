//! Adds rounds up to cells, and cells to the evidence and the page.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use crate::{
    plan::{Behaviour, Event, Level, Phase, Victim},
    pools::why_not,
    round::{Outcome, Round},
    strangers::Account,
};

/// Which cell of the matrix.
type Key = (Level, Victim, Phase, Behaviour);

/// How the trials of one cell ended.
#[derive(Debug, Default)]
struct Cell {
    trials: usize,
    holes: usize,
    failures: Vec<String>,
}

/// Everything so far.
#[derive(Debug, Default)]
pub(crate) struct Results {
    cells: BTreeMap<Key, Cell>,
    reasons: BTreeMap<(Level, Option<Victim>), String>,
    took_ms: BTreeMap<(Level, Victim), Vec<f64>>,
    orphans: usize,
    deaths: usize,
    bystanders: usize,
    faults: Vec<String>,
    worlds: usize,
    account: Account,
}

/// What a run was.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) wanted: usize,
    pub(crate) seconds: f64,
    pub(crate) account: Account,
}

impl Results {
    /// Trials that count.
    pub(crate) fn trials(&self) -> usize {
        self.cells.values().map(|cell| cell.trials).sum()
    }

    /// Adds a round; `seed` repeats it.
    pub(crate) fn add(&mut self, level: Level, event: Event, seed: u64, round: Round) {
        let again = format!(
            "--only victim={},phase={},level={level} --seed {seed}",
            event.victim, event.phase
        );
        if let Some(why) = round.skipped {
            self.reasons
                .insert((level, Some(event.victim)), why.to_owned());
        }
        self.bystanders += round.bystanders;
        for fault in round.faults {
            if fault.contains("none of its business") {
                self.deaths += 1;
            } else {
                self.orphans += 1;
            }
            self.faults.push(format!("{fault} ({again})"));
        }
        for (behaviour, label, outcome) in round.trials {
            let key = (level, event.victim, event.phase, behaviour);
            let cell = self.cells.entry(key).or_default();
            cell.trials += 1;
            match outcome {
                Outcome::Gone(Some(took)) => {
                    let times = self.took_ms.entry((level, event.victim)).or_default();
                    times.push(took.as_secs_f64() * 1000.0);
                }
                Outcome::Gone(None) | Outcome::Lived => {}
                Outcome::Hole => cell.holes += 1,
                Outcome::Orphan => {
                    self.orphans += 1;
                    cell.failures.push(format!("{label} was left ({again})"));
                }
                Outcome::Died => {
                    self.deaths += 1;
                    cell.failures
                        .push(format!("{label} died although it was to live ({again})"));
                }
            }
        }
    }

    /// A level that cannot be had here.
    pub(crate) fn skip(&mut self, level: Level, why: &str) {
        self.reasons.insert((level, None), why.to_owned());
    }

    /// A world ended; `left` was left of it.
    pub(crate) fn end_world(&mut self, level: Level, seed: u64, left: Vec<String>) {
        self.worlds += 1;
        self.orphans += left.len();
        let said = left
            .into_iter()
            .map(|left| format!("{left} is left of a world (--only level={level} --seed {seed})"));
        self.faults.extend(said);
    }

    /// What became of the strangers in the containers of a world.
    pub(crate) fn add_account(&mut self, account: Account) {
        self.account.add(account);
    }

    /// What became of the strangers in all containers.
    pub(crate) fn account(&self) -> Account {
        self.account.clone()
    }

    /// Something could not be played to its end, which is no success.
    pub(crate) fn fault(&mut self, text: String) {
        self.faults.push(text);
    }

    /// Whether so much is broken that going on tells nothing more.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.faults.len() > 25
    }

    fn why_skipped(&self, (level, victim, _, behaviour): Key) -> String {
        let of = |victim| self.reasons.get(&(level, victim)).cloned();
        of(None)
            .or_else(|| of(Some(victim)))
            .or_else(|| why_not(level, behaviour).map(str::to_owned))
            .unwrap_or_else(|| "it was not chosen, or no kill of it came in time".to_owned())
    }

    /// The evidence, in the form that every command here has.
    pub(crate) fn json(&self, run: &Run) -> Value {
        let (mut passed, mut failed, mut skipped) = (0_u32, 0_u32, 0_u32);
        let mut rows = Vec::new();
        for &level in Level::ALL {
            for &victim in Victim::ALL {
                for &phase in Phase::ALL {
                    for &behaviour in Behaviour::ALL {
                        let key = (level, victim, phase, behaviour);
                        let name = format!("{level} {victim} {phase} {behaviour}");
                        let Some(cell) = self.cells.get(&key) else {
                            skipped += 1;
                            rows.push(json!({ "name": name, "skipped": self.why_skipped(key) }));
                            continue;
                        };
                        let pass = cell.failures.is_empty();
                        *if pass { &mut passed } else { &mut failed } += 1;
                        rows.push(json!({
                            "name": name,
                            "expected": "as the level promises",
                            "seen": format!("{} trials, {} holes, {} failures", cell.trials, cell.holes, cell.failures.len()),
                            "pass": pass,
                            "level": level.to_string(), "victim": victim.to_string(),
                            "phase": phase.to_string(), "behaviour": behaviour.to_string(),
                            "trials": cell.trials, "holes": cell.holes, "failures": cell.failures,
                        }));
                    }
                }
            }
        }
        let trials = self.trials();
        let claims = [
            (
                "trials that count",
                format!("{} or more", run.wanted),
                trials,
                trials >= run.wanted,
            ),
            ("orphans", "0".into(), self.orphans, self.orphans == 0),
            ("innocent deaths", "0".into(), self.deaths, self.deaths == 0),
            (
                "signals to a stranger",
                "0".into(),
                run.account.signals as usize,
                run.account.signals == 0,
            ),
            (
                "faults",
                "0".into(),
                self.faults.len(),
                self.faults.is_empty(),
            ),
        ];
        for (name, expected, seen, pass) in claims {
            *if pass { &mut passed } else { &mut failed } += 1;
            rows.push(json!({ "name": name, "expected": expected, "seen": seen.to_string(), "pass": pass }));
        }
        let times: Vec<_> = self.took_ms.iter().map(|((level, victim), times)| {
            let mut sorted = times.clone();
            sorted.sort_by(f64::total_cmp);
            let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
            json!({ "level": level.to_string(), "victim": victim.to_string(), "count": sorted.len(),
                "median_ms": round(at(0.5)), "p99_ms": round(at(0.99)), "max_ms": round(at(1.0)) })
        }).collect();
        json!({
            "rows": rows, "passed": passed, "failed": failed, "skipped": skipped,
            "trials": trials, "seed": run.seed, "seconds": round(run.seconds), "worlds": self.worlds,
            "bystanders_looked_after": self.bystanders, "strangers": run.account, "gone_after": times,
            "faults": self.faults,
        })
    }
}

fn round(figure: f64) -> f64 {
    (figure * 10.0).round() / 10.0
}

/// The page for people, from the evidence.
pub(crate) fn page(json: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut page = format!(
        "# Kill matrix\n\nWritten by `cargo xtask matrix kill --docs` from its evidence. Each cell: workers that were hit while they ran as \
         the cell says, and judged by the kernel's word.\n`h` counts documented holes: left until the next agent started, and ended by it; at G4, left while the container's \
         first process was stopped, and ended by that one as soon as it ran. \
         `-` was not tried, for the reason below the table.\n\n\
         {} trials in {} s with seed {}, {} worlds: {} passed, {} failed, {} skipped. Workers of others looked after: {}. \
         Pids recycled by {} processes, {} of them strangers that watched for signals, {} of those on the pid of a process just killed: {} signals.\n",
        json["trials"],
        json["seconds"],
        json["seed"],
        json["worlds"],
        json["passed"],
        json["failed"],
        json["skipped"],
        json["bystanders_looked_after"],
        json["strangers"]["forks"],
        json["strangers"]["strangers"],
        json["strangers"]["on_pids_of_the_dead"],
        json["strangers"]["signals"],
    );
    let empty = Vec::new();
    let rows = json["rows"].as_array().unwrap_or(&empty);
    let by_name: BTreeMap<String, &Value> =
        rows.iter().map(|row| (text(&row["name"]), row)).collect();
    for &level in Level::ALL {
        let _ = write!(page, "\n## {level}\n\n| killed | when |");
        for behaviour in Behaviour::ALL {
            let _ = write!(page, " {behaviour} |");
        }
        let _ = writeln!(
            page,
            "\n| --- | --- |{}",
            " ---: |".repeat(Behaviour::ALL.len())
        );
        let mut reasons: Vec<String> = Vec::new();
        for &victim in Victim::ALL {
            for &phase in Phase::ALL {
                let _ = write!(page, "| {victim} | {phase} |");
                for &behaviour in Behaviour::ALL {
                    let row = by_name.get(&format!("{level} {victim} {phase} {behaviour}"));
                    let Some(row) = row else { continue };
                    let (holes, failures) = (
                        row["holes"].as_u64().unwrap_or(0),
                        row["failures"].as_array().map_or(0, Vec::len),
                    );
                    let cell = match (row["skipped"].as_str(), holes, failures) {
                        (Some(why), ..) => {
                            if !reasons.iter().any(|reason| reason == why) {
                                reasons.push(why.to_owned());
                            }
                            "-".to_owned()
                        }
                        (None, 0, 0) => row["trials"].to_string(),
                        (None, holes, 0) => format!("{} ({holes}h)", row["trials"]),
                        (None, _, failures) => format!("{} (**{failures} failed**)", row["trials"]),
                    };
                    let _ = write!(page, " {cell} |");
                }
                page.push('\n');
            }
        }
        for reason in reasons {
            let _ = writeln!(page, "\n`-`: {reason}.");
        }
    }
    page.push_str("\n## From the kill until nothing is left\n\n| level | killed | trials | median | 99 % | longest |\n| --- | --- | ---: | ---: | ---: | ---: |\n");
    for row in json["gone_after"].as_array().unwrap_or(&empty) {
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} ms | {} ms | {} ms |",
            text(&row["level"]),
            text(&row["victim"]),
            row["count"],
            row["median_ms"],
            row["p99_ms"],
            row["max_ms"]
        );
    }
    page
}

/// Time as people read it.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
