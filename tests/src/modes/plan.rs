//! Every row of the design's testing matrix and of its matrix of crashes and recoveries, with what proves it.
//!
//! What is expected is in the design's words, as [corrected](../../../docs/adr/0014-corrections-to-the-first-design.md):
//! where it allowed orphans until the next start, none are allowed now.

use std::collections::BTreeMap;

use tether_tests::evidence::Found;

/// Whose evidence is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Suite {
    Beams,
    Partitions,
    Systemd,
    Launchers,
    Compose,
}

impl Suite {
    /// As `cargo xtask` calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Beams => "beams",
            Self::Partitions => "partitions",
            Self::Systemd => "systemd",
            Self::Launchers => "launchers",
            Self::Compose => "compose",
        }
    }

    /// Where it writes, below cargo's folder.
    pub(crate) const fn evidence(self) -> &'static str {
        match self {
            Self::Beams => "beams/beams.json",
            Self::Partitions => "partitions/partitions.json",
            Self::Systemd => "ground/systemd.json",
            Self::Launchers => "ground/launchers.json",
            Self::Compose => "ground/compose.json",
        }
    }

    /// What it plays on.
    const fn ground(self) -> &'static str {
        match self {
            Self::Beams => "real BEAMs",
            Self::Partitions => "network namespaces",
            Self::Systemd => "a booted kernel",
            Self::Launchers => "a booted systemd",
            Self::Compose => "containers",
        }
    }
}

/// One line of a suite's evidence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) suite: Suite,
    pub(crate) name: &'static str,
    /// What `--only` has to name for it.
    scene: &'static str,
}

const fn claim(suite: Suite, name: &'static str) -> Claim {
    Claim {
        suite,
        name,
        scene: name,
    }
}

const fn beams(name: &'static str) -> Claim {
    claim(Suite::Beams, name)
}

const fn partitions(name: &'static str) -> Claim {
    claim(Suite::Partitions, name)
}

const fn systemd(name: &'static str) -> Claim {
    claim(Suite::Systemd, name)
}

const fn launchers(name: &'static str) -> Claim {
    claim(Suite::Launchers, name)
}

/// One of several that a scene makes.
const fn compose(scene: &'static str, name: &'static str) -> Claim {
    Claim {
        suite: Suite::Compose,
        name,
        scene,
    }
}

/// One row of the matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) mode: &'static str,
    pub(crate) scenario: &'static str,
    pub(crate) expected: &'static str,
    pub(crate) claims: &'static [Claim],
}

const fn row(
    mode: &'static str,
    scenario: &'static str,
    expected: &'static str,
    claims: &'static [Claim],
) -> Row {
    Row {
        mode,
        scenario,
        expected,
        claims,
    }
}

/// Every row, in the design's order.
pub(crate) const ALL: &[Row] = &[
    row(
        "coupled",
        "normal shutdown of the BEAM",
        "no orphans",
        &[beams("coupled, it ends in good order")],
    ),
    row(
        "coupled",
        "crash of the BEAM, Ctrl-C",
        "workers die at once, no orphans",
        &[beams("coupled, it crashes")],
    ),
    row(
        "coupled",
        "kill -9 of the BEAM",
        "workers die at once, no orphans",
        &[
            beams("killed, services in the port, workers busy"),
            beams("killed, services apart, workers busy"),
        ],
    ),
    row(
        "coupled",
        "kill -9 of the BEAM and the agent at once",
        "workers die at once, no orphans",
        &[beams("coupled, killed with its agent")],
    ),
    row(
        "coupled",
        "crash of a worker",
        "the BEAM is told at once, the worker is restarted",
        &[beams("coupled, a worker crashes")],
    ),
    row(
        "coupled",
        "fast restarts by a developer",
        "fast cleanup, nothing grows",
        &[
            beams("coupled, restarted again and again, services in the port"),
            beams("coupled, restarted again and again, services apart"),
        ],
    ),
    row(
        "supervised",
        "crash of the owner, not bound",
        "Python continues",
        &[launchers("kill -9 of an owner")],
    ),
    row(
        "supervised",
        "crash of the owner, bound",
        "Python dies (BindsTo)",
        &[launchers(
            "kill -9 of an owner to which its workers are bound",
        )],
    ),
    row(
        "supervised",
        "crash of a worker that is a unit",
        "systemd restarts Python",
        &[launchers("kill -9 of such a unit's main process")],
    ),
    row(
        "independent",
        "crash of the BEAM, nobody returns",
        "Python continues until the timeout (60 s, here 2 s), then exits",
        &[beams("independent, nobody comes back")],
    ),
    row(
        "independent",
        "crash of the BEAM, it returns before",
        "reconnect, to the same process and its job",
        &[beams("independent, another BEAM comes for its job")],
    ),
    row(
        "independent",
        "BEAMs, agent and worker crash while it trains",
        "training survives, state is kept",
        &[beams("ten minutes of work")],
    ),
    row(
        "independent",
        "crash of a worker",
        "the BEAM detects it, the worker is restarted",
        &[beams("independent, a worker crashes")],
    ),
    row(
        "independent",
        "BEAM that hangs",
        "heartbeat timeout, both end",
        &[beams("stopped, independent")],
    ),
    row(
        "independent",
        "network partition",
        "heartbeat timeout, both self-terminate",
        &[partitions("gateway x> owner, independent, heals after")],
    ),
    row(
        "distributed",
        "eviction of a worker's container",
        "started again elsewhere, the others are not touched",
        &[compose(
            "agent killed",
            "workers of a killed agent's container",
        )],
    ),
    row(
        "distributed",
        "breaker, while that container is gone",
        "only calls under way there fail, all others go elsewhere",
        &[compose("agent killed", "calls over an agent's death")],
    ),
    row(
        "distributed",
        "node cut off",
        "self-terminates, and only then is its place filled elsewhere",
        &[compose("node cut off", "workers of a node that is cut off")],
    ),
    row(
        "distributed",
        "breaker, while a node is cut off",
        "only calls that are sent there fail until its lease is over",
        &[compose("node cut off", "calls over the cut")],
    ),
    row(
        "distributed",
        "network partition",
        "both self-terminate, placed again when that is safe",
        &[partitions("arbiter <x node-1, distributed, heals after")],
    ),
    row(
        "every mode",
        "out of memory",
        "the worker dies with all it started, the death says why, the agent lives",
        &[
            systemd("a worker out of memory dies with its daemon, and the death says why"),
            systemd("the agent does not die of its worker's death"),
        ],
    ),
];

