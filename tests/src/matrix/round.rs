//! One kill event in a world: pools of every behaviour are brought into a phase, somebody is killed, and
//! each worker is judged by what the kernel says of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures::future::join_all;
use tether_client::Problem;
use tether_proto::pool::{ApplyPoolRequest, DeletePoolRequest, ListPoolsRequest};
use tether_proto::worker::ListWorkersRequest;
use tether_tests::eventually_within;
use tokio::time::sleep;

use crate::{
    aim::{aim, freeze},
    lineage::Pinned,
    owner::Owner,
    pause::Pause,
    plan::{Behaviour, Event, Expect, Level, Phase, Victim},
    pools::{Mode, behaviours, spec},
    witness::Seen,
    world::{START, World},
};

/// Longest time for what must go to be gone, on a loaded machine; what it took is reported.
const GONE: Duration = Duration::from_secs(10);

/// Longest time for what was started after its owner had died.
const LATE: Duration = Duration::from_secs(2);

/// How long what may stay is given to go.
const HOLE: Duration = Duration::from_millis(300);

/// How a trial ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Gone, after this time where it was the kill that ended it.
    Gone(Option<Duration>),
    /// It lives, as it should.
    Lived,
    /// Left until the next agent, or the first process of a container, ran, as documented; and ended by it.
    Hole,
    /// Left.
    Orphan,
    /// Ended although it was to live.
    Died,
}

/// What one event came to.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) trials: Vec<(Behaviour, String, Outcome)>,
    /// Workers that had nothing to do with it and were looked after.
    pub(crate) bystanders: usize,
    /// Of them, those that died; and processes that were left of workers that were no trial.
    pub(crate) faults: Vec<String>,
    /// Why it could not be played.
    pub(crate) skipped: Option<&'static str>,
}

/// Workers of another owner, which are to live through what is none of their business.
#[derive(Debug)]
pub(crate) struct Others {
    owner: Owner,
    pools: Vec<String>,
    prefix: String,
    size: usize,
}

impl Others {
    /// Starts them.
    pub(crate) async fn start(world: &mut World) -> anyhow::Result<Self> {
        world.round += 1;
        let prefix = format!("o{}-", world.round);
        let owner = world.owner(format!("others-{}", world.round)).await?;
        let sizes = [
            (Behaviour::Polite, 2),
            (Behaviour::Daemon, 1),
            (Behaviour::Stopped, 1),
        ];
        let specs =
            sizes.map(|(behaviour, size)| spec(world, behaviour, &prefix, size, Mode::Independent));
        let pools = specs.iter().map(|spec| spec.name.clone()).collect();
        for pool in specs {
            let request = ApplyPoolRequest {
                pool: Some(pool),
                owner: owner.name.clone(),
                epoch: owner.epoch,
            };
            world
                .client
                .pools()
                .apply_pool(request)
                .await
                .map_err(Problem::from)?;
        }
        let ready = world.witness.until(START, |witness| {
            witness
                .of(&prefix)
                .values()
                .filter(|seen| seen.ready)
                .count()
                == 4
        });
        ensure!(ready.await, "the workers of the other owner do not start");
        Ok(Self {
            owner,
            pools,
            prefix,
            size: 4,
        })
    }

    /// Ends them.
    pub(crate) async fn end(self, world: &World) -> anyhow::Result<()> {
        delete(world, self.pools.iter()).await;
        let gone = world.witness.until(GONE + GONE, |witness| {
            witness
                .of(&self.prefix)
                .values()
                .all(|seen| seen.gone.is_some())
        });
        ensure!(gone.await, "the workers of the other owner do not end");
        world.witness.forget(&self.prefix);
        self.owner.kill().await
    }

    fn dead(&self, world: &World) -> Vec<String> {
        let table = world.witness.of(&self.prefix);
        let dead = table.into_iter().filter(|(_, seen)| seen.gone.is_some());
        dead.map(|(label, _)| label).collect()
    }
}

