//! One measured figure beside those of its peers, with the target it was measured against.

use std::collections::BTreeMap;

use serde::Serialize;

/// What a figure has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// Ours is this or less.
    AtMost(f64),
    /// Ours is this or more.
    AtLeast(f64),
    /// Ours is at least this many times the peer's.
    Times(f64, &'static str),
    /// Ours is at most this share of the peer's.
    Share(f64, &'static str),
}

/// One row of the evidence. What could not be measured is none, with the reason.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    name: String,
    unit: &'static str,
    ours: Option<f64>,
    peers: BTreeMap<&'static str, f64>,
    /// Ours over the peer that the target names, else over the first one.
    ratio: Option<f64>,
    target: Option<f64>,
    /// What the target is compared with.
    rule: Option<String>,
    met: Option<bool>,
    /// Processor seconds spent while the figure was measured: supervisors, helpers and workers.
    cpu_seconds: BTreeMap<&'static str, f64>,
    skipped: BTreeMap<&'static str, String>,
    /// What else is to be said of a value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    notes: BTreeMap<&'static str, String>,
}

impl Figure {
    /// An empty row.
    pub fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            unit,
            ours: None,
            peers: BTreeMap::new(),
            ratio: None,
            target: None,
            rule: None,
            met: None,
            cpu_seconds: BTreeMap::new(),
            skipped: BTreeMap::new(),
            notes: BTreeMap::new(),
        }
    }

    /// Ours.
    #[must_use]
    pub fn ours(mut self, value: f64) -> Self {
        self.ours = Some(value);
        self.ratio = self
            .ratio
            .or_else(|| Some(value / self.peers.values().next()?));
        self
    }

    /// A peer's, or why there is none.
    #[must_use]
    pub fn peer(mut self, name: &'static str, value: Result<f64, String>) -> Self {
        match value {
            Ok(value) => drop(self.peers.insert(name, value)),
            Err(why) => drop(self.skipped.insert(name, why)),
        }
        self.ratio = self
            .ours
            .zip(self.peers.values().next())
            .map(|(ours, peer)| ours / peer);
        self
    }

    /// Why ours is not there.
    #[must_use]
    pub fn without(mut self, why: impl Into<String>) -> Self {
        self.skipped.insert("ours", why.into());
        self
    }

    /// Something to say of a value.
    #[must_use]
    pub fn note(mut self, name: &'static str, note: impl Into<String>) -> Self {
        self.notes.insert(name, note.into());
        self
    }

    /// Processor seconds of ours, or of a peer.
    #[must_use]
    pub fn cpu(mut self, name: &'static str, seconds: f64) -> Self {
        self.cpu_seconds.insert(name, seconds);
        self
    }

    /// Sets the target, once all values are there. One that cannot be judged for want of the peer is not
    /// judged; one that ours has no value for is missed.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        let (number, rule) = match target {
            Target::AtMost(most) => (most, "ours at most the target".to_owned()),
            Target::AtLeast(least) => (least, "ours at least the target".to_owned()),
            Target::Times(times, peer) => (times, format!("ours over {peer} at least the target")),
            Target::Share(share, peer) => (share, format!("ours over {peer} at most the target")),
        };
        self.target = Some(number);
        self.rule = Some(rule);
        let over = |name| Some(self.ours? / self.peers.get(name)?);
        self.met = match target {
            Target::AtMost(most) => Some(self.ours.is_some_and(|ours| ours <= most)),
            Target::AtLeast(least) => Some(self.ours.is_some_and(|ours| ours >= least)),
            Target::Times(times, peer) => {
                self.ratio = over(peer);
                self.ratio.map(|ratio| ratio >= times)
            }
            Target::Share(share, peer) => {
                self.ratio = over(peer);
                self.ratio.map(|ratio| ratio <= share)
            }
        };
        if self.ours.is_none() {
            self.met = Some(false);
        }
        self
    }

    /// The peers that have a value.
    pub fn peers(&self) -> impl Iterator<Item = &'static str> {
        self.peers.keys().copied()
    }

    /// Its name with its unit.
    pub fn title(&self) -> String {
        match self.unit {
            "" => self.name.clone(),
            unit => format!("{}, {unit}", self.name),
        }
    }

    /// Ours, or a peer's.
    pub fn value(&self, name: &str) -> Option<f64> {
        match name {
            "ours" => self.ours,
            peer => self.peers.get(peer).copied(),
        }
    }

    /// The target and whether it is met; nothing where there is none.
    pub fn verdict(&self) -> String {
        let Some((target, rule)) = self.target.zip(self.rule.as_ref()) else {
            return String::new();
        };
        let met = self
            .met
            .map_or("not judged", |met| if met { "met" } else { "MISSED" });
        match self.ratio.filter(|_| rule.contains(" over ")) {
            Some(ratio) => format!("{target} ({rule}): {ratio:.2}, {met}"),
            None => format!("{target} ({rule}): {met}"),
        }
    }

    /// For people.
    pub fn line(&self) -> String {
        let ours = match self.ours {
            Some(ours) => format!("{ours:.2} {}", self.unit),
            None => "not measured".to_owned(),
        };
        let mut line = format!("{:<58} ours {ours}", self.name);
        for (peer, value) in &self.peers {
            line += &format!(", {peer} {value:.2}");
        }
        if self.target.is_some() {
            line += &format!("; target {}", self.verdict());
        }
        for (name, seconds) in &self.cpu_seconds {
            line += &format!("; {name} cpu {seconds:.2} s");
        }
        for (name, why) in &self.skipped {
            line += &format!("\n    {name}: not measured: {why}");
        }
        for (name, note) in &self.notes {
            line += &format!("\n    {name}: {note}");
        }
        line
    }
}