/// What was seen of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All that was claimed holds.
    Holds(String),
    /// Something does not, or nobody has looked.
    Differs(String),
    /// This machine cannot show it.
    Skipped(String),
}

impl Row {
    /// Mode and scenario.
    pub(crate) fn name(&self) -> String {
        format!("{}: {}", self.mode, self.scenario)
    }

    /// What it is played on.
    pub(crate) fn ground(&self) -> &'static str {
        self.claims
            .first()
            .map_or("nothing", |claim| claim.suite.ground())
    }

    /// Judges it by what the suites have found.
    pub(crate) fn judge<'a>(&self, find: impl Fn(&Claim) -> Found<'a>) -> Verdict {
        let mut seen = Vec::new();
        let (mut holds, mut skipped) = (true, None);
        for claim in self.claims {
            match find(claim) {
                Found::Seen(evidence) => {
                    holds &= evidence.holds();
                    seen.push(one_line(evidence.seen()));
                }
                Found::Skipped(why) => skipped = Some(one_line(why)),
                Found::Missing => {
                    holds = false;
                    let suite = claim.suite.name();
                    seen.push(format!("{suite} has nothing of `{}`", claim.name));
                }
            }
        }
        let seen = seen.join("; ");
        match (holds, skipped) {
            (false, _) => Verdict::Differs(seen),
            (true, Some(why)) => Verdict::Skipped(why),
            (true, None) => Verdict::Holds(seen),
        }
    }
}

/// What each suite has to play for these rows.
pub(crate) fn needs(rows: &[&Row]) -> BTreeMap<Suite, Vec<&'static str>> {
    let mut needs: BTreeMap<Suite, Vec<&'static str>> = BTreeMap::new();
    for claim in rows.iter().flat_map(|row| row.claims) {
        let scenes = needs.entry(claim.suite).or_default();
        if !scenes.contains(&claim.scene) {
            scenes.push(claim.scene);
        }
    }
    needs
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use tether_tests::evidence::Evidence;

    use super::*;

    const TWO: Row = row(
        "coupled",
        "both",
        "both hold",
        &[beams("one"), beams("other")],
    );

    fn judged(one: Found<'_>, other: Found<'_>) -> Verdict {
        TWO.judge(|claim| if claim.name == "one" { one } else { other })
    }

    #[test]
    fn a_row_holds_only_where_each_of_its_claims_was_seen_to() {
        let (good, bad) = (
            Evidence::new("one", "1", "1\n of 1", true),
            Evidence::new("other", "1", "2", false),
        );
        let (seen, wrong) = (Found::Seen(&good), Found::Seen(&bad));

        assert_eq!(
            judged(seen, seen),
            Verdict::Holds("1 of 1; 1 of 1".to_owned())
        );
        assert_eq!(
            judged(seen, wrong),
            Verdict::Differs("1 of 1; 2".to_owned())
        );
        assert_eq!(
            judged(seen, Found::Missing),
            Verdict::Differs("1 of 1; beams has nothing of `other`".to_owned())
        );
        assert_eq!(
            judged(seen, Found::Skipped("no ground")),
            Verdict::Skipped("no ground".to_owned())
        );
        // A difference is one, whatever else was skipped.
        assert_eq!(
            judged(Found::Skipped("no ground"), wrong),
            Verdict::Differs("2".to_owned())
        );
    }

    #[test]
    fn each_row_has_a_name_of_its_own_and_something_that_proves_it() {
        let mut names: Vec<_> = ALL.iter().map(Row::name).collect();
        names.sort();
        names.dedup();

        assert_eq!(names.len(), ALL.len());
        assert!(ALL.iter().all(|row| !row.claims.is_empty()));
    }

    #[test]
    fn a_scene_that_proves_two_rows_is_asked_for_once() {
        let rows: Vec<_> = ALL.iter().filter(|row| row.mode == "distributed").collect();

        assert_eq!(
            needs(&rows)[&Suite::Compose],
            ["agent killed", "node cut off"]
        );
    }
}
