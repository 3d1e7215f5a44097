//! Listening sockets that the agent holds for its workers: a caller waits while a worker starts, and is not
//! refused while one is replaced.
//!
//! A socket belongs to a pool and to an address. Workers whose address is the same share it; one whose
//! address names its slot has its own, from incarnation to incarnation. It is closed when its last slot is
//! given up, or was empty for longer than a restart takes. A shim keeps the sockets of its worker too, and
//! gives them to the next agent.

mod bind;

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::pool::Template;
use tether_types::{Address, PoolName, Slot, WorkerId};

use crate::launch;

/// How long an address that is in use is waited for: a worker of an earlier agent, whose shim has it, may
/// be on its way here.
const ADOPTED_WITHIN: Duration = Duration::from_secs(3);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// How long an empty slot keeps its sockets beyond the longest delay of a restart.
const LINGER: Duration = Duration::from_secs(60);

/// The longest delay of a restart, where the template says nothing.
const MAX_DELAY_MS: u64 = 30_000;

/// Placeholders that come of an address, and so cannot make one.
const CIRCULAR: [&str; 3] = ["{address}", "{socket}", "{port}"];

/// One socket that a worker is to be given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) name: String,
    /// Where it listens, placeholders filled in; empty for one that the agent inherited.
    listen: String,
    pub(crate) on_demand: bool,
}

/// One socket that is there.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) socket: OwnedFd,
    pub(crate) address: Address,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    pool: PoolName,
    name: String,
    listen: String,
}

#[derive(Debug)]
struct Held {
    socket: OwnedFd,
    /// Until when each slot keeps it: for ever while a worker is in it.
    slots: BTreeMap<Slot, Tick>,
}

/// All that one agent holds.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    inherited: BTreeMap<String, OwnedFd>,
    held: Mutex<BTreeMap<Key, Held>>,
}

/// The sockets that a template asks for.
///
/// # Errors
/// When an address is none.
pub(crate) fn wanted(
    id: &WorkerId,
    template: &Template,
    own_dir: &Path,
    node: &str,
) -> io::Result<Vec<Wanted>> {
    let sockets = template.sockets.iter().map(|socket| {
        let (name, given) = (&socket.name, &socket.address);
        let is_name = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b':';
        if name.is_empty() || !name.bytes().all(is_name) {
            return Err(launch::refused(format!(
                "the name of its socket `{}` cannot stand in LISTEN_FDNAMES: use letters and digits",
                name.escape_default()
            )));
        }
        if let Some(circular) = CIRCULAR.iter().find(|circular| given.contains(**circular)) {
            return Err(launch::refused(format!(
                "its socket `{name}` listens at `{given}`, and `{circular}` is known only once it does: \
                 write the address, with `{{slot}}` where each worker has its own"
            )));
        }
        let none = Address::Unix(std::path::PathBuf::new());
        let listen = launch::fill(given, id, &none, own_dir, node);
        if !listen.is_empty() {
            let address = listen.parse::<Address>();
            address.map_err(|why| launch::refused(format!("its socket `{name}`: {why}")))?;
        }
        Ok(Wanted {
            name: name.clone(),
            listen,
            on_demand: socket.on_demand,
        })
    });
    sockets.collect()
}

/// How long an empty slot of this template keeps its sockets.
pub(crate) fn linger(template: &Template) -> Duration {
    let restart = template.restart.as_ref();
    let longest = restart.and_then(|restart| restart.max_delay_ms);
    LINGER + Duration::from_millis(longest.unwrap_or(MAX_DELAY_MS))
}

impl Sockets {
    /// Holds nothing yet but what this process was started with.
    pub(crate) fn inherit() -> Self {
        let mut inherited = BTreeMap::new();
        for (name, socket) in tether_kit::inherited::rest() {
            // Of those with one name, the first.
            inherited.entry(name).or_insert(socket);
        }
        Self {
            inherited,
            ..Self::default()
        }
    }

