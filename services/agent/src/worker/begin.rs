//! The beginning of an incarnation: all that is made, written down and asked for before its worker runs.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::Path,
};

use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::node::StartWorker;
use tether_shim_protocol::{Hello, Launch, Message};
use tether_types::{Address, WorkerId};
use tokio::{net::UnixStream, time::timeout};

use super::{SHIM_START, Ties, directory};
use crate::{
    config::Ground,
    forkserver::Served,
    health::{Health, Place},
    journal::Entry,
    launch::{self, Circumstances, Passed},
    link::{self, FromShim, ToShim},
    notify::{FdStore, Named},
    pages::Seat,
    service,
    sockets::{self, Wanted},
    units::Wish,
    users,
};

/// Zygotes that are tried before a start is given up.
const ATTEMPTS: u32 = 3;

/// What a start is made of.
pub(super) struct Prepared {
    pub(super) address: Address,
    pub(super) launch: Launch,
    /// How often ends had been moved nearer when it was made.
    pub(super) nearer: u64,
    pub(super) sockets: Vec<OwnedFd>,
    /// What earlier incarnations gave away to have it back, passed on after the sockets.
    pub(super) stored: Vec<Named>,
    /// The unit of its own that it is to be in.
    pub(super) unit: Option<String>,
}

/// Everything up to the fork: an agent that finds what this leaves knows what was meant, and a shim that
/// comes of it knows all it needs.
pub(super) async fn prepare(
    id: &WorkerId,
    order: &StartWorker,
    ties: &Ties,
    server: Option<Served>,
) -> io::Result<(Prepared, Box<Health>)> {
    let ground = &ties.ground;
    let dir = directory(&ground.workers, id);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)?;
    let template = order.template.clone().unwrap_or_default();
    let service = service::errand(id, order, &ground.way_to(&order.launcher))?;
    let unit = ground.units.of(id, order);
    let credentials = users::resolve(&template)?;
    let own_dir = launch::own_directory(&ground.workers, &dir, credentials.as_ref())?;
    let wanted = sockets::wanted(id, &template, &own_dir, ground.node.as_str())?;
    let held = ground.sockets.hold(id, &wanted).await?;
    let address = match (&service, held.first()) {
        (Some((_, address)), _) => address.clone(),
        (None, Some(first)) => first.address.clone(),
        (None, None) => launch::address(&template, &own_dir, &ground.worker_host)?,
    };

    let mut walls = ground.walls(id, template.private_proc);
    let hangs = server.as_ref().map(|served| served.hangs.clone());
    let server = server.map(|served| {
        // It is in that one's namespace, and sees its /proc.
        (walls.namespace, walls.private_proc) = (false, false);
        walls.forked_from = Some(launch::bytes_of(served.socket));
        served.id
    });
    if service.is_some() {
        // It only speaks with its supervisor, as the user that the agent is.
        (walls.namespace, walls.private_proc) = (false, false);
    }
    let limits = match service.is_some() || unit.is_some() {
        // Who has it limits it.
        true => {
            walls.cgroup = None;
            None
        }
        false => template.tree_limits.as_ref(),
    };
    let leaf = walls.cgroup.as_deref().map(launch::path_of);
    let mut health = Box::new(Health::of_new(Place {
        id,
        dir: &dir,
        own_dir: &own_dir,
        cgroup: leaf.map(Path::to_owned),
        address: &address,
        template: &template,
        node: ground.node.as_str(),
    }));
    if let Some(hangs) = hangs {
        health.will_be_forked(hangs);
    }
    let name = dir.file_name().unwrap_or_default().as_ref();
    let limiting = ground.controllers.make(limits, leaf, name)?;
    walls.limiting = limiting.into_iter().map(launch::bytes_of).collect();
    walls.cgroup_is_made = limits.is_some() && leaf.is_some_and(Path::exists);
    // Before the fork: an agent that finds the shim must know what it stands for.
    Entry::new(order.clone(), address.clone(), &walls, server).write(&dir)?;

    let stored = match &unit {
        // It is started by systemd, which has none of them.
        Some(_) => Vec::new(),
        None => FdStore::of(&ground.workers).take(&id.pool, id.slot),
    };
    let passed = passed(&wanted, &stored);
    // As of this moment: an order may have waited.
    let permissions = ties.grants.news.borrow().clone();
    let pool = permissions.pool(&id.pool);
    let launch = launch::launch(
        id,
        order,
        Circumstances {
            dir: &dir,
            own_dir: &own_dir,
            address: &address,
            node: ground.node.as_str(),
            agent: &ground.address,
            walls,
            passed: &passed,
            credentials,
            owner: pool.and_then(|pool| pool.process),
            // One that may not take calls is not begun, whatever those that run are allowed.
            node_deadline: match permissions.enabled(BootClock.now()) {
                true => permissions.alive_until(id),
                false => Tick::ZERO,
            },
            // Without a word about its owner it has no permission, and the shim will not start it.
            owner_deadline: pool.map_or(Tick::ZERO, |pool| pool.deadline),
            env: &|name| std::env::var(name).ok(),
        },
    );
    match launch {
        Ok(mut launch) => {
            if let Some((errand, _)) = &service {
                service::be_kept(&mut launch, errand)?;
            }
            let sockets = held.into_iter().map(|open| open.socket).collect();
            let prepared = Prepared {
                address,
                launch,
                nearer: permissions.nearer,
                sockets,
                stored,
                unit,
            };
            Ok((prepared, health))
        }
        Err(error) => {
            give_back(ties, id, stored);
            Err(error)
        }
    }
}

