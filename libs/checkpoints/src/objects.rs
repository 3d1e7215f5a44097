//! The objects themselves.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::{
    ObjectStore, ObjectStoreExt as _, aws::AmazonS3Builder, buffered::BufWriter,
    local::LocalFileSystem, path::Path, prefix::PrefixStore,
};
use ring::digest::{Context, SHA256};
use tether_types::PoolName;
use tokio::{
    io::AsyncWriteExt as _,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{
    config::{Config, Place, Wrong},
    name::{JobDir, Name, Sha256},
};

/// What is smaller goes in one piece.
const PIECE: u64 = 8 << 20;

/// A bucket takes 10,000 of an upload.
const PIECES: u64 = 9_000;

/// Pieces of one upload that are on their way at once, beside the one that is filled; and uploads.
const PIECES_AT_ONCE: usize = 2;
const UPLOADS_AT_ONCE: usize = 8;

/// An upload that was left in a directory for so long is nobody's.
const ABANDONED: Duration = Duration::from_hours(24);

/// Why bytes cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was written is not what was announced.
    #[error("the bytes are not those that were announced: {0}")]
    Torn(&'static str),
    /// An address of somebody else's.
    #[error(
        "`{uri}` is not in `{store}`, where this node keeps checkpoints: set `agent.checkpoints.store` of all nodes to one place that they share"
    )]
    Elsewhere {
        /// The address.
        uri: String,
        /// What there is.
        store: String,
    },
    /// Nothing is there any more, or not here.
    #[error(
        "there is nothing at `{0}` on this node: what another node keeps in a directory of its own is not seen here; set `agent.checkpoints.store` of all nodes to one place that they share"
    )]
    Missing(String),
    /// The store cannot be used.
    #[error("cannot use `{0}` for checkpoints")]
    Unusable(String, #[source] io::Error),
    /// The store says so.
    #[error(transparent)]
    Store(#[from] object_store::Error),
}

/// Checkpoints of one cluster.
#[derive(Debug, Clone)]
pub struct Objects {
    objects: Arc<dyn ObjectStore>,
    /// Its address, without a slash at its end.
    store: Arc<str>,
    directory: Option<PathBuf>,
    keep: usize,
    uploads: Arc<Semaphore>,
}

impl Objects {
    /// Opens the store; a directory is made where it is missing.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn open(config: &Config, store: &str) -> Result<Self, Error> {
        let unusable = |error| Error::Unusable(store.to_owned(), error);
        let wrong = |wrong: Wrong| unusable(io::Error::other(wrong));
        let (objects, directory): (Arc<dyn ObjectStore>, _) =
            match Place::of(store).map_err(wrong)? {
                Place::Directory(path) => {
                    fs::create_dir_all(path).map_err(unusable)?;
                    let files = LocalFileSystem::new_with_prefix(path)?.with_fsync(true);
                    let files = files.with_automatic_cleanup(true);
                    (Arc::new(files), Some(path.to_owned()))
                }
                Place::Bucket { bucket, prefix } => {
                    // Somebody else in this process may have set one, which is as good.
                    let _ = rustls::crypto::ring::default_provider().install_default();
                    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
                    if let Some(endpoint) = &config.s3_endpoint {
                        builder = builder
                            .with_endpoint(endpoint)
                            .with_allow_http(endpoint.starts_with("http://"));
                    }
                    if let Some(region) = &config.s3_region {
                        builder = builder.with_region(region);
                    }
                    (Arc::new(PrefixStore::new(builder.build()?, prefix)), None)
                }
            };
        Ok(Self {
            objects,
            store: store.trim_end_matches('/').into(),
            directory,
            keep: usize::try_from(config.keep).unwrap_or(usize::MAX).max(1),
            uploads: Arc::new(Semaphore::new(UPLOADS_AT_ONCE)),
        })
    }

    /// The address of a checkpoint.
    pub fn uri(&self, name: &Name) -> String {
        format!("{}/{}", self.store, name.path())
    }

    /// Whether it is there already, as so many bytes (C2).
    ///
    /// # Errors
    /// As the store says.
    pub async fn has(&self, name: &Name, bytes: u64) -> Result<bool, Error> {
        match self.objects.head(&name.path()).await {
            Ok(found) => Ok(found.size == bytes),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Begins to save, once not too many others do.
    pub async fn save(&self, name: &Name, sha256: Sha256, bytes: u64) -> Upload {
        let turn = Arc::clone(&self.uploads).acquire_owned().await;
        let objects = Arc::clone(&self.objects);
        let writer = BufWriter::with_capacity(objects, name.path(), piece(bytes));
        Upload {
            writer: writer.with_max_concurrency(PIECES_AT_ONCE),
            _turn: turn.ok(),
            hash: Context::new(&SHA256),
            left: bytes,
            sha256,
        }
    }

    /// The bytes of a checkpoint.
    ///
    /// # Errors
    /// When it is kept elsewhere, or gone.
    pub async fn load(
        &self,
        uri: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let path = uri.strip_prefix(&*self.store);
        let path = path.and_then(|rest| rest.strip_prefix('/'));
        let path = path.and_then(|rest| Path::parse(rest).ok());
        let elsewhere = || Error::Elsewhere {
            uri: uri.to_owned(),
            store: self.store.to_string(),
        };
        let found = self.objects.get(&path.ok_or_else(elsewhere)?).await;
        let found = found.map_err(|error| match error {
            object_store::Error::NotFound { .. } => Error::Missing(uri.to_owned()),
            other => other.into(),
        })?;
        Ok(found.into_stream().map_err(Error::from))
    }

    /// Removes one that nobody recorded.
    ///
    /// # Errors
    /// As the store says.
    pub async fn remove(&self, name: &Name) -> Result<(), Error> {
        Ok(self.objects.delete(&name.path()).await?)
    }

    /// Removes what is not to be kept any more once this one is recorded (C3).
    ///
    /// # Errors
    /// As the store says.
    pub async fn prune(&self, recorded: &Name) -> Result<usize, Error> {
        let mut names = self.names(Some(&recorded.dir.path())).await?;
        names.retain(|name| name <= recorded);
        names.sort();
        let many = names.len().saturating_sub(self.keep);
        for name in &names[..many] {
            self.remove(name).await?;
        }
        Ok(many)
    }

    /// What there is, by job. To be asked before it is asked which jobs there are: what is found here of one that is
    /// not there then is nobody's.
    ///
    /// # Errors
    /// As the store says.
    pub async fn jobs(&self) -> Result<BTreeMap<JobDir, Vec<Name>>, Error> {
        if let Some(directory) = self.directory.clone() {
            let swept = tokio::task::spawn_blocking(move || drop_abandoned(&directory));
            let swept = swept.await.map_err(io::Error::other).flatten();
            swept.map_err(|error| Error::Unusable(self.store.to_string(), error))?;
        }
        let mut jobs = BTreeMap::<_, Vec<_>>::new();
        for name in self.names(None).await? {
            jobs.entry(name.dir.clone()).or_default().push(name);
        }
        Ok(jobs)
    }

    /// Removes what was found of a job that is forgotten, and nothing else: a job may begin under its key meanwhile.
    ///
    /// # Errors
    /// As the store says.
    pub async fn forget(&self, found: &[Name]) -> Result<(), Error> {
        for name in found {
            // Another node that shares the store may look through it too.
            match self.remove(name).await {
                Err(Error::Store(object_store::Error::NotFound { .. })) => {}
                removed => removed?,
            }
        }
        Ok(())
    }

    /// What else is there is left alone.
    async fn names(&self, below: Option<&Path>) -> Result<Vec<Name>, Error> {
        let found = self.objects.list(below);
        let names = found.try_filter_map(async |object| Ok(Name::of(&object.location)));
        Ok(names.boxed().try_collect().await?)
    }
}

/// How large a piece of an upload is.
fn piece(bytes: u64) -> usize {
    let piece = PIECE.max(bytes.div_ceil(PIECES));
    usize::try_from(piece).unwrap_or(usize::MAX)
}

/// Bytes on their way. Nothing can be seen of them before they are whole.
pub struct Upload {
    writer: BufWriter,
    _turn: Option<OwnedSemaphorePermit>,
    hash: Context,
    left: u64,
    sha256: Sha256,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut told = f.debug_struct("Upload");
        told.field("left", &self.left).finish_non_exhaustive()
    }
}

impl Upload {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// When there are more than were announced, or as the store says.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        let many = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let left = self.left.checked_sub(many);
        self.left = left.ok_or(Error::Torn("there are more"))?;
        self.hash.update(&bytes);
        Ok(self.writer.put(bytes).await?)
    }

    /// That was all: it is durable when this returns.
    ///
    /// # Errors
    /// When that is not what was announced, or as the store says.
    pub async fn finish(mut self) -> Result<(), Error> {
        if self.left > 0 {
            self.abort().await;
            return Err(Error::Torn("there are less"));
        }
        if self.hash.clone().finish().as_ref() != self.sha256 {
            self.abort().await;
            return Err(Error::Torn("their SHA-256 is another"));
        }
        let store = |source: io::Error| object_store::Error::Generic {
            store: "checkpoints",
            source: source.into(),
        };
        Ok(self.writer.shutdown().await.map_err(store)?)
    }

    /// Lets go of what was written.
    pub async fn abort(&mut self) {
        // What a bucket keeps of it is for its lifecycle rules, and of a directory for the next sweep.
        let _ = self.writer.abort().await;
    }
}

