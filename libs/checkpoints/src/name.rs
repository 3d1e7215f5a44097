//! Where a checkpoint is, which says whose it is.

use std::fmt::Write as _;

use object_store::path::Path;
use ring::digest::{SHA256, digest};
use tether_types::PoolName;

/// A SHA-256.
pub type Sha256 = [u8; 32];

/// How many bytes of a hash stand in a name.
const SHORT: usize = 16;

/// A job, as names have it: keys may hold what names of files may not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobDir {
    pool: String,
    job: String,
}

impl JobDir {
    /// That of a job.
    pub fn new(pool: &PoolName, key: &str) -> Self {
        let hash = digest(&SHA256, key.as_bytes());
        Self {
            pool: pool.to_string(),
            job: hex(&hash.as_ref()[..SHORT]),
        }
    }

    pub(crate) fn path(&self) -> Path {
        Path::from_iter([self.pool.as_str(), &self.job])
    }

    /// That of an object, where it is a checkpoint.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let mut parts = path.parts();
        let (pool, job, _) = (parts.next()?, parts.next()?, parts.next()?);
        let (pool, job) = (pool.as_ref().to_owned(), job.as_ref().to_owned());
        parts.next().is_none().then_some(Self { pool, job })
    }
}

/// One checkpoint. Later ones are greater: by their attempt, then by their number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub(crate) dir: JobDir,
    pub(crate) fence: u64,
    seq: u64,
    mark: String,
}

impl Name {
    /// That of a checkpoint with these bytes, saved by this attempt at the job.
    pub fn new(dir: JobDir, fence: u64, seq: u64, sha256: &Sha256) -> Self {
        let mark = hex(&sha256[..SHORT]);
        Self {
            dir,
            fence,
            seq,
            mark,
        }
    }

    pub(crate) fn path(&self) -> Path {
        // All digits there can be, so that it sorts as it counts.
        let file = format!("{:020}-{:020}-{}", self.fence, self.seq, self.mark);
        self.dir.path().join(file)
    }

    /// That of an object, where it is a checkpoint.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let dir = JobDir::of(path)?;
        let mut parts = path.filename()?.splitn(3, '-');
        let mut number = || parts.next()?.parse().ok();
        let (fence, seq) = (number()?, number()?);
        let mark = parts.next()?.to_owned();
        let name = Self {
            dir,
            fence,
            seq,
            mark,
        };
        // Somebody else's files may look nearly like it.
        let is_ours = PoolName::new(&name.dir.pool).is_ok()
            && [&*name.dir.job, &*name.mark].into_iter().all(is_hash)
            && name.path() == *path;
        is_ours.then_some(name)
    }
}

fn is_hash(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == 2 * SHORT && text.bytes().all(digit)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
