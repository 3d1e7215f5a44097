//! One failover, from a cluster at rest to a cluster at rest, and what was seen of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::Context as _;
use rustix::process::Signal;
use tether_clock::{BootClock, Clock as _, Tick};
use tether_tests::{eventually_within, kill};
use tokio::time::{sleep, timeout};

use crate::{
    beats::{self, Answers},
    frost, owner,
    plan::Fault,
    world::{NODES, PATIENCE, World},
};

/// What was seen.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// When the fault began, and when it ended.
    pub(crate) begun: Tick,
    pub(crate) ended: Tick,
    /// Times without an answered heartbeat of some node that ended after the fault had begun.
    pub(crate) silences: Vec<(Tick, Tick)>,
    /// Whether the lead went to another arbiter, and to another member of etcd.
    pub(crate) other_arbiter: bool,
    pub(crate) other_member: bool,
    /// Events since the cluster began, by kind.
    pub(crate) events: BTreeMap<String, usize>,
    /// Workers in service before and after, by name and incarnation, with their processes.
    pub(crate) before: BTreeMap<String, u32>,
    pub(crate) after: BTreeMap<String, u32>,
    /// Incarnations that gave signs of life in each place.
    pub(crate) lives: BTreeMap<String, BTreeSet<String>>,
    /// Owners that have their sessions.
    pub(crate) owners: usize,
}

/// Who leads when the fault begins.
#[derive(Debug, Clone, Copy)]
struct Leaders {
    arbiter: usize,
    member: usize,
}

/// Plays one failover in a cluster at rest, this long after all its nodes were heard.
pub(crate) async fn play(world: &mut World, fault: Fault, phase: Duration) -> anyhow::Result<Seen> {
    // Where between two heartbeats the fault falls is part of what is tried.
    sleep(phase).await;
    let before = owner::workers(world).await;
    let before = before.context("workers are not in service before the fault")?;
    let leaders = Leaders {
        arbiter: world.leader().await?,
        member: match &world.etcd {
            Some(etcd) => etcd.leader().await,
            None => 0,
        },
    };
    let begun = BootClock.now();
    begin(world, fault, leaders).await?;
    let lasts = async {
        // How long it lasts is what is tried.
        sleep(fault.lasts()).await;
    };
    let moved = async {
        match &world.etcd {
            Some(etcd) if fault.deposes_member() => {
                let moved = async { while etcd.leader().await == leaders.member {} };
                timeout(fault.lasts(), moved).await.is_ok()
            }
            _ => false,
        }
    };
    let (other_member, ()) = tokio::join!(moved, lasts);
    let ended = BootClock.now();
    end(world, fault, leaders).await?;
    rest(world).await?;
    let after = owner::workers(world).await.unwrap_or_default();
    let other_member = other_member
        || match &world.etcd {
            Some(etcd) => etcd.leader().await != leaders.member,
            None => false,
        };
    Ok(Seen {
        begun,
        ended,
        silences: beats::silences(&answers(world), begun),
        other_arbiter: world.leader().await? != leaders.arbiter,
        other_member,
        events: events(world).await?,
        before,
        after,
        lives: owner::lives(world),
        owners: world
            .owners
            .iter_mut()
            .filter_map(|owner| owner.holds().then_some(()))
            .count(),
    })
}

async fn begin(world: &mut World, fault: Fault, leaders: Leaders) -> anyhow::Result<()> {
    let Leaders { arbiter, member } = leaders;
    match fault {
        Fault::ArbiterKilled => kill(world.arbiter_pid(arbiter)?, Signal::KILL),
        Fault::ArbiterStopped => kill(world.arbiter_pid(arbiter)?, Signal::STOP),
        Fault::ArbiterLeaves => kill(world.arbiter_pid(arbiter)?, Signal::TERM),
        Fault::ArbiterFrozen => frost::freeze(world.arbiter_pid(arbiter)?, world.folder())?,
        Fault::EtcdKilled => world.etcd()?.member(member).kill(),
        Fault::EtcdStopped => world.etcd()?.member(member).signal(Signal::STOP),
        Fault::FileStalled | Fault::EtcdStalled => world.disks[member].freeze().await?,
        Fault::EtcdMute | Fault::EtcdDeaf => {
            let (own, others) = World::member_hosts(member);
            for other in others {
                let (from, to) = match fault {
                    Fault::EtcdMute => (own, other),
                    _ => (other, own),
                };
                world.net.lose(from, to).await?;
            }
        }
        Fault::QuorumLost => quorum(world, member, Signal::STOP)?,
    }
    Ok(())
}

async fn end(world: &mut World, fault: Fault, leaders: Leaders) -> anyhow::Result<()> {
    let Leaders { arbiter, member } = leaders;
    match fault {
        Fault::ArbiterKilled | Fault::ArbiterLeaves => {
            if let Some(mut gone) = world.arbiters[arbiter].take() {
                let gone = timeout(PATIENCE, gone.wait()).await;
                gone.context("an arbiter does not end")??;
            }
            world.start_arbiter(arbiter)?;
        }
        Fault::ArbiterStopped => kill(world.arbiter_pid(arbiter)?, Signal::CONT),
        Fault::ArbiterFrozen => frost::thaw(world.folder()),
        Fault::EtcdKilled => world.etcd()?.member(member).start(),
        Fault::EtcdStopped => world.etcd()?.member(member).signal(Signal::CONT),
        Fault::FileStalled | Fault::EtcdStalled => world.disks[member].thaw().await?,
        Fault::EtcdMute | Fault::EtcdDeaf => world.net.heal().await?,
        Fault::QuorumLost => quorum(world, member, Signal::CONT)?,
    }
    Ok(())
}

/// The leader of etcd and one more, of three.
fn quorum(world: &mut World, leader: usize, signal: Signal) -> anyhow::Result<()> {
    let etcd = world.etcd()?;
    for member in [leader, (leader + 1) % etcd.size()] {
        etcd.member(member).signal(signal);
    }
    Ok(())
}

/// Waits until all is as it should be, and every node was heard after that.
pub(crate) async fn rest(world: &mut World) -> anyhow::Result<()> {
    if let Some(etcd) = &world.etcd {
        etcd.formed().await;
    }
    world.leader().await?;
    let serving = eventually_within(PATIENCE, async || owner::workers(world).await);
    serving.await.with_context(|| {
        format!(
            "workers are not in service again:\n{}\n{}",
            world.tail("arbiter-1"),
            world.tail("arbiter-2")
        )
    })?;
    let now = BootClock.now();
    let heard = async || {
        let beats = world.beats.as_ref()?;
        beats.after(now, NODES.len()).then_some(())
    };
    let heard = eventually_within(PATIENCE, heard).await;
    heard.with_context(|| format!("a node is not heard:\n{}", world.tail(NODES[0])))?;
    Ok(())
}

fn answers(world: &World) -> Vec<Answers> {
    let beats = world.beats.as_ref();
    beats.map(crate::beats::Beats::answers).unwrap_or_default()
}

async fn events(world: &World) -> anyhow::Result<BTreeMap<String, usize>> {
    let told = eventually_within(PATIENCE, async || world.events().await).await;
    let (told, _) = told.context("the gateway does not tell events")?;
    let mut events = BTreeMap::new();
    for event in told {
        let kind = event["kind"].as_str().unwrap_or_default().to_owned();
        *events.entry(kind).or_default() += 1;
    }
    Ok(events)
}
