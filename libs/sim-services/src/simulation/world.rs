//! One schedule: a gateway, discovery, arbiters, nodes and an owner, what goes wrong with them, and what is seen.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use tether_store::{MemoryStore, Store};
use turmoil::Sim;

use super::{
    census::Census,
    clocks::{self, Dials, Host},
    links::Links,
    mutant::Mutant,
    network,
    oracle::{self, Oracle},
    processes::Processes,
    schedule::{self, AUDIT, Cast, END, Event, Fault},
    software,
    tap::{self, Tap},
};

/// Between two looks at everything.
const TICK: Duration = Duration::from_millis(20);

const NAMES: [&str; 8] = [
    "arbiter-0",
    "arbiter-1",
    "node-0",
    "node-1",
    "owner",
    "gateway",
    "discovery",
    "auditor",
];
const ARBITERS: [Host; 2] = [0, 1];
const NODES: [Host; 2] = [2, 3];
const OWNER: Host = 4;
const GATEWAY: Host = 5;
const DISCOVERY: Host = 6;
const AUDITOR: Host = 7;

/// How far clocks are off at most, in millionths: leases allow for 5,000.
const DRIFT: i64 = 4_500;

/// For how long the clocks of an arbiter run ahead that leads anew and is impatient, and by how much in each tick:
/// not so fast that it would take its own reign for over.
const HASTE_LASTS: Duration = Duration::from_secs(5);
const HASTE: Duration = Duration::from_millis(40);

/// What came of a schedule.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    /// The promise that was broken, and how.
    pub(crate) broken: Option<String>,
    pub(crate) trace: String,
    pub(crate) births: u64,
    pub(crate) deaths: u64,
}

struct World<'a> {
    sim: Sim<'a>,
    links: Links,
    processes: Vec<Processes>,
    seen: tap::Shared,
    census: Census,
    oracle: Oracle,
    mutant: Option<Mutant>,
    /// How many faults have each machine's processes stopped, or its software gone.
    stopped: [u32; NAMES.len()],
    crashed: [u32; NAMES.len()],
    /// Faults of arbiters, and of their ways, that last.
    troubled: u32,
    impatient: Duration,
}

/// Plays the schedule of this seed.
pub(crate) fn play(seed: u64, mutant: Option<Mutant>) -> Outcome {
    fastrand::seed(seed);
    let mut rng = Rng::with_seed(seed);
    network::install();
    clocks::install(dials(&mut rng, mutant));
    let cast = Cast {
        arbiters: ARBITERS.to_vec(),
        nodes: NODES.to_vec(),
        owner: OWNER,
        gateway: GATEWAY,
        discovery: DISCOVERY,
    };
    let gentle = schedule::is_gentle(seed);
    let events = schedule::draw(&mut rng, &cast, gentle);
    let mut world = World::new(seed, mutant);
    world.oracle.gentle = gentle;
    let broken = world.run(&events).err();
    if let Some(broken) = &broken {
        let now = world.sim.elapsed();
        world.oracle.tell(now, broken);
    }
    let oracle = std::mem::take(&mut world.oracle);
    Outcome {
        broken,
        births: oracle.births,
        deaths: oracle.deaths,
        trace: oracle.trace,
    }
}

fn dials(rng: &mut Rng, mutant: Option<Mutant>) -> Vec<Dials> {
    let drift = |rng: &mut Rng| rng.i64(-DRIFT..=DRIFT);
    let machines = (0..NAMES.len()).map(|host| {
        let slow = mutant == Some(Mutant::NoMargin) && NODES.contains(&host);
        let off = if slow { -150_000 } else { 0 };
        Dials {
            raw_ppm: drift(rng) + off,
            slewed_ppm: drift(rng) + off,
            booted: Duration::from_secs(rng.u64(100..100_000)),
            ..Dials::default()
        }
    });
    machines.collect()
}