/// The middle one of these values; none of none.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: f64, peer: f64) -> Figure {
        Figure::new("spawns", "per second")
            .ours(ours)
            .peer("other", Ok(1.0))
            .peer("systemd", Ok(peer))
    }

    #[test]
    fn a_target_is_judged_by_the_peer_it_names() {
        let times = row(800.0, 100.0).target(Target::Times(8.0, "systemd"));
        assert_eq!((times.ratio, times.met), (Some(8.0), Some(true)));
        let times = row(799.0, 100.0).target(Target::Times(8.0, "systemd"));
        assert_eq!(times.met, Some(false));

        let share = row(50.0, 100.0).target(Target::Share(0.5, "systemd"));
        assert_eq!((share.ratio, share.met), (Some(0.5), Some(true)));
        let share = row(51.0, 100.0).target(Target::Share(0.5, "systemd"));
        assert_eq!(share.met, Some(false));

        assert_eq!(row(20.0, 1.0).target(Target::AtMost(20.0)).met, Some(true));
        assert_eq!(row(20.1, 1.0).target(Target::AtMost(20.0)).met, Some(false));

        assert_eq!(row(0.9, 1.0).target(Target::AtLeast(0.9)).met, Some(true));
        assert_eq!(row(0.8, 1.0).target(Target::AtLeast(0.9)).met, Some(false));
    }

    #[test]
    fn a_figure_we_do_not_have_is_missed_and_a_peer_that_is_not_there_judges_nothing() {
        let without = Figure::new("x", "ms")
            .without("survivors")
            .target(Target::AtMost(1.0));
        assert_eq!(without.met, Some(false));
        assert!(without.line().contains("ours: not measured: survivors"));

        let without = Figure::new("x", "ms")
            .peer("systemd", Ok(1.0))
            .target(Target::Share(0.5, "systemd"));
        assert_eq!(without.met, Some(false));

        let alone = Figure::new("x", "ms")
            .ours(1.0)
            .peer("systemd", Err("no root".to_owned()))
            .target(Target::Share(0.5, "systemd"));
        assert_eq!((alone.ratio, alone.met), (None, None));
        assert!(alone.line().contains("systemd: not measured: no root"));
    }

    #[test]
    fn the_middle_is_the_median() {
        assert_eq!(median(vec![9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(Vec::new()), None);
    }
}
