//! Owners of the model: their processes, sessions and pools.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use tether_clock::Tick;
use tether_proto::{
    common::ProcessIdentity,
    pool::{self, PoolSpec, Readiness, Restart, Stop, Template},
};
use tether_types::{Epoch, OwnerName};

use super::world::World;
use crate::{effects::keys, record::OwnerRecord};

/// Name, mode, owner, heartbeat timeout and interval in milliseconds.
pub(super) const POOLS: &[(&str, &str, usize, u64, u64)] = &[
    ("coupled-0", "coupled", 0, 1_000, 200),
    ("lasting-0", "independent", 0, 2_000, 400),
    ("coupled-1", "coupled", 1, 1_000, 200),
    ("lasting-1", "independent", 1, 2_000, 400),
    ("spread-1", "distributed", 1, 2_000, 400),
];

/// By what workers of one template are told from those of the next.
pub(super) const VERSION: &str = "VERSION";

const GPU_POOL: &str = "lasting-1";
const ZONED_POOL: &str = "spread-1";

/// What a schedule asks for beyond sizes and modes.
#[derive(Debug, Clone, Default)]
pub(super) struct Wishes {
    /// Pools and what each depends on.
    pub(super) depends_on: BTreeMap<&'static str, &'static str>,
    pub(super) spares: u32,
    pub(super) starts_per_second: u32,
    pub(super) max_lifetime_ms: u64,
    pub(super) max_memory_bytes: u64,
    pub(super) max_calls: u64,
    /// Where it is not what the list of pools says.
    pub(super) modes: BTreeMap<String, &'static str>,
    pub(super) max_restarts: Option<u32>,
    /// How long workers of pools that are not coupled outlive their node's lease, and with a job its last beat.
    pub(super) grace_ms: u64,
    pub(super) job_ttl_ms: u64,
    /// Whether one pool's workers each take a GPU, and another's have to be in one zone.
    pub(super) gpus: bool,
    pub(super) zoned: bool,
    pub(super) packed: bool,
    /// How workers are replaced: places beyond the size, workers that may be missing.
    pub(super) budget: (u32, u32),
    /// How often the template of a pool was changed.
    pub(super) versions: BTreeMap<String, u32>,
}

impl Wishes {
    pub(super) fn version_of(&self, pool: &str) -> u32 {
        self.versions.get(pool).copied().unwrap_or(0)
    }

    /// What workers of this pool take, and the zone they have to be in. There is as much as all take together.
    pub(super) fn placement(&self, pool: &str) -> pool::Placement {
        let mut placement = pool::Placement::default();
        if self.gpus && pool == GPU_POOL {
            placement.resources.insert("gpu".to_owned(), 1);
        }
        if self.zoned && pool == ZONED_POOL {
            placement.labels.insert("zone".to_owned(), "a".to_owned());
        }
        if self.packed {
            placement.set_prefer(pool::Preference::Pack);
        }
        placement
    }
}

#[derive(Debug)]
pub(super) struct Owner {
    pub(super) name: OwnerName,
    /// Its process; the next one has the next number.
    pub(super) pid: u32,
    pub(super) running: bool,
    /// When its process ended, or another took its place.
    pub(super) changed: Tick,
    pub(super) silent: bool,
    pub(super) session: Option<(Epoch, u64, Tick)>,
    /// Its last word that the arbiter took, a renewed pool and a restart of the arbiter excepted.
    pub(super) contact: Tick,
    /// When it said goodbye, unless it came back.
    pub(super) left: Option<Tick>,
}

impl Owner {
    pub(super) fn new(name: &str, pid: u32) -> Self {
        Self {
            name: name.parse().unwrap(),
            pid,
            running: true,
            changed: Tick::ZERO,
            silent: false,
            session: None,
            contact: Tick::ZERO,
            left: None,
        }
    }
}

impl World {
    pub(super) fn beat_owners(&mut self) {
        for index in 0..self.owners.len() {
            let owner = &mut self.owners[index];
            if owner.silent || !owner.running {
                continue;
            }
            if let Some((epoch, seq, due)) = owner.session
                && self.now >= due
            {
                let name = owner.name.clone();
                match self
                    .ledger
                    .beat_session(&name, epoch, seq + 1, seq, self.now)
                {
                    Ok(ack) => {
                        let next = self.now + Duration::from_millis(ack.beat_ms);
                        let owner = &mut self.owners[index];
                        owner.session = Some((epoch, seq + 1, next));
                        if ack.ttl_ms > 0 {
                            owner.contact = self.now;
                        }
                    }
                    Err(_) => self.owners[index].session = None,
                }
                self.settle();
            }
        }
    }

    /// Opens a session, from the same process or another.
    pub(super) fn open(&mut self, index: usize, another: bool) {
        let owner = &mut self.owners[index];
        if another || !owner.running {
            owner.pid += 1;
            owner.changed = self.now;
            owner.running = true;
        }
        owner.silent = false;
        owner.contact = self.now;
        owner.left = None;
        let process = ProcessIdentity {
            pid: owner.pid,
            start_ticks: 1,
            boot_id: "here".to_owned(),
            pid_namespace: 1,
        };
        let name = owner.name.clone();
        self.revision += 1;
        let record = OwnerRecord {
            process: Some(process.clone()),
            ttl_ms: 3_000,
        };
        let value = Bytes::from(record.encode_to_vec());
        self.store
            .insert(keys::owner(&name), (value, self.revision));
        let epoch = Epoch(self.revision);
        let terms = self.ledger.session_terms(Duration::from_secs(3)).unwrap();
        let process = Some((&process).into());
        let granted = self
            .ledger
            .open_session(&name, epoch, process, terms, self.now);
        let due = self.now + Duration::from_millis(granted.beat_ms);
        self.settle();
        self.owners[index].session = Some((epoch, 0, due));
    }

