//! `redb:/path/file.redb`, a store in one file of this machine.
//!
//! Everything is also held in memory: reads and watches never touch the disk, and a commit is
//! acknowledged once it is synced to it (S3). The history for watchers is in memory only, so after a
//! restart every watcher lists again.

use std::{
    fs::{self, File, OpenOptions},
    io::ErrorKind,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _,
    StorageBackend as _, StorageError, TableDefinition, backends::FileBackend,
};

use crate::{
    Batch, Changes, Entry, Error, HISTORY, Listing, Revision, Scheme, Store, Txn, ledger::Ledger,
    live::Live,
};

const ENTRIES: TableDefinition<'_, &str, (Revision, &[u8])> = TableDefinition::new("entries-v1");
const META: TableDefinition<'_, &str, Revision> = TableDefinition::new("meta-v1");
const REVISION: &str = "revision";

/// What redb may keep of the file in memory, in bytes; it would take up to a GiB. Nobody reads what it keeps: it only
/// saves a commit from reading the pages again that it changes.
const CACHE: usize = 16 << 20;

/// What is wrong with a file of zero length.
const EMPTY: &str = "the file is empty";

/// A store in a file that one process at a time may use.
#[derive(Debug)]
pub struct FileStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    database: Database,
    live: Live,
    /// Held from planning a commit until it is on disk and in memory; readers do not wait for it.
    writing: Mutex<()>,
}

impl FileStore {
    /// Opens the file, or makes it, readable for its owner alone; makes its directory if need be.
    ///
    /// # Errors
    /// Says whether the file is in use, damaged or not allowed, and what to do.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let refuse = |error| refusal(path, error);
        let database = open_database(path).map_err(refuse)?;
        let (entries, revision) = load(&database).map_err(|error| {
            refuse(match error {
                redb::Error::Io(error) => DatabaseError::Storage(StorageError::Io(error)),
                other => DatabaseError::Storage(StorageError::Corrupted(other.to_string())),
            })
        })?;
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            database,
            live: Live::new(Ledger::new(entries, revision, HISTORY)),
            writing: Mutex::new(()),
        })))
    }
}

fn open_database(path: &Path) -> Result<Database, DatabaseError> {
    // A link that leads nowhere is there too: what it stands for may be on a disk that is not mounted yet.
    if fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound) {
        make(path)?;
    }
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    if file.metadata()?.len() == 0 {
        // redb would make a new store of it, and forget which numbers were given out before.
        return Err(DatabaseError::Storage(StorageError::Corrupted(
            EMPTY.to_owned(),
        )));
    }
    builder().create_with_backend(FileBackend::new(file)?)
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder
        .set_check_integrity_on_open(true)
        .set_cache_size(CACHE);
    builder
}

/// Makes a new file whole before it has its name, so that one that is empty or half made is never the work of
/// a process that was killed.
fn make(path: &Path) -> Result<(), DatabaseError> {
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    fs::create_dir_all(directory)?;
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&unfinished)?;
    // Its lock keeps another process from making the same file until this one has its name.
    let backend = FileBackend::new(file)?;
    if path.exists() {
        fs::remove_file(&unfinished)?;
        return Ok(());
    }
    backend.set_len(0)?;
    let database = builder().create_with_backend(backend)?;
    make_tables(&database).map_err(|error| StorageError::Corrupted(error.to_string()))?;
    fs::rename(&unfinished, path)?;
    File::open(directory)?.sync_all()?;
    Ok(())
}

fn make_tables(database: &Database) -> Result<(), redb::Error> {
    let write = database.begin_write()?;
    write.open_table(ENTRIES)?;
    write.open_table(META)?;
    write.commit()?;
    Ok(())
}

/// Reads the whole file.
fn load(database: &Database) -> Result<(Vec<Entry>, Revision), redb::Error> {
    let read = database.begin_read()?;
    let revision = read.open_table(META)?.get(REVISION)?;
    let revision = revision.map_or(0, |value| value.value());
    let mut entries = Vec::new();
    for row in read.open_table(ENTRIES)?.iter()? {
        let (key, value) = row?;
        let (mod_revision, value) = value.value();
        let entry = Entry {
            key: key.value().to_owned(),
            value: Bytes::copy_from_slice(value),
            mod_revision,
        };
        entries.push(entry);
    }
    Ok((entries, revision))
}