/// Plays one event, and leaves the world working, with others that live.
pub(crate) async fn play(
    world: &mut World,
    others: &mut Option<Others>,
    event: Event,
    size: u32,
) -> anyhow::Result<Round> {
    let mut round = Round::default();
    if others.is_none() {
        *others = Some(Others::start(world).await?);
    }
    world.round += 1;
    let prefix = format!("r{}-", world.round);
    let owner = world.owner(format!("owner-{}", world.round)).await?;
    let pools: BTreeMap<Behaviour, String> = behaviours(world.level)
        .map(|behaviour| (behaviour, format!("{prefix}{behaviour}")))
        .collect();

    let started = Instant::now();
    let apply = pools.keys().map(|&behaviour| {
        let request = ApplyPoolRequest {
            pool: Some(spec(
                world,
                behaviour,
                &prefix,
                size,
                Mode::Coupled { held: event.held },
            )),
            owner: owner.name.clone(),
            epoch: owner.epoch,
        };
        let mut client = world.client.pools();
        async move {
            client
                .apply_pool(request)
                .await
                .map_err(Problem::from)
                .map(drop)
        }
    });
    let applying = tokio::spawn(join_all(apply));
    if event.phase == Phase::Spawn {
        let most = u64::try_from(world.spawn_time.as_micros()).unwrap_or(u64::MAX);
        sleep(Duration::from_micros(world.dice.roll(most))).await;
    } else {
        for applied in applying.await? {
            applied?;
        }
        let all = pools.len() * size as usize;
        let ready = world.witness.until(START, |witness| {
            let table = witness.of(&prefix);
            table
                .values()
                .filter(|seen| seen.ready || seen.unchanged)
                .count()
                == all
        });
        ensure!(
            ready.await,
            "not all of {all} workers have started within {START:?}: {:?}",
            world.witness.of(&prefix)
        );
        world.spawn_time = (world.spawn_time + started.elapsed()) / 2;
    }
    match event.phase {
        Phase::Idle | Phase::Spawn => {}
        Phase::Stop => {
            let deleting: Vec<_> = pools.values().cloned().collect();
            let mut client = world.client.pools();
            tokio::spawn(async move {
                for name in deleting {
                    let _ = client
                        .delete_pool(DeletePoolRequest {
                            name,
                            ..Default::default()
                        })
                        .await;
                }
            });
            let asked = world.witness.until(START, |witness| {
                witness.of(&prefix).values().any(|seen| seen.asked)
            });
            ensure!(asked.await, "no worker was asked to stop");
            sleep(Duration::from_micros(world.dice.roll(30_000))).await;
        }
        Phase::Upgrade => {
            // A container ends with an agent that ends by itself.
            let politely = world.dice.roll(2) == 0 && world.level != Level::G4;
            world.expect_agent();
            let agent = world.service("tether-agent")?;
            if politely {
                agent.terminate()
            } else {
                agent.kill()
            };
            let gone = eventually_within(START, async || (!agent.lives()).then_some(()));
            gone.await.context("the agent does not end")?;
            world.launch("tether-agent").await?;
            sleep(Duration::from_micros(world.dice.roll(80_000))).await;
        }
    }

    freeze(world, pools.get(&Behaviour::Frozen), event.phase).await;
    let (hit, spared, victims) = aim(world, &owner, event, &pools);
    if victims.is_empty() && event.phase != Phase::Spawn {
        round.skipped = Some(match event.victim {
            Victim::Zygote => "there is no zygote",
            Victim::Init => "there is no first process of a namespace at this level",
            _ => "there was nobody to kill",
        });
    }
    let hit = if victims.is_empty() { Vec::new() } else { hit };
    let table = world.witness.of(&prefix);
    let mains = table.values().filter_map(|seen| seen.main.as_deref());
    let pids: Vec<_> = victims
        .iter()
        .chain(mains)
        .filter_map(|process| world.pid_to_take(process))
        .collect();
    let mut pause = Pause::begin(world, event).await?;
    if event.victim == Victim::Agent {
        world.expect_agent();
    }
    let now = Instant::now();
    for victim in &victims {
        victim.kill();
    }
    let table = world.witness.of(&prefix);
    for pid in pids {
        world.take_over(pid);
    }
    // Those that ended by themselves before the kill were not killed by it.
    let hit: Vec<_> = hit
        .into_iter()
        .filter(|(_, label)| {
            table
                .get(label)
                .is_none_or(|seen| seen.gone.is_none_or(|gone| gone >= now))
        })
        .collect();
    let (must, may): (Vec<_>, Vec<_>) = hit
        .iter()
        .filter(|(behaviour, _)| {
            matches!(
                event.expect(world.level, *behaviour),
                Expect::Gone | Expect::GoneOrHole
            )
        })
        .partition(|(behaviour, _)| event.expect(world.level, *behaviour) == Expect::Gone);
    let gone = |table: &BTreeMap<String, Seen>, labels: &[&(Behaviour, String)]| {
        let lives = |label| {
            table
                .get(label)
                .is_some_and(|seen: &Seen| seen.gone.is_none())
        };
        !labels.iter().any(|(_, label)| lives(label))
    };
    world
        .witness
        .until(GONE, |witness| gone(&witness.of(&prefix), &must))
        .await;
    if !may.is_empty() {
        world
            .witness
            .until(HOLE, |witness| gone(&witness.of(&prefix), &may))
            .await;
    }
    let after = world.witness.of(&prefix);
    let holes: BTreeSet<_> = may
        .iter()
        .map(|(_, label)| label.clone())
        .filter(|label| after.get(label).is_some_and(|seen| seen.gone.is_none()))
        .collect();
    // A container's first process has to end them without the agent's help.
    pause.wake_first();
    let stuck = event.waits_for_first(world.level)
        && !world
            .witness
            .until(GONE, |witness| gone(&witness.of(&prefix), &may))
            .await;
    pause.end();
    // A process that was killed a moment ago still looks alive, and would not be replaced.
    let dead = eventually_within(START, async || {
        (!victims.iter().any(Pinned::lives)).then_some(())
    });
    dead.await.context("a killed process does not die")?;
    world.mend().await?;
    let alive = world.witness.of(&prefix);
    let lived = |label: &str| alive.get(label).is_some_and(|seen| seen.gone.is_none());
    if let Some(others) = others.as_ref().filter(|_| event.spares_others(world.level)) {
        round.bystanders += others.size + spared.len();
        let dead = others.dead(world).into_iter();
        let dead = dead.chain(spared.into_iter().filter(|label| !lived(label)));
        for label in dead {
            let why = cause(world, &label).await;
            round.faults.push(format!(
                "{label} died, which was none of its business: {why}"
            ));
        }
    }
    let ended = close(world, &prefix, &pools, owner).await?;
    for (behaviour, label) in hit {
        let expect = event.expect(world.level, behaviour);
        let stays = ended.get(&label).is_some_and(|seen| seen.gone.is_none());
        let took = ended
            .get(&label)
            .and_then(|seen| Some(seen.gone?.duration_since(now)));
        let outcome = match expect {
            _ if stays => Outcome::Orphan,
            Expect::GoneOrHole if stuck && holes.contains(&label) => Outcome::Orphan,
            Expect::Lives if lived(&label) => Outcome::Lived,
            Expect::Lives => Outcome::Died,
            Expect::GoneOrHole if holes.contains(&label) => Outcome::Hole,
            Expect::Gone | Expect::GoneOrHole if took.is_some_and(|took| took > GONE) => {
                Outcome::Orphan
            }
            Expect::Gone | Expect::GoneOrHole => Outcome::Gone(took),
            Expect::GoneWithOwner => Outcome::Gone(None),
        };
        round.trials.push((behaviour, label, outcome));
    }
    for (label, _) in ended.iter().filter(|(_, seen)| seen.gone.is_none()) {
        if !round.trials.iter().any(|(_, trial, _)| trial == label) {
            round
                .faults
                .push(format!("{label} is left after its owner died"));
        }
    }
    if event.spares_others(world.level) {
        world.witness.forget(&prefix);
    } else if let Some(others) = others.take() {
        // Killed with all shims; whatever their agents found of them has to be gone too.
        others.end(world).await?;
    }
    Ok(round)
}

