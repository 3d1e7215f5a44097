//! The objects themselves.

mod abandoned;
mod bucket;
mod upload;

use std::{collections::BTreeMap, fs, io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::{
    ObjectStore, ObjectStoreExt as _, aws::AmazonS3Builder, local::LocalFileSystem, path::Path,
};
use tokio::sync::Semaphore;

use crate::{
    config::{Config, Place, Wrong},
    error::{Address, Error},
    name::{JobDir, Name, Sha256},
};
use bucket::Bucket;

pub(crate) use bucket::explain;
pub use upload::Upload;

/// Uploads at once.
const UPLOADS_AT_ONCE: usize = 8;

/// Checkpoints of one cluster.
#[derive(Debug, Clone)]
pub struct Objects {
    /// What is asked, which says soon what is wrong, and what carries bytes, which has patience; one for a directory.
    asks: Arc<dyn ObjectStore>,
    carries: Arc<dyn ObjectStore>,
    address: Address,
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
        Self::open_as(AmazonS3Builder::from_env(), config, store)
    }

    /// The same, as one whose environment says that of a bucket.
    fn open_as(environment: AmazonS3Builder, config: &Config, store: &str) -> Result<Self, Error> {
        let unusable = |error| Error::Unusable(store.to_owned(), error);
        let wrong = |wrong: Wrong| unusable(io::Error::other(wrong));
        let (asks, carries, directory) = match Place::of(store).map_err(wrong)? {
            Place::Directory(path) => {
                fs::create_dir_all(path).map_err(unusable)?;
                let files = LocalFileSystem::new_with_prefix(path)?.with_fsync(true);
                let files: Arc<dyn ObjectStore> = Arc::new(files.with_automatic_cleanup(true));
                (Arc::clone(&files), files, Some(path.to_owned()))
            }
            Place::Bucket { bucket, prefix } => {
                let Bucket { asks, carries } = Bucket::open(environment, config, bucket, prefix)?;
                (asks, carries, None)
            }
        };
        Ok(Self {
            asks,
            carries,
            address: Address {
                store: store.trim_end_matches('/').into(),
                is_bucket: directory.is_none(),
            },
            directory,
            keep: usize::try_from(config.keep).unwrap_or(usize::MAX).max(1),
            uploads: Arc::new(Semaphore::new(UPLOADS_AT_ONCE)),
        })
    }

    /// The address of a checkpoint.
    pub fn uri(&self, name: &Name) -> String {
        format!("{}/{}", self.address.store, name.path())
    }

    /// Whether it is there already, as so many bytes (C2).
    ///
    /// # Errors
    /// As the store says.
    pub async fn has(&self, name: &Name, bytes: u64) -> Result<bool, Error> {
        Ok(self.size(&name.path()).await? == Some(bytes))
    }

    /// How large an object is. Looked up in a list, as S3 gives no reasons when it is asked for one object's head.
    async fn size(&self, path: &Path) -> Result<Option<u64>, Error> {
        let mut parts: Vec<_> = path.parts().collect();
        parts.pop();
        let mut found = self.asks.list(Some(&Path::from_iter(parts)));
        while let Some(object) = found.next().await {
            let object = object.map_err(|error| self.address.tell(error))?;
            if object.location == *path {
                return Ok(Some(object.size));
            }
        }
        Ok(None)
    }

    /// Begins to save, once not too many others do.
    pub async fn save(&self, name: &Name, sha256: Sha256, bytes: u64) -> Upload {
        let turn = Arc::clone(&self.uploads).acquire_owned().await;
        let store = Arc::clone(&self.carries);
        Upload::begin(store, self.address.clone(), name, sha256, bytes, turn.ok())
    }

    /// The bytes of a checkpoint.
    ///
    /// # Errors
    /// When it is kept elsewhere, or gone.
    pub async fn load(
        &self,
        uri: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let path = uri.strip_prefix(&*self.address.store);
        let path = path.and_then(|rest| rest.strip_prefix('/'));
        let path = path.and_then(|rest| Path::parse(rest).ok());
        let elsewhere = || Error::Elsewhere {
            uri: uri.to_owned(),
            store: self.address.store.to_string(),
        };
        let path = path.ok_or_else(elsewhere)?;
        let missing = || Error::Missing(uri.to_owned());
        // Whoever carries bytes has more patience than the one who waits for the first of them.
        self.size(&path).await?.ok_or_else(missing)?;
        let found = self.carries.get(&path).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => missing(),
            other => self.address.tell(other),
        })?;
        let address = self.address.clone();
        let bytes = found.into_stream();
        Ok(bytes.map_err(move |error| address.tell(error)))
    }

    /// Removes one that nobody recorded.
    ///
    /// # Errors
    /// As the store says.
    pub async fn remove(&self, name: &Name) -> Result<(), Error> {
        let removed = self.asks.delete(&name.path()).await;
        removed.map_err(|error| self.address.tell(error))
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
            let swept = tokio::task::spawn_blocking(move || abandoned::drop_abandoned(&directory));
            let swept = swept.await.map_err(io::Error::other).flatten();
            swept.map_err(|error| Error::Unusable(self.address.store.to_string(), error))?;
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
        let found = self.asks.list(below);
        let names = found.try_filter_map(async |object| Ok(Name::of(&object.location)));
        let names = names.boxed().try_collect().await;
        names.map_err(|error| self.address.tell(error))
    }
}

#[cfg(test)]
mod tests;
