//! Which links are cut, held up or slow: several faults may lie on one link.

use std::{collections::BTreeMap, time::Duration};

use turmoil::Sim;

use super::clocks::Host;

/// What lies on the link between two machines.
#[derive(Debug, Default)]
struct Load {
    /// How many faults keep it from delivering: what is sent arrives when the last of them is over, as TCP sends it
    /// again until then.
    holds: u32,
    /// Each way, how many faults have it swallow what is sent: connections over it are broken for good.
    drops: BTreeMap<(Host, Host), u32>,
}

/// All links.
#[derive(Debug)]
pub(crate) struct Links {
    names: Vec<&'static str>,
    loads: BTreeMap<(Host, Host), Load>,
}

impl Links {
    pub(crate) fn new(names: Vec<&'static str>) -> Self {
        Self {
            names,
            loads: BTreeMap::new(),
        }
    }

    /// Whether anything arrives that is sent.
    pub(crate) fn carries(&self, from: Host, to: Host) -> bool {
        self.loads.get(&pair(from, to)).is_none_or(|load| {
            load.holds == 0 && load.drops.get(&(from, to)).is_none_or(|drops| *drops == 0)
        })
    }

    /// Holds up what is sent, either way.
    pub(crate) fn hold(&mut self, sim: &Sim<'_>, a: Host, b: Host) {
        let load = self.loads.entry(pair(a, b)).or_default();
        load.holds += 1;
        if load.holds == 1 {
            sim.hold(self.names[a], self.names[b]);
        }
    }

    /// One fault less holds it up.
    pub(crate) fn release(&mut self, sim: &Sim<'_>, a: Host, b: Host) {
        let load = self.loads.entry(pair(a, b)).or_default();
        load.holds -= 1;
        if load.holds == 0 {
            sim.release(self.names[a], self.names[b]);
            self.apply_drops(sim, a, b);
        }
    }

    /// Swallows what is sent one way.
    pub(crate) fn drop_oneway(&mut self, sim: &Sim<'_>, from: Host, to: Host) {
        let load = self.loads.entry(pair(from, to)).or_default();
        *load.drops.entry((from, to)).or_default() += 1;
        self.apply_drops(sim, from, to);
    }

    /// One fault less swallows it.
    pub(crate) fn repair_oneway(&mut self, sim: &Sim<'_>, from: Host, to: Host) {
        let load = self.loads.entry(pair(from, to)).or_default();
        if let Some(drops) = load.drops.get_mut(&(from, to)) {
            *drops -= 1;
        }
        self.apply_drops(sim, from, to);
    }

    fn apply_drops(&self, sim: &Sim<'_>, a: Host, b: Host) {
        let Some(load) = self.loads.get(&pair(a, b)).filter(|load| load.holds == 0) else {
            return;
        };
        for (from, to) in [(a, b), (b, a)] {
            let (one, other) = (self.names[from], self.names[to]);
            match load.drops.get(&(from, to)) {
                None => {}
                Some(0) => sim.repair_oneway(one, other),
                Some(_) => sim.partition_oneway(one, other),
            }
        }
    }

    /// From here on it takes that long to arrive.
    pub(crate) fn slow(&self, sim: &Sim<'_>, a: Host, b: Host, latency: Duration) {
        sim.set_link_latency(self.names[a], self.names[b], latency);
    }
}

fn pair(a: Host, b: Host) -> (Host, Host) {
    (a.min(b), a.max(b))
}