impl World<'_> {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(std::time::UNIX_EPOCH + Duration::from_secs(1_800_000_000))
            .simulation_duration(END * 2)
            .tick_duration(TICK)
            .enable_random_order()
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(20))
            .tcp_capacity(100_000)
            .build();
        let store = Arc::new(MemoryStore::new());
        let seen = tap::Shared::default();
        let census = Census::default();
        let arbiters: Vec<_> = ARBITERS.map(|host| software::at(NAMES[host])).to_vec();
        for host in ARBITERS {
            let tap = Tap {
                host,
                store: Arc::clone(&store),
                seen: Arc::clone(&seen),
                mutant,
            };
            sim.host(NAMES[host], move || {
                software::arbiter(NAMES[host], tap.clone())
            });
        }
        let processes = NODES.map(|host| Processes::new(host, mutant)).to_vec();
        for own in &processes {
            let (own, arbiters) = (own.clone(), arbiters.clone());
            sim.host(NAMES[own.host], move || {
                software::node(NAMES[own.host], own.clone(), arbiters.clone())
            });
        }
        let gateway = software::at(NAMES[GATEWAY]);
        let to = gateway.clone();
        sim.host(NAMES[OWNER], move || software::owner(OWNER, to.clone()));
        sim.host(NAMES[GATEWAY], move || {
            software::gateway(GATEWAY, arbiters.clone(), software::at(NAMES[DISCOVERY]))
        });
        let shared: Arc<dyn Store> = store;
        sim.host(NAMES[DISCOVERY], move || {
            software::discovery(DISCOVERY, Arc::clone(&shared))
        });
        let asked = Arc::clone(&census);
        sim.host(NAMES[AUDITOR], move || {
            software::auditor(AUDITOR, gateway.clone(), AUDIT, Arc::clone(&asked))
        });
        Self {
            sim,
            links: Links::new(NAMES.to_vec()),
            processes,
            seen,
            census,
            oracle: Oracle::default(),
            mutant,
            stopped: [0; NAMES.len()],
            crashed: [0; NAMES.len()],
            troubled: 0,
            impatient: Duration::ZERO,
        }
    }

    fn run(&mut self, events: &[Event]) -> Result<(), String> {
        let mut turns: Vec<_> = events
            .iter()
            .flat_map(|event| [(event.from, true, event), (event.to, false, event)])
            .collect();
        turns.sort_by_key(|(at, begins, _)| (*at, *begins));
        let mut turns = turns.into_iter().peekable();
        while self.sim.elapsed() < END {
            let now = self.sim.elapsed();
            while let Some((_, begins, event)) = turns.next_if(|(at, _, _)| *at <= now) {
                self.turn(begins, event);
            }
            self.hurry();
            self.sim
                .step()
                .map_err(|error| format!("a service ended by itself: {error}"))?;
            clocks::step(self.sim.elapsed());
            self.look()?;
        }
        let said = self.census.lock().ok().and_then(|said| said.clone());
        self.oracle.settled(said.as_ref())
    }

    fn turn(&mut self, begins: bool, event: &Event) {
        let now = self.sim.elapsed();
        let word = if begins { "begins" } else { "is over" };
        self.oracle.tell(now, &format!("{:?} {word}", event.fault));
        let of_arbiter = |host: &Host| ARBITERS.contains(host);
        let troubles = match &event.fault {
            Fault::Hold(links) | Fault::Oneway(links) | Fault::Slow(links, _) => {
                links.iter().any(|(a, b)| of_arbiter(a) || of_arbiter(b))
            }
            Fault::Crash(host) | Fault::Pause(host) | Fault::Sleep(host) | Fault::Stall(host) => {
                of_arbiter(host)
            }
        };
        if troubles {
            self.troubled = if begins {
                self.troubled + 1
            } else {
                self.troubled - 1
            };
        }
        match &event.fault {
            Fault::Hold(links) => {
                for &(a, b) in links {
                    self.hold(begins, a, b);
                }
            }
            Fault::Oneway(links) => {
                for &(from, to) in links {
                    match begins {
                        true => self.links.drop_oneway(&self.sim, from, to),
                        false => self.links.repair_oneway(&self.sim, from, to),
                    }
                }
            }
            Fault::Slow(links, latency) => {
                let latency = if begins {
                    *latency
                } else {
                    Duration::from_millis(10)
                };
                for &(a, b) in links {
                    self.links.slow(&self.sim, a, b, latency);
                }
            }
            Fault::Crash(host) => self.crash(begins, *host),
            Fault::Pause(host) => self.stop(begins, *host),
            Fault::Sleep(host) => {
                self.stop(begins, *host);
                if !begins {
                    // All that time its timers stood still, and BOOTTIME tells.
                    clocks::turn(*host, |dials| dials.slept += Duration::from_secs(5));
                }
            }
            Fault::Stall(host) => tap::with(&self.seen, |seen| match begins {
                true => seen.stalled.push(*host),
                false => {
                    if let Some(at) = seen.stalled.iter().position(|it| it == host) {
                        seen.stalled.remove(at);
                    }
                }
            }),
        }
    }

    fn hold(&mut self, begins: bool, a: Host, b: Host) {
        match begins {
            true => self.links.hold(&self.sim, a, b),
            false => self.links.release(&self.sim, a, b),
        }
    }

    fn crash(&mut self, begins: bool, host: Host) {
        let count = &mut self.crashed[host];
        if begins {
            *count += 1;
            if *count == 1 {
                self.sim.crash(NAMES[host]);
                if let Some(own) = self.processes.iter().find(|own| own.host == host) {
                    own.on_agent_lost();
                }
            }
        } else {
            *count -= 1;
            if *count == 0 {
                self.sim.bounce(NAMES[host]);
                if ARBITERS.contains(&host) {
                    self.be_impatient(self.sim.elapsed());
                }
            }
        }
    }

    /// Its processes see no time pass, and nothing comes or goes.
    fn stop(&mut self, begins: bool, host: Host) {
        let count = &mut self.stopped[host];
        *count = if begins { *count + 1 } else { *count - 1 };
        let (count, now) = (*count, self.sim.elapsed());
        if begins && count == 1 {
            clocks::turn(host, |dials| dials.stopped = Some(now));
        }
        if !begins && count == 0 {
            clocks::turn(host, |dials| dials.stopped = None);
        }
        for other in (0..NAMES.len()).filter(|&other| other != host) {
            self.hold(begins, host, other);
        }
    }

    fn be_impatient(&mut self, now: Duration) {
        if self.mutant == Some(Mutant::NewLeaderDoesNotWait) {
            self.impatient = now + HASTE_LASTS;
        }
    }

    /// The clocks of an impatient arbiter run ahead, by no more at a time than a grantor believes.
    fn hurry(&mut self) {
        if self.sim.elapsed() < self.impatient {
            for host in ARBITERS {
                clocks::turn(host, |dials| dials.ahead += HASTE);
            }
        }
    }

    fn look(&mut self) -> Result<(), String> {
        let now = self.sim.elapsed();
        let (news, buried, wrong, leader) = tap::with(&self.seen, |seen| {
            (
                std::mem::take(&mut seen.news),
                std::mem::take(&mut seen.buried),
                seen.wrong.take(),
                seen.leader,
            )
        });
        for line in news {
            self.oracle.tell(now, &line);
            self.be_impatient(now);
        }
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        let is_up = |host: Host| self.crashed[host] == 0 && self.stopped[host] == 0;
        let new_leader = leader.is_some_and(|(_, since)| now < since + Duration::from_secs(10));
        if is_up(OWNER) || self.troubled > 0 || leader.is_none() || new_leader {
            self.oracle.on_owner(now);
        }
        for own in &self.processes {
            own.fire();
            let host = own.host;
            let heard = is_up(host)
                && ARBITERS.iter().any(|&arbiter| {
                    is_up(arbiter)
                        && self.links.carries(host, arbiter)
                        && self.links.carries(arbiter, host)
                });
            let node = oracle::Node { host, heard };
            self.oracle.on_node(now, node, &own.look())?;
        }
        for burial in buried {
            self.oracle.on_burial(now, burial)?;
        }
        self.oracle.single()
    }
}