/// Removes uploads of checkpoints that nobody has finished since long. What else is there is somebody else's.
fn drop_abandoned(directory: &FilePath) -> io::Result<()> {
    for pool in children(directory)? {
        if PoolName::new(&pool).is_err() {
            continue;
        }
        for job in children(&directory.join(&pool))? {
            let files = directory.join(&pool).join(&job);
            for file in children(&files)? {
                let is_upload = file.split_once('#').is_some_and(|(of, _)| {
                    Name::of(&Path::from_iter([&*pool, &*job, of])).is_some()
                });
                if is_upload {
                    drop_if_abandoned(&files.join(file)).or_else(unless_gone)?;
                }
            }
        }
    }
    Ok(())
}

fn drop_if_abandoned(file: &FilePath) -> io::Result<()> {
    let age = fs::metadata(file)?.modified()?.elapsed();
    match age.is_ok_and(|age| age > ABANDONED) {
        true => fs::remove_file(file),
        false => Ok(()),
    }
}

/// The names in a directory; none in what is no directory, or none any more.
fn children(directory: &FilePath) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Vec::new()),
        Err(error) => return unless_gone(error).map(|()| Vec::new()),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string()));
    let names: io::Result<Vec<_>> = names.collect();
    Ok(names?.into_iter().flatten().collect())
}

/// Another node that shares the directory may have removed it.
fn unless_gone(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests;