/// What the arbiter says of a death.
async fn cause(world: &World, label: &str) -> String {
    let pool = label.split('/').next().unwrap_or_default().to_owned();
    let listed = world
        .client
        .workers()
        .list_workers(ListWorkersRequest { pool })
        .await;
    let workers = listed
        .map(|listed| listed.into_inner().workers)
        .unwrap_or_default();
    let deaths: Vec<_> = workers
        .iter()
        .filter_map(|worker| worker.last_death.as_ref())
        .collect();
    format!("{deaths:?}")
}

/// The owner dies, and with it every worker of its pools; tells how each of them stands then.
async fn close(
    world: &World,
    prefix: &str,
    pools: &BTreeMap<Behaviour, String>,
    owner: Owner,
) -> anyhow::Result<BTreeMap<String, Seen>> {
    owner.kill().await?;
    let empty = eventually_within(START, async || {
        let listed = world
            .client
            .pools()
            .list_pools(ListPoolsRequest::default())
            .await
            .ok()?;
        let pools = listed.into_inner().pools;
        let ours = |name: &str| name.starts_with(prefix);
        let left = |pool: &tether_proto::pool::Pool| {
            pool.live > 0 && pool.spec.as_ref().is_some_and(|spec| ours(&spec.name))
        };
        (!pools.iter().any(left)).then_some(())
    });
    let told = empty.await.is_some();
    // The arbiter says that they are gone; the kernel has to agree.
    world
        .witness
        .until(GONE, |witness| {
            witness.of(prefix).values().all(|seen| seen.gone.is_some())
        })
        .await;
    delete(world, pools.values()).await;
    // What was applied in the owner's last moment may have been started after that, and has to go likewise.
    world
        .witness
        .until(LATE, |witness| {
            witness.of(prefix).values().all(|seen| seen.gone.is_some())
        })
        .await;
    let ended = world.witness.of(prefix);
    ensure!(
        told || ended.values().any(|seen| seen.gone.is_none()),
        "all workers are gone, but the arbiter does not know"
    );
    Ok(ended)
}

async fn delete(world: &World, pools: impl Iterator<Item = &String>) {
    let deleting = pools.map(|name| {
        let mut client = world.client.pools();
        let request = DeletePoolRequest {
            name: name.clone(),
            ..Default::default()
        };
        // One that was deleted by the event is not there any more.
        async move { drop(client.delete_pool(request).await) }
    });
    join_all(deleting).await;
}
