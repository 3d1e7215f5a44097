//! What a row of the design's matrix is, whose evidence proves it, and how it is judged by that.

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
    pub(crate) scene: &'static str,
}

/// One row of the matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub(crate) mode: &'static str,
    pub(crate) scenario: &'static str,
    /// In the design's words, as corrected.
    pub(crate) expected: &'static str,
    pub(crate) claims: &'static [Claim],
}

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

    /// What the suites have demanded for it, in their own words.
    pub(crate) fn demanded<'a>(&self, find: impl Fn(&Claim) -> Found<'a>) -> String {
        let mut demanded = Vec::new();
        for claim in self.claims {
            if let Found::Seen(evidence) = find(claim) {
                let words = one_line(evidence.expected());
                if !demanded.contains(&words) {
                    demanded.push(words);
                }
            }
        }
        demanded.join("; ")
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

    const fn claim(name: &'static str) -> Claim {
        Claim {
            suite: Suite::Beams,
            name,
            scene: name,
        }
    }

    const TWO: Row = Row {
        mode: "coupled",
        scenario: "both",
        expected: "both hold",
        claims: &[claim("one"), claim("other")],
    };

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
    fn what_was_demanded_is_said_as_its_suite_says_it() {
        let (one, other) = (
            Evidence::new("one", "dead\nwithin 1 s", "1", true),
            Evidence::new("other", "told", "2", true),
        );
        let demanded = |other| {
            TWO.demanded(|claim| match claim.name {
                "one" => Found::Seen(&one),
                _ => other,
            })
        };

        assert_eq!(demanded(Found::Seen(&other)), "dead within 1 s; told");
        assert_eq!(demanded(Found::Seen(&one)), "dead within 1 s");
        assert_eq!(demanded(Found::Missing), "dead within 1 s");
    }
}