    /// Those that a worker is about to be given: the ones its slot or its pool has, or new ones. What its
    /// slot had and no longer wants is let go.
    ///
    /// # Errors
    /// When one cannot be made.
    pub(crate) async fn hold(&self, id: &WorkerId, wanted: &[Wanted]) -> io::Result<Vec<Open>> {
        let deadline = BootClock.now() + ADOPTED_WITHIN;
        loop {
            match self.try_hold(id, wanted) {
                Err(error)
                    if error.kind() == io::ErrorKind::AddrInUse && BootClock.now() < deadline =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                held => return held,
            }
        }
    }

    fn try_hold(&self, id: &WorkerId, wanted: &[Wanted]) -> io::Result<Vec<Open>> {
        let mut held = self.lock();
        let keys: Vec<_> = wanted.iter().map(|wanted| wanted.key(id)).collect();
        held.retain(|key, held| {
            if key.pool == id.pool && !keys.contains(key) {
                held.slots.remove(&id.slot);
            }
            held.goes_on(key)
        });
        let mut open = Vec::new();
        for key in keys {
            let (name, listen) = (key.name.clone(), key.listen.clone());
            let explain = |error: io::Error| {
                let at = if listen.is_empty() {
                    String::new()
                } else {
                    format!(" at `{listen}`")
                };
                io::Error::new(
                    error.kind(),
                    format!("cannot listen{at} for its socket `{name}`: {error}"),
                )
            };
            if !held.contains_key(&key) {
                let socket = self.make(&key).map_err(explain)?;
                let slots = BTreeMap::new();
                held.insert(key.clone(), Held { socket, slots });
            }
            if let Some(held) = held.get_mut(&key) {
                held.slots.insert(id.slot, Tick::NEVER);
                let socket = held.socket.try_clone()?;
                let address = bind::local_address(&socket).map_err(explain)?;
                open.push(Open { socket, address });
            }
        }
        Ok(open)
    }

    fn make(&self, key: &Key) -> io::Result<OwnedFd> {
        if key.listen.is_empty() {
            let known = || {
                self.inherited
                    .keys()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
            };
            let inherited = self.inherited.get(&key.name).ok_or_else(|| {
                launch::refused(format!(
                    "the agent was started with no socket of that name ({}): set `FileDescriptorName` of its socket unit, or `listen` of the template's socket",
                    known().join(", ")
                ))
            });
            return inherited?.try_clone();
        }
        bind::bind(&key.listen.parse().map_err(io::Error::other)?)
    }

    /// Takes over the sockets of a worker that an earlier agent started; its shim had them.
    pub(crate) fn adopt(&self, id: &WorkerId, wanted: &[Wanted], sockets: Vec<OwnedFd>) {
        let mut held = self.lock();
        for (wanted, socket) in wanted.iter().zip(sockets) {
            let slots = BTreeMap::new();
            let held = held.entry(wanted.key(id));
            let held = held.or_insert(Held { socket, slots });
            held.slots.insert(id.slot, Tick::NEVER);
        }
    }

    /// A slot has no worker. `linger` is for how long its next one may yet come; none where none does.
    pub(crate) fn on_death(&self, pool: &PoolName, slot: Slot, linger: Option<Duration>) {
        let now = BootClock.now();
        for (_, held) in self.lock().iter_mut().filter(|(key, _)| key.pool == *pool) {
            if let Some(until) = held.slots.get_mut(&slot) {
                *until = linger.map_or(now, |linger| now + linger);
            }
        }
        self.check(now);
    }

    /// Only time passed: closes what nobody came back for.
    pub(crate) fn check(&self, now: Tick) {
        self.lock().retain(|key, held| {
            held.slots.retain(|_, until| *until > now);
            held.goes_on(key)
        });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Held>> {
        // Each change leaves the map whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wanted {
    fn key(&self, id: &WorkerId) -> Key {
        Key {
            pool: id.pool.clone(),
            name: self.name.clone(),
            listen: self.listen.clone(),
        }
    }
}

impl Held {
    /// Whether anybody has it. The file of one that nobody has goes first, so that nobody connects to what
    /// nobody will accept. What was inherited is not ours to remove.
    fn goes_on(&self, key: &Key) -> bool {
        if self.slots.is_empty()
            && let Ok(Address::Unix(path)) = key.listen.parse()
        {
            let _ = fs::remove_file(path);
        }
        !self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests;
