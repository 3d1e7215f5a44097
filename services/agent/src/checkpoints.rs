//! Checkpoints of this node's workers: their bytes go into the object store, and then the arbiter is told where
//! they are. It is the one who says whether they count: bytes of an attempt that was fenced off lie under a name of
//! its own, where nobody looks, until they are removed.

mod sweep;

use std::{path::PathBuf, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tether_checkpoints::{Config, Error, JobDir, Name, Objects, Sha256};
use tether_proto::{
    Failure,
    checkpoint::{
        LoadCheckpointRequest, LoadCheckpointResponse, SaveCheckpointBegin, SaveCheckpointRequest,
        SaveCheckpointResponse, checkpoint_service_server::CheckpointService,
        load_checkpoint_response as loaded, save_checkpoint_request::Part,
    },
    job::{Checkpoint, GetJobRequest, Job, PutCheckpointRequest},
    reason_of,
};
use tether_types::{PoolName, Reason};
use tokio::sync::OnceCell;
use tonic::{Request, Response, Status, Streaming};

use crate::upstream::{Client, Upstream};

pub(crate) use sweep::sweep;

/// One message carries at most this much: clients take 4 MiB unless told otherwise.
const PIECE: usize = 1 << 20;

/// The store, opened when it is first needed: most nodes never do.
#[derive(Debug)]
pub(crate) struct Shelf {
    config: Config,
    /// A directory of this node's own, where nothing else is set.
    own: Option<PathBuf>,
    node: String,
    opened: OnceCell<Objects>,
}

impl Shelf {
    pub(crate) fn new(config: &Config, own: Option<PathBuf>, node: String) -> Self {
        Self {
            config: config.clone(),
            own,
            node,
            opened: OnceCell::new(),
        }
    }

    /// Whether there can be anything in it.
    fn is_used(&self) -> bool {
        let made = || self.own.as_ref().is_some_and(|own| own.is_dir());
        self.config.store.is_some() || self.opened.initialized() || made()
    }

    async fn objects(&self) -> Result<Objects, Failure> {
        let opened = self.opened.get_or_try_init(|| async { self.open() });
        opened.await.cloned()
    }

    fn open(&self) -> Result<Objects, Failure> {
        let own = self.own.as_ref();
        let own = || own.map(|own| format!("file://{}", own.display()));
        let store = self.config.store.clone().or_else(own).ok_or_else(|| {
            let text = "this node has no place for checkpoints: set `agent.checkpoints.store`";
            self.not_here(text)
        })?;
        Objects::open(&self.config, &store).map_err(failure)
    }

    /// What is wrong with this node alone: asking it again is of no use, asking another one may be.
    fn not_here(&self, text: &str) -> Failure {
        tracing::warn!("A job of this node cannot go on here: {text}");
        Failure::new(Reason::StoreFailed, text).fact("node", &self.node)
    }

    async fn load(
        &self,
        uri: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Failure> {
        let found = self.objects().await?.load(uri).await;
        found.map_err(|error| match error {
            Error::Missing(_) | Error::Elsewhere { .. } => self.not_here(&error.to_string()),
            other => failure(other),
        })
    }
}

/// Why bytes are not saved or not loaded, as callers are told.
fn failure(error: Error) -> Failure {
    let mut text = format!("checkpoint: {error}");
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    let reason = match error {
        Error::Torn(_) => Reason::ConfigInvalid,
        Error::Elsewhere { .. }
        | Error::Missing(_)
        | Error::Unusable(..)
        | Error::Bucket { .. }
        | Error::Store(_) => Reason::StoreFailed,
    };
    Failure::new(reason, text)
}

fn refused(why: impl std::fmt::Display) -> Failure {
    Failure::new(
        Reason::ConfigInvalid,
        format!("a checkpoint is refused: {why}"),
    )
}

/// Serves [`CheckpointService`].
#[derive(Debug, Clone)]
pub(crate) struct Checkpoints {
    shelf: Arc<Shelf>,
    upstream: Arc<Upstream>,
}

impl Checkpoints {
    pub(crate) fn new(shelf: Arc<Shelf>, upstream: Arc<Upstream>) -> Self {
        Self { shelf, upstream }
    }

    /// Saves what a worker sends, and has it recorded.
    async fn take(self, mut parts: Streaming<SaveCheckpointRequest>) -> Result<Checkpoint, Status> {
        let Some(Part::Begin(begin)) = parts.message().await?.and_then(|first| first.part) else {
            return Err(refused("its first part is not `begin`").into());
        };
        let (name, sha256) = named(&begin)?;
        let objects = self.shelf.objects().await?;
        // Saved by an earlier call, which could not have it recorded: its bytes are not written once more.
        let mut upload = match objects.has(&name, begin.bytes).await.map_err(failure)? {
            true => None,
            false => Some(objects.save(&name, sha256, begin.bytes).await),
        };
        let taken: Result<(), Status> = async {
            while let Some(part) = parts.message().await? {
                let Some(Part::Chunk(bytes)) = part.part else {
                    return Err(refused("only `chunk` follows `begin`").into());
                };
                if let Some(upload) = &mut upload {
                    upload.write(bytes.into()).await.map_err(failure)?;
                }
            }
            Ok(())
        }
        .await;
        if let (Err(_), Some(upload)) = (&taken, &mut upload) {
            upload.abort().await;
        }
        taken?;
        if let Some(upload) = upload {
            upload.finish().await.map_err(failure)?;
        }
        let checkpoint = self.record(&objects, &name, begin).await?;
        tokio::spawn(async move {
            if let Err(error) = objects.prune(&name).await {
                tracing::warn!(%error, "Cannot remove checkpoints that are not to be kept any more");
            }
        });
        Ok(checkpoint)
    }

    async fn job(&self, pool: &str, key: &str) -> Result<Option<Job>, Status> {
        let ask = GetJobRequest {
            pool: pool.to_owned(),
            key: key.to_owned(),
        };
        let get = |mut arbiter: Client| {
            let ask = ask.clone();
            async move { arbiter.get_job(ask).await }
        };
        Ok(self.upstream.ask(get).await?.into_inner().job)
    }

    /// Whether no job goes on from there. What is refused may have been recorded all the same, when the answer to an
    /// earlier call was lost: then it is what the attempt that fenced this one off begins with.
    async fn is_of_no_use(&self, pool: &str, key: &str, uri: &str) -> bool {
        match self.job(pool, key).await {
            Ok(job) => {
                let counts = job.and_then(|job| job.checkpoint);
                counts.is_none_or(|checkpoint| checkpoint.uri != uri)
            }
            Err(status) => matches!(
                reason_of(&status),
                Some(Reason::UnknownJob | Reason::UnknownPool)
            ),
        }
    }

    /// Has the arbiter record what is saved, or removes it where that is refused for good.
    async fn record(
        &self,
        objects: &Objects,
        name: &Name,
        begin: SaveCheckpointBegin,
    ) -> Result<Checkpoint, Status> {
        let uri = objects.uri(name);
        let ask = PutCheckpointRequest {
            pool: begin.pool,
            key: begin.key,
            fence: begin.fence,
            seq: begin.seq,
            uri: uri.clone(),
            sha256: begin.sha256.clone(),
            bytes: begin.bytes,
        };
        let put = |mut arbiter: Client| {
            let ask = ask.clone();
            async move { arbiter.put_checkpoint(ask).await }
        };
        if let Err(status) = self.upstream.ask(put).await {
            let for_good = [
                Reason::LeaseFenced,
                Reason::UnknownJob,
                Reason::UnknownPool,
                Reason::ConfigInvalid,
            ];
            if reason_of(&status).is_some_and(|reason| for_good.contains(&reason))
                && self.is_of_no_use(&ask.pool, &ask.key, &uri).await
                && let Err(error) = objects.remove(name).await
            {
                tracing::warn!(%error, uri, "Cannot remove a checkpoint that does not count");
            }
            return Err(status);
        }
        Ok(Checkpoint {
            seq: begin.seq,
            uri,
            sha256: begin.sha256,
            bytes: begin.bytes,
            fence: begin.fence,
        })
    }
}

/// What a checkpoint is called, and its hash.
fn named(begin: &SaveCheckpointBegin) -> Result<(Name, Sha256), Failure> {
    let pool = PoolName::new(&begin.pool).map_err(refused)?;
    let sha256: Sha256 = begin.sha256.as_slice().try_into().map_err(|_| {
        let bytes = begin.sha256.len();
        refused(format!("`sha256` has {bytes} bytes, use 32"))
    })?;
    if begin.fence == 0 || begin.key.is_empty() {
        return Err(refused("it needs the `key` and the `fence` of a job"));
    }
    let dir = JobDir::new(&pool, &begin.key);
    Ok((Name::new(dir, begin.fence, begin.seq, &sha256), sha256))
}

type Pieces = Pin<Box<dyn Stream<Item = Result<LoadCheckpointResponse, Status>> + Send>>;

#[tonic::async_trait]
impl CheckpointService for Checkpoints {
    async fn save_checkpoint(
        &self,
        request: Request<Streaming<SaveCheckpointRequest>>,
    ) -> Result<Response<SaveCheckpointResponse>, Status> {
        // Goes on although whoever calls goes away, whose parts end then: left in the middle, an upload would stay in
        // its bucket.
        let checkpoint = tokio::spawn(self.clone().take(request.into_inner()));
        let checkpoint = checkpoint
            .await
            .map_err(|error| Status::internal(error.to_string()))??;
        Ok(Response::new(SaveCheckpointResponse {
            checkpoint: Some(checkpoint),
        }))
    }

    type LoadCheckpointStream = Pieces;

    async fn load_checkpoint(
        &self,
        request: Request<LoadCheckpointRequest>,
    ) -> Result<Response<Self::LoadCheckpointStream>, Status> {
        let LoadCheckpointRequest { pool, key } = request.into_inner();
        let job = self.job(&pool, &key).await?;
        let Some(checkpoint) = job.and_then(|job| job.checkpoint) else {
            return Ok(Response::new(Box::pin(futures::stream::empty())));
        };
        let bytes = self.shelf.load(&checkpoint.uri).await?;
        let first = futures::stream::iter([Ok(loaded::Part::Checkpoint(checkpoint))]);
        let pieces = bytes.flat_map(|bytes| {
            let pieces: Vec<_> = match bytes {
                Ok(bytes) => split(&bytes)
                    .map(|piece| Ok(loaded::Part::Chunk(piece.into())))
                    .collect(),
                Err(error) => vec![Err(failure(error).into())],
            };
            futures::stream::iter(pieces)
        });
        let answers = first
            .chain(pieces)
            .map(|part| part.map(|part| LoadCheckpointResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// In parts that fit into messages.
fn split(bytes: &Bytes) -> impl Iterator<Item = Bytes> {
    let starts = (0..bytes.len()).step_by(PIECE);
    starts.map(|at| bytes.slice(at..bytes.len().min(at + PIECE)))
}

#[cfg(test)]
mod tests;
