//! What a worker wrote, read from the logs its shim keeps.

use std::{
    io::SeekFrom,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tether_proto::{
    Failure,
    common::WorkerRef,
    node::{ReadOutputRequest, ReadOutputResponse, agent_service_server::AgentService},
};
use tether_shim_protocol::{STDERR_FILE, STDOUT_FILE};
use tether_types::Reason;
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{journal, worker};

/// How often a followed log is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// One message carries at most this much.
const PIECE: usize = 64 << 10;

/// Serves the logs below the agent's runtime directory.
#[derive(Debug)]
pub(crate) struct Output {
    workers: Arc<PathBuf>,
}

impl Output {
    pub(crate) fn new(workers: Arc<PathBuf>) -> Self {
        Self { workers }
    }
}

#[tonic::async_trait]
impl AgentService for Output {
    type ReadOutputStream = ReceiverStream<Result<ReadOutputResponse, Status>>;

    async fn read_output(
        &self,
        request: Request<ReadOutputRequest>,
    ) -> Result<Response<Self::ReadOutputStream>, Status> {
        let request = request.into_inner();
        let id = WorkerRef::required(request.worker.as_ref())?;
        let dir = worker::directory(&self.workers, &id);
        if !dir.is_dir() {
            let text = format!(
                "nothing is kept of worker `{id}` on this node; `tether ps` lists those there are"
            );
            return Err(Failure::new(Reason::UnknownWorker, text).into());
        }
        let (send, receive) = mpsc::channel(4);
        tokio::spawn(async move {
            if let Err(error) = read(&dir, request.follow, request.tail_bytes, &send).await {
                let _ = send
                    .send(Err(Status::internal(format!(
                        "cannot read the logs of `{id}`: {error}"
                    ))))
                    .await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

type Pieces = mpsc::Sender<Result<ReadOutputResponse, Status>>;

async fn read(dir: &Path, follow: bool, tail_bytes: u64, to: &Pieces) -> std::io::Result<()> {
    let mut streams = [(STDOUT_FILE, false), (STDERR_FILE, true)]
        .map(|(name, stderr)| (Log::new(dir.join(name)), stderr));
    for (log, _) in &mut streams {
        log.skip_to_tail(tail_bytes).await?;
    }
    loop {
        // Asked before reading: what the dead wrote is all there.
        let over = journal::is_history(dir) || dir.join(tether_shim_protocol::DEATH_FILE).exists();
        for (log, stderr) in &mut streams {
            let stderr = *stderr;
            while let Some(data) = log.next().await? {
                if to
                    .send(Ok(ReadOutputResponse { stderr, data }))
                    .await
                    .is_err()
                {
                    return Ok(());
                }
            }
        }
        if !follow || over || to.is_closed() {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// One stream's log, followed over its rotation.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: Option<File>,
    inode: u64,
}

impl Log {
    /// The log at this path, to be read from its beginning, also where it is not there yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            inode: 0,
        }
    }

    /// Goes on with the last bytes only; 0 keeps all.
    async fn skip_to_tail(&mut self, bytes: u64) -> std::io::Result<()> {
        self.open().await;
        if let Some(file) = &mut self.file
            && bytes > 0
        {
            let len = file.metadata().await?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(bytes)))
                .await?;
        }
        Ok(())
    }

    /// Pins what is at the path, where nothing is pinned yet: its rotation loses nothing from here on.
    pub(crate) async fn open(&mut self) {
        if self.file.is_none()
            && let Some((file, inode)) = self.at_path().await
        {
            (self.file, self.inode) = (Some(file), inode);
        }
    }

    async fn at_path(&self) -> Option<(File, u64)> {
        let file = File::open(&self.path).await.ok()?;
        let inode = file.metadata().await.ok()?.ino();
        Some((file, inode))
    }

    /// The next piece of what was written; none where all that is there was read.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) async fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        self.open().await;
        let Some(file) = &mut self.file else {
            return Ok(None);
        };
        if let Some(data) = piece(file).await? {
            return Ok(Some(data));
        }
        let Some((newer, inode)) = self.at_path().await else {
            return Ok(None);
        };
        if inode == self.inode {
            return Ok(None);
        }
        // What was written between the last look and the rotation comes before what came after it.
        let rest = match &mut self.file {
            Some(file) => piece(file).await?,
            None => None,
        };
        if rest.is_some() {
            return Ok(rest);
        }
        (self.file, self.inode) = (Some(newer), inode);
        match &mut self.file {
            Some(file) => piece(file).await,
            None => Ok(None),
        }
    }
}

async fn piece(file: &mut File) -> std::io::Result<Option<Vec<u8>>> {
    let mut data = vec![0; PIECE];
    let read = file.read(&mut data).await?;
    data.truncate(read);
    Ok((read > 0).then_some(data))
}