/// What a worker is told of its descriptors.
fn passed(wanted: &[Wanted], stored: &[Named]) -> Passed {
    let names = wanted.iter().map(|wanted| &wanted.name);
    let on_demand = (0..).zip(wanted).filter(|(_, wanted)| wanted.on_demand);
    Passed {
        names: names
            .chain(stored.iter().map(|(name, _)| name))
            .cloned()
            .collect(),
        listening: u32::try_from(wanted.len()).unwrap_or(u32::MAX),
        wait_for: on_demand.map(|(number, _)| number).collect(),
    }
}

/// Keeps for the next incarnation what this one was to have and never got.
pub(super) fn give_back(ties: &Ties, id: &WorkerId, stored: Vec<Named>) {
    let store = FdStore::of(&ties.ground.workers);
    for (name, descriptor) in stored {
        store.keep(&id.pool, id.slot, Some(&name), vec![descriptor]);
    }
}

/// A shim that was told what to launch, and its seat. Until it says `Hello` it is told nothing, so a zygote that
/// breaks or hangs is replaced and asked again.
pub(super) async fn shim_for(
    ground: &Ground,
    id: &WorkerId,
    order: &StartWorker,
    prepared: &Prepared,
) -> io::Result<(Hello, Option<Seat>, FromShim, ToShim)> {
    let stored = prepared.stored.iter().map(|(_, stored)| stored.as_fd());
    let descriptors: Vec<_> = prepared
        .sockets
        .iter()
        .map(AsFd::as_fd)
        .chain(stored)
        .collect();
    let (attempts, asked, ended) = match prepared.unit {
        None => (
            ATTEMPTS,
            "the zygote",
            "the zygote was killed, or may have no more descriptors (look at its limit, `ulimit -n`)",
        ),
        // What is wrong with a unit is so the next time too, and it may not be there twice.
        Some(_) => (1, "its shim", "its shim ended without a word"),
    };
    let mut problem = io::Error::other(ended);
    for _ in 0..attempts {
        let stream = match &prepared.unit {
            None => ground.zygote.spawn(&descriptors).await?,
            Some(unit) => {
                let dir = directory(&ground.workers, id);
                let owner = prepared.launch.owner.filter(|_| order.kill_on_owner_exit);
                let wish = Wish {
                    id,
                    order,
                    owner: owner.map(|owner| owner.pid),
                    files: ground.zygote.descriptors().unwrap_or_default(),
                };
                ground.units.begin(unit, &dir, wish).await?
            }
        };
        stream.set_nonblocking(true)?;
        let (mut from, mut to) = link::split(UnixStream::from_std(stream)?);
        match timeout(SHIM_START, from.next()).await {
            Ok(Ok(Some(Message::Hello(hello)))) => {
                let page = from.take_descriptors().into_iter().next();
                let seat = ground
                    .pages
                    .take((hello.page, page), &id.pool, BootClock.now());
                let launch = Launch {
                    seat: seat.as_ref().map(Seat::place),
                    ..prepared.launch.clone()
                };
                // Not before: a shim that comes late, of a zygote that was given up, finds nothing to start.
                to.send(&Message::Launch(Box::new(launch))).await;
                return Ok((hello, seat, from, to));
            }
            Ok(Ok(Some(Message::SpawnFailed(failure)))) => {
                problem = io::Error::from_raw_os_error(failure.errno);
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => problem = error,
            Err(_) => {
                problem =
                    io::Error::new(io::ErrorKind::TimedOut, format!("{asked} does not answer"));
                if prepared.unit.is_none() {
                    ground.zygote.give_up();
                }
            }
        }
    }
    match &prepared.unit {
        None => Err(problem),
        Some(unit) => Err(ground.units.end_failed(unit, &problem).await),
    }
}
