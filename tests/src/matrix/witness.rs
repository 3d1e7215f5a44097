//! Sees workers live and end: each holds a connection that all its descendants inherit, so its end is the
//! kernel's word that nothing of the worker is left, whatever the worker shed.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::watch,
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;

use crate::lineage::Pinned;

/// What is known of one incarnation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// Its main process, which said so itself once it was pinned.
    pub(crate) main: Option<Arc<Pinned>>,
    /// Whether its behaviour is in place.
    pub(crate) ready: bool,
    /// Whether its set-uid program ran without the other user.
    pub(crate) unchanged: bool,
    /// Whether it was asked to stop.
    pub(crate) asked: bool,
    /// When the last of its processes was gone.
    pub(crate) gone: Option<Instant>,
}

type Table = BTreeMap<String, Seen>;

/// The listening side; workers are named `POOL/SLOT.INCARNATION`.
#[derive(Debug)]
pub(crate) struct Witness {
    table: Arc<Mutex<Table>>,
    changed: watch::Receiver<u64>,
    _accepting: AbortOnDropHandle<()>,
}

impl Witness {
    /// Listens at `path`.
    pub(crate) fn listen(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        let table = Arc::new(Mutex::new(Table::new()));
        let (change, changed) = watch::channel(0);
        let (shared, change) = (Arc::clone(&table), Arc::new(change));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(follow(stream, Arc::clone(&shared), Arc::clone(&change)));
            }
        });
        Ok(Self {
            table,
            changed,
            _accepting: AbortOnDropHandle::new(accepting),
        })
    }

    /// All incarnations whose name begins so.
    pub(crate) fn of(&self, prefix: &str) -> Table {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let matching = table.iter().filter(|(label, _)| label.starts_with(prefix));
        matching
            .map(|(label, seen)| (label.clone(), seen.clone()))
            .collect()
    }

    /// Forgets incarnations whose name begins so.
    pub(crate) fn forget(&self, prefix: &str) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|label, _| !label.starts_with(prefix));
    }

    /// Waits until this holds; tells whether it did in time.
    pub(crate) async fn until(&self, within: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let mut changed = self.changed.clone();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if holds(self) || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        timeout(within, wait).await.is_ok() || holds(self)
    }
}

async fn follow(stream: UnixStream, table: Arc<Mutex<Table>>, change: Arc<watch::Sender<u64>>) {
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let pid = pid.and_then(|pid| u32::try_from(pid).ok());
    let mut stream = BufReader::new(stream);
    let mut label = String::new();
    // One that died before it said its name was never anybody.
    if !matches!(stream.read_line(&mut label).await, Ok(length) if length > 0) {
        return;
    }
    let label = label.trim_end().to_owned();
    let note = |say: &dyn Fn(&mut Seen)| {
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        say(table.entry(label.clone()).or_default());
        drop(table);
        change.send_modify(|count| *count += 1);
    };
    note(&|_| {});
    // The id may be another's by now, but not once the worker has answered that it still lives.
    let main = pid.and_then(|pid| Pinned::new(pid).ok()).map(Arc::new);
    let _ = stream.write_all(b"P").await;
    let mut bytes = [0; 16];
    while let Ok(length @ 1..) = stream.read(&mut bytes).await {
        for byte in &bytes[..length] {
            note(&|seen| match byte {
                b'P' => seen.main.clone_from(&main),
                b'T' => seen.asked = true,
                b'N' => seen.unchanged = true,
                _ => seen.ready = true,
            });
        }
    }
    let now = Instant::now();
    note(&|seen| seen.gone = Some(now));
}