    pub(super) fn goodbye(&mut self, index: usize) {
        let owner = &mut self.owners[index];
        if let Some((epoch, ..)) = owner.session.take() {
            let name = owner.name.clone();
            if self.ledger.close_session(&name, epoch, self.now).is_ok() {
                self.owners[index].contact = self.now;
                self.owners[index].left = Some(self.now);
            }
            self.settle();
        }
    }

    /// The mode a pool was last applied with.
    pub(super) fn mode_of(&self, name: &str) -> &'static str {
        let listed = POOLS.iter().find(|pool| pool.0 == name);
        let other = self.wishes.modes.get(name).copied();
        other.unwrap_or_else(|| listed.unwrap().1)
    }

    /// Applies a pool with another mode; false where that is refused.
    pub(super) fn switch(&mut self, pool: usize, mode: &'static str) -> bool {
        let name = POOLS[pool].0;
        let Ok(running) = self.ledger.get_pool(name) else {
            return false;
        };
        let before = self.wishes.modes.insert(name.to_owned(), mode);
        let done = self.apply(pool, running.spec.unwrap().size);
        if done {
            self.switched.insert(name.to_owned(), self.now);
        } else {
            match before {
                Some(mode) => self.wishes.modes.insert(name.to_owned(), mode),
                None => self.wishes.modes.remove(name),
            };
        }
        done
    }

    /// Applies a pool with another template; nothing where there is none.
    pub(super) fn change_template(&mut self, pool: usize) {
        let name = POOLS[pool].0;
        let Ok(running) = self.ledger.get_pool(name) else {
            return;
        };
        self.rolls = true;
        *self.wishes.versions.entry(name.to_owned()).or_default() += 1;
        if !self.apply(pool, running.spec.unwrap().size) {
            *self.wishes.versions.get_mut(name).unwrap() -= 1;
        }
    }

    /// A pool as it is wanted.
    pub(super) fn spec(&self, pool: usize, size: u32) -> PoolSpec {
        let (name, _, _, timeout, interval) = POOLS[pool];
        let wishes = &self.wishes;
        let outlives = self.mode_of(name) != "coupled";
        let template = Template {
            command: "work".to_owned(),
            env: [(VERSION.to_owned(), wishes.version_of(name).to_string())].into(),
            stop: Some(Stop {
                grace_ms: Some(200),
                ..Stop::default()
            }),
            restart: Some(Restart {
                delay_ms: Some(100),
                max_delay_ms: Some(400),
                max_restarts: wishes.max_restarts.or(Some(100_000)),
                ..Restart::default()
            }),
            readiness: Some(Readiness {
                timeout_ms: 3_000,
                ..Readiness::default()
            }),
            recycle: Some(pool::Recycle {
                max_lifetime_ms: wishes.max_lifetime_ms,
                max_memory_bytes: wishes.max_memory_bytes,
                max_calls: wishes.max_calls,
            }),
            ..Template::default()
        };
        PoolSpec {
            name: name.to_owned(),
            mode: self.mode_of(name).to_owned(),
            template: Some(template),
            size,
            policy: Some(pool::PolicyOverrides {
                partition_grace_ms: outlives.then_some(wishes.grace_ms),
                job_ttl_ms: outlives.then_some(wishes.job_ttl_ms),
                heartbeat_timeout_ms: Some(timeout),
                heartbeat_interval_ms: Some(interval),
                ..Default::default()
            }),
            depends_on: wishes
                .depends_on
                .get(name)
                .map(|other| (*other).to_owned())
                .into_iter()
                .collect(),
            spares: wishes.spares,
            starts_per_second: wishes.starts_per_second,
            placement: Some(wishes.placement(name)),
            rollout: Some(pool::Rollout {
                surge: Some(wishes.budget.0),
                max_unavailable: Some(wishes.budget.1.max(u32::from(wishes.budget.0 == 0))),
                ..Default::default()
            }),
            ..PoolSpec::default()
        }
    }

    /// Applies a pool; false where that is refused.
    pub(super) fn apply(&mut self, pool: usize, size: u32) -> bool {
        let (name, _, owner, ..) = POOLS[pool];
        let spec = self.spec(pool, size);
        let asking = &self.owners[owner];
        // Where its process is gone, an operator applies it.
        let session = asking.session.filter(|_| asking.running);
        let epoch = session.map_or(Epoch(0), |(epoch, ..)| epoch);
        let done = self
            .ledger
            .apply_pool(spec, asking.name.clone(), epoch, self.now);
        if done.is_ok() {
            self.applied.insert(name.to_owned(), self.now);
            if epoch != Epoch(0) {
                self.owners[owner].contact = self.now;
            }
        }
        self.settle();
        done.is_ok()
    }
}
