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

use crate::worker;

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
    let mut streams = [
        Log::open(dir.join(STDOUT_FILE), false, tail_bytes).await?,
        Log::open(dir.join(STDERR_FILE), true, tail_bytes).await?,
    ];
    loop {
        // Asked before reading: what the dead wrote is all there.
        let over = worker::is_history(dir) || dir.join(tether_shim_protocol::DEATH_FILE).exists();
        for log in &mut streams {
            if !log.forward(to).await? {
                return Ok(());
            }
        }
        if !follow || over || to.is_closed() {
            return Ok(());
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// One stream's log, followed over its rotation.
struct Log {
    path: PathBuf,
    stderr: bool,
    file: Option<File>,
    inode: u64,
}

impl Log {
    async fn open(path: PathBuf, stderr: bool, tail_bytes: u64) -> std::io::Result<Self> {
        let mut log = Self {
            path,
            stderr,
            file: None,
            inode: 0,
        };
        log.reopen().await;
        if let Some(file) = &mut log.file
            && tail_bytes > 0
        {
            let len = file.metadata().await?.len();
            file.seek(SeekFrom::Start(len.saturating_sub(tail_bytes)))
                .await?;
        }
        Ok(log)
    }

    async fn reopen(&mut self) {
        if let Ok(file) = File::open(&self.path).await
            && let Ok(metadata) = file.metadata().await
            && (self.file.is_none() || metadata.ino() != self.inode)
        {
            self.inode = metadata.ino();
            self.file = Some(file);
        }
    }

    /// Sends what is there; false when nobody listens any more.
    async fn forward(&mut self, to: &Pieces) -> std::io::Result<bool> {
        loop {
            let Some(file) = &mut self.file else {
                self.reopen().await;
                if self.file.is_none() {
                    return Ok(true);
                }
                continue;
            };
            let mut data = vec![0; PIECE];
            let read = file.read(&mut data).await?;
            if read == 0 {
                let inode = self.inode;
                self.reopen().await;
                if self.inode == inode {
                    return Ok(true);
                }
                continue;
            }
            data.truncate(read);
            if to
                .send(Ok(ReadOutputResponse {
                    stderr: self.stderr,
                    data,
                }))
                .await
                .is_err()
            {
                return Ok(false);
            }
        }
    }
}
