//! What can be set of where checkpoints are kept.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// How many checkpoints of a job are kept.
const KEEP: u32 = 3;

/// What can be set under `[agent.checkpoints]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where checkpoints are kept: `file:///var/lib/tether/checkpoints` or `s3://bucket/prefix`. A directory of this
    /// node's state when it is not set, which a worker on another node does not see. A prefix is one cluster's alone.
    pub store: Option<String>,
    /// How many checkpoints of a job are kept, the last ones.
    pub keep: u32,
    /// Where S3 is, as in `http://minio:9000`; that of Amazon when it is not set. Credentials come from the agent's
    /// environment, as `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or from the machine's role.
    pub s3_endpoint: Option<String>,
    /// Its region; that of `AWS_REGION` when it is not set.
    pub s3_region: Option<String>,
    /// How often bytes of jobs that are forgotten are looked for and removed, in seconds.
    pub sweep_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store: None,
            keep: KEEP,
            s3_endpoint: None,
            s3_region: None,
            sweep_seconds: 3600,
        }
    }
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// There is no such kind of store.
    #[error("`{0}` is no place for checkpoints: use `file:///directory` or `s3://bucket/prefix`")]
    Store(String),
    /// The last one has to stay.
    #[error("at least 1 checkpoint is kept of each job, as the next attempt goes on from it")]
    Keep,
    /// Looking all the time is no use to anybody.
    #[error("at least a second lies between two looks")]
    Sweep,
}

/// A place, as its address says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place<'a> {
    Directory(&'a Path),
    Bucket { bucket: &'a str, prefix: &'a str },
}

impl Config {
    /// Whether it can be used; touches nothing.
    ///
    /// # Errors
    /// Names what cannot.
    pub fn check(&self) -> Result<(), Wrong> {
        if let Some(store) = &self.store {
            Place::of(store)?;
        }
        match (self.keep, self.sweep_seconds) {
            (0, _) => Err(Wrong::Keep),
            (_, 0) => Err(Wrong::Sweep),
            _ => Ok(()),
        }
    }
}

impl<'a> Place<'a> {
    pub(crate) fn of(store: &'a str) -> Result<Self, Wrong> {
        if let Some(path) = store.strip_prefix("file://").map(Path::new)
            && path.is_absolute()
        {
            return Ok(Self::Directory(path));
        }
        let bucket = store.strip_prefix("s3://").map(|rest| {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let prefix = prefix.trim_matches('/');
            (bucket, prefix)
        });
        match bucket {
            Some((bucket, prefix)) if !bucket.is_empty() => Ok(Self::Bucket { bucket, prefix }),
            _ => Err(Wrong::Store(store.to_owned())),
        }
    }
}
