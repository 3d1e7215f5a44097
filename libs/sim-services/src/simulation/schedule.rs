//! What goes wrong in a schedule, drawn from its seed.

use std::time::Duration;

use fastrand::Rng;

use super::clocks::Host;

/// Everything is up and its pools are filled by then.
pub(crate) const QUIET: Duration = Duration::from_secs(2);
/// The last fault is over by then.
pub(crate) const HEALED: Duration = Duration::from_secs(26);
/// The ledger is asked from then on, and by then all must be as it says.
pub(crate) const AUDIT: Duration = Duration::from_secs(43);
/// The end.
pub(crate) const END: Duration = Duration::from_secs(44);

/// Who is who.
#[derive(Debug, Clone)]
pub(crate) struct Cast {
    pub(crate) arbiters: Vec<Host>,
    pub(crate) nodes: Vec<Host>,
    pub(crate) owner: Host,
    pub(crate) gateway: Host,
    pub(crate) discovery: Host,
}

/// One thing that goes wrong.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Nothing arrives either way until it is over; then all does.
    Hold(Vec<(Host, Host)>),
    /// What is sent this way is lost.
    Oneway(Vec<(Host, Host)>),
    /// What is sent takes long.
    Slow(Vec<(Host, Host)>, Duration),
    /// Killed, and started when it is over.
    Crash(Host),
    /// Stopped as with SIGSTOP.
    Pause(Host),
    /// The machine sleeps: at the end its clocks have gone on, and nobody saw it.
    Sleep(Host),
    /// This arbiter does not reach the store.
    Stall(Host),
}

/// When it begins and ends.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) from: Duration,
    pub(crate) to: Duration,
    pub(crate) fault: Fault,
}

/// Whether what goes wrong is over before anybody has to end for it.
pub(crate) fn is_gentle(seed: u64) -> bool {
    seed % 4 == 3
}

/// What goes wrong.
pub(crate) fn draw(rng: &mut Rng, cast: &Cast, gentle: bool) -> Vec<Event> {
    let mut events = Vec::new();
    let mut at = QUIET + millis(rng.u64(0..2_000));
    while at < HEALED {
        let fault = fault(rng, cast, gentle);
        let lasts = match gentle {
            true => millis(rng.u64(100..2_000)),
            false if rng.u8(0..4) == 0 => millis(rng.u64(200..2_000)),
            false => millis(rng.u64(2_000..15_000)),
        };
        let to = (at + lasts).min(HEALED);
        if let (Fault::Slow(links, _), false) = (&fault, gentle) {
            events.push(fade(rng, at, links));
        }
        if !gentle && lasts > millis(4_000) && rng.bool() {
            events.push(company(rng, at, cast, &fault));
        }
        events.push(Event {
            from: at,
            to,
            fault,
        });
        at = match gentle {
            // One at a time, and all is well in between.
            true => to + millis(rng.u64(5_000..7_000)),
            false => at + millis(rng.u64(200..7_000)),
        };
    }
    events.retain(|event| event.from < event.to);
    events
}

/// A link that became slow takes beats no more, while answers to earlier ones are still on their way.
fn fade(rng: &mut Rng, at: Duration, links: &[(Host, Host)]) -> Event {
    let from = at + millis(rng.u64(1_500..2_500));
    Event {
        from: from.min(HEALED),
        to: (from + millis(rng.u64(5_000..9_000))).min(HEALED),
        fault: Fault::Oneway(links.to_vec()),
    }
}

/// Somebody is started anew while something else lasts: whoever is cut off, or whoever waits for that one.
fn company(rng: &mut Rng, at: Duration, cast: &Cast, fault: &Fault) -> Event {
    let cut_off = match fault {
        Fault::Hold(links) | Fault::Oneway(links) | Fault::Slow(links, _) => {
            let mut ends = links.iter().flat_map(|&(from, to)| [from, to]);
            ends.find(|end| cast.nodes.contains(end))
        }
        Fault::Crash(_) | Fault::Pause(_) | Fault::Sleep(_) | Fault::Stall(_) => None,
    };
    let restarted = match rng.u8(0..3) {
        0 => cast.owner,
        1 => cast.arbiters[rng.usize(..cast.arbiters.len())],
        _ => cut_off.unwrap_or(cast.nodes[0]),
    };
    let from = at + millis(rng.u64(200..4_000));
    Event {
        from: from.min(HEALED),
        to: (from + millis(rng.u64(200..2_000))).min(HEALED),
        fault: Fault::Crash(restarted),
    }
}

fn fault(rng: &mut Rng, cast: &Cast, gentle: bool) -> Fault {
    let one = |rng: &mut Rng, of: &[Host]| of[rng.usize(..of.len())];
    let node = one(rng, &cast.nodes);
    let arbiter = one(rng, &cast.arbiters);
    let anybody = [
        node,
        node,
        arbiter,
        arbiter,
        cast.owner,
        cast.gateway,
        cast.discovery,
    ];
    let from_node: Vec<_> = cast.arbiters.iter().map(|&it| (node, it)).collect();
    let to_node: Vec<_> = cast.arbiters.iter().map(|&it| (it, node)).collect();
    match rng.u8(0..16) {
        0 | 1 => Fault::Hold(from_node),
        2 => Fault::Hold(vec![(node, arbiter)]),
        3 => Fault::Hold(vec![(cast.owner, cast.gateway)]),
        4 => Fault::Hold(vec![(cast.gateway, arbiter)]),
        5 | 6 => Fault::Oneway(if rng.bool() { from_node } else { to_node }),
        7 => Fault::Oneway(vec![(node, arbiter)]),
        8 | 9 => Fault::Slow(from_node, millis(rng.u64(100..900))),
        10 | 11 => Fault::Crash(one(rng, &anybody)),
        12 | 13 => Fault::Pause(one(rng, &anybody[..5])),
        14 if !gentle => Fault::Sleep(node),
        14 => Fault::Crash(node),
        _ => Fault::Stall(arbiter),
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