fn refusal(path: &Path, error: DatabaseError) -> Error {
    let hint = match &error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            "another process uses it; stop that one, or give this one a file of its own"
        }
        DatabaseError::UpgradeRequired(_) => {
            "an older version of Tether wrote it; remove it to start afresh"
        }
        DatabaseError::Storage(StorageError::Io(error)) => match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                "this user may not write it; change its owner, or give another path"
            }
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                "it is not a redb file, or is damaged; move it away"
            }
            ErrorKind::IsADirectory => "it is a directory; give the path of a file",
            ErrorKind::StorageFull => "the disk is full",
            _ => "the file system refuses it",
        },
        DatabaseError::Storage(StorageError::Corrupted(_)) | DatabaseError::RepairAborted => {
            "it is damaged; restore it, or move it away to start afresh"
        }
        _ => "the file cannot be used",
    };
    Error::Open {
        what: path.display().to_string(),
        hint,
        source: error.into(),
    }
}

impl Inner {
    fn commit(&self, txn: Txn) -> Result<Revision, Error> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let planned = {
            let ledger = self.live.ledger();
            ledger.plan(txn)?.ok_or_else(|| ledger.revision())
        };
        match planned {
            Err(revision) => Ok(revision),
            Ok(batch) => {
                self.write(&batch)
                    .map_err(|error| Error::unavailable(self.path.display().to_string(), error))?;
                Ok(self.live.apply(self.live.ledger(), batch))
            }
        }
    }

    /// Returns once the batch is synced: redb's commits are durable unless told otherwise.
    fn write(&self, batch: &Batch) -> Result<(), redb::Error> {
        let write = self.database.begin_write()?;
        {
            let mut entries = write.open_table(ENTRIES)?;
            for change in &batch.changes {
                match &change.value {
                    Some(value) => {
                        entries.insert(change.key.as_str(), (batch.revision, value.as_ref()))?
                    }
                    None => entries.remove(change.key.as_str())?,
                };
            }
            write.open_table(META)?.insert(REVISION, batch.revision)?;
        }
        write.commit()?;
        Ok(())
    }
}

#[async_trait]
impl Store for FileStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>, Error> {
        Ok(self.0.live.ledger().get(key))
    }

    async fn list(&self, prefix: &str) -> Result<Listing, Error> {
        Ok(self.0.live.ledger().list(prefix))
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, Error> {
        let inner = Arc::clone(&self.0);
        // Goes on to its end even when the caller gives up waiting, so disk and memory stay one.
        tokio::task::spawn_blocking(move || inner.commit(txn))
            .await
            .map_err(|error| Error::unavailable(self.0.path.display().to_string(), error))?
    }

    fn watch(&self, prefix: &str, after: Revision) -> Changes {
        self.0.live.watch(prefix, after)
    }
}

#[derive(Debug)]
pub(crate) struct Redb;

impl Scheme for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn usage(&self) -> &'static str {
        "redb:/path/file.redb"
    }

    fn check(&self, rest: &str) -> Result<(), Error> {
        if rest.starts_with('/') {
            return Ok(());
        }
        Err(Error::Url {
            given: format!("redb:{rest}"),
            why: "the path of the file must start with `/`".to_owned(),
        })
    }

    fn open<'a>(&self, rest: &'a str) -> BoxFuture<'a, Result<Arc<dyn Store>, Error>> {
        Box::pin(async move {
            Self.check(rest)?;
            let path = PathBuf::from(rest);
            let opened = tokio::task::spawn_blocking(move || FileStore::open(&path))
                .await
                .map_err(|error| Error::unavailable(rest, error))?;
            opened.map(|store| Arc::new(store) as Arc<dyn Store>)
        })
    }
}
