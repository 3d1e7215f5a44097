//! Who is hit: the workers whose trial it is, those that are to be spared, and the processes to be killed.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tether_tests::eventually_within;

use crate::{
    cgroups,
    lineage::{Pinned, ancestor, state},
    owner::Owner,
    plan::{Behaviour, Event, Phase, Victim},
    witness::Seen,
    world::{SERVICES, World},
};

/// Whom the event hits: the workers whose trial it is, those beside them that are to live, and the processes
/// to be killed, pinned.
pub(crate) fn aim(
    world: &World,
    owner: &Owner,
    event: Event,
    pools: &BTreeMap<Behaviour, String>,
) -> (Vec<(Behaviour, String)>, Vec<String>, Vec<Pinned>) {
    let kin = world.kin();
    let named = |name: &str| -> Vec<Pinned> {
        let found = kin.iter().filter(|kin| kin.name == name);
        found
            .filter_map(|kin| Pinned::named(kin.pid, name))
            .collect()
    };
    let again = |pid: u32| Pinned::new(pid).ok();
    let services = |names: &[&'static str]| -> Vec<Pinned> {
        let pids = names.iter().filter_map(|name| world.service(name).ok());
        pids.filter_map(|service| again(service.pid)).collect()
    };
    let subject = |(behaviour, _, seen): &(Behaviour, String, Seen)| {
        (event.phase == Phase::Spawn || (seen.ready && !seen.unchanged))
            && seen.gone.is_none()
            && (event.phase == Phase::Spawn || in_place(*behaviour, seen))
    };
    let running: Vec<_> = pools
        .iter()
        .flat_map(|(&behaviour, pool)| {
            let table = world.witness.of(&format!("{pool}/"));
            table
                .into_iter()
                .map(move |(label, seen)| (behaviour, label, seen))
        })
        .filter(subject)
        .collect();
    let all = || {
        running
            .iter()
            .map(|(behaviour, label, _)| (*behaviour, label.clone()))
            .collect()
    };
    let below = |name: &str, every_other: bool| {
        let (mut hit, mut spared, mut victims) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = None;
        let mut odd = false;
        for (behaviour, label, seen) in &running {
            odd = last != Some(*behaviour) || !odd;
            last = Some(*behaviour);
            // The first process of the namespace stands beside the worker, below the same shim.
            let main = seen.main.as_ref();
            let shim = main.and_then(|main| main.look(|pid| ancestor(&kin, pid, "tether-shim")));
            let beside = || {
                kin.iter()
                    .find(|kin| Some(kin.parent) == shim && kin.name == name)
            };
            let found = match event.victim {
                Victim::Init => beside().map(|kin| kin.pid),
                _ => shim,
            };
            match found.and_then(|pid| Pinned::named(pid, name)) {
                Some(victim) if odd || !every_other => {
                    hit.push((*behaviour, label.clone()));
                    victims.push(victim);
                }
                _ if matches!(event.phase, Phase::Idle | Phase::Upgrade) => {
                    spared.push(label.clone())
                }
                _ => {}
            }
        }
        (hit, spared, victims)
    };
    // During a start, what was ordered counts, whether or not the program runs yet.
    let ordered = || match event.phase {
        Phase::Spawn => directories(&world.path("workers"), pools),
        Phase::Idle | Phase::Stop | Phase::Upgrade => all(),
    };
    match event.victim {
        Victim::Client => (
            ordered(),
            Vec::new(),
            again(owner.pinned.pid).into_iter().collect(),
        ),
        Victim::Agent => (ordered(), Vec::new(), services(&["tether-agent"])),
        Victim::Zygote => (ordered(), Vec::new(), named("tether-zygote")),
        Victim::OneShim => below("tether-shim", true),
        Victim::Init => below("tether-init", true),
        Victim::AllShims => {
            let (hit, ..) = below("tether-shim", false);
            (hit, Vec::new(), named("tether-shim"))
        }
        Victim::Everything => {
            let mut victims: Vec<_> = again(owner.pinned.pid).into_iter().collect();
            victims.extend(services(&SERVICES));
            victims.extend(named("tether-zygote"));
            victims.extend(named("tether-shim"));
            (ordered(), Vec::new(), victims)
        }
    }
}

/// The incarnations of these pools whose start has begun.
fn directories(workers: &Path, pools: &BTreeMap<Behaviour, String>) -> Vec<(Behaviour, String)> {
    let entries = fs::read_dir(workers).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut found = Vec::new();
    for name in names {
        let Some((pool, rest)) = name.split_once('.') else {
            continue;
        };
        if let Some((&behaviour, _)) = pools.iter().find(|(_, ours)| *ours == pool) {
            found.push((behaviour, format!("{pool}/{rest}")));
        }
    }
    found
}

/// Whether a worker is what its behaviour says, where that can be seen from outside.
fn in_place(behaviour: Behaviour, seen: &Seen) -> bool {
    let main = seen.main.as_ref();
    match behaviour {
        Behaviour::Stopped => main.and_then(|main| main.look(state)) == Some('T'),
        Behaviour::Frozen => {
            let group = main.and_then(|main| main.look(group));
            let events = group.map(|group| fs::read_to_string(group.join("cgroup.events")));
            events.is_some_and(|events| events.is_ok_and(|events| events.contains("frozen 1")))
        }
        Behaviour::Polite
        | Behaviour::Stubborn
        | Behaviour::Daemon
        | Behaviour::Chain
        | Behaviour::SetUid => true,
    }
}

/// Freezes the cgroups of the workers that are to be frozen.
pub(crate) async fn freeze(world: &World, pool: Option<&String>, phase: Phase) {
    let Some(pool) = pool else { return };
    for seen in world.witness.of(&format!("{pool}/")).values() {
        let main = seen.main.as_ref().filter(|_| seen.gone.is_none());
        let Some(group) = main.and_then(|main| main.look(group)) else {
            continue;
        };
        let frozen = fs::write(group.join("cgroup.freeze"), "1").is_ok();
        if frozen && phase != Phase::Spawn {
            // What is not frozen in time is no trial.
            let _ = eventually_within(Duration::from_secs(1), async || {
                in_place(Behaviour::Frozen, seen).then_some(())
            })
            .await;
        }
    }
}

/// The cgroup of a worker; none when it has none of its own.
fn group(pid: u32) -> Option<PathBuf> {
    let read = |pid: &str| -> Option<String> {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        Some(
            groups
                .lines()
                .find_map(|line| line.strip_prefix("0::/"))?
                .to_owned(),
        )
    };
    let group = read(&pid.to_string())?;
    (group != read("self")?).then(|| cgroups::unified().map(|mount| mount.join(group)))?
}
