//! What a worker wrote, read from the logs its shim keeps.

use std::{
    collections::VecDeque,
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

/// One stream's log: what is kept of it, oldest part first, and then what is written, over any number of
/// rotations.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    /// What is not read to its end yet, oldest first. The last one may still be written.
    parts: VecDeque<Part>,
}

/// A part that is open, and so stays readable when it is rotated away.
#[derive(Debug)]
struct Part {
    file: File,
    inode: u64,
}

impl Part {
    async fn open(path: &Path) -> Option<Self> {
        let file = File::open(path).await.ok()?;
        let inode = file.metadata().await.ok()?.ino();
        Some(Self { file, inode })
    }
}

impl Log {
    /// The log at this path, to be read from its beginning, also where it is not there yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            parts: VecDeque::new(),
        }
    }

    /// Goes on with the last bytes only; 0 keeps all.
    async fn skip_to_tail(&mut self, bytes: u64) -> std::io::Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.find_newer().await;
        let mut left = bytes;
        for (index, part) in self.parts.iter_mut().enumerate().rev() {
            let len = part.file.metadata().await?.len();
            if len >= left {
                part.file.seek(SeekFrom::Start(len - left)).await?;
                self.parts.drain(..index);
                break;
            }
            left -= len;
        }
        Ok(())
    }

    /// Opens every part that is newer than those in hand.
    ///
    /// Parts move from number to number while they are looked for: from the newest to the oldest none is
    /// missed, and what is met twice is known by its inode, which is not given away while it is open.
    async fn find_newer(&mut self) {
        let known = self.parts.back().map(|part| part.inode);
        let mut found: Vec<Part> = Vec::new();
        let mut missing = 0;
        for number in 0.. {
            match Part::open(&self.part(number)).await {
                Some(part) if Some(part.inode) == known => break,
                Some(part) => {
                    missing = 0;
                    if found.iter().all(|other| other.inode != part.inode) {
                        found.push(part);
                    }
                }
                // In the middle of a rotation one number is free.
                None if missing == 0 => missing = 1,
                None => break,
            }
        }
        self.parts.extend(found.into_iter().rev());
    }

    fn part(&self, number: u32) -> PathBuf {
        let mut part = self.path.clone().into_os_string();
        if number > 0 {
            part.push(format!(".{number}"));
        }
        part.into()
    }

    /// The next piece of what was written; none where all that is there was read.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) async fn next(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        if self.parts.is_empty() {
            self.find_newer().await;
        }
        while let Some(part) = self.parts.front_mut() {
            if let Some(data) = piece(&mut part.file).await? {
                return Ok(Some(data));
            }
            if self.parts.len() == 1 {
                self.find_newer().await;
                if self.parts.len() == 1 {
                    return Ok(None);
                }
                // What was written between the last look and the rotation is still to come.
                continue;
            }
            self.parts.pop_front();
        }
        Ok(None)
    }
}

async fn piece(file: &mut File) -> std::io::Result<Option<Vec<u8>>> {
    let mut data = vec![0; PIECE];
    let read = file.read(&mut data).await?;
    data.truncate(read);
    Ok((read > 0).then_some(data))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    async fn all(log: &mut Log) -> String {
        let mut bytes = Vec::new();
        while let Some(data) = log.next().await.unwrap() {
            bytes.extend(data);
        }
        String::from_utf8(bytes).unwrap()
    }

    /// Rotates as a shim does, and goes on with another text.
    fn rotate(dir: &Path, files: u32, next: &str) {
        let part = |number| dir.join(format!("log.{number}"));
        for number in (1..files).rev() {
            let _ = fs::rename(part(number), part(number + 1));
        }
        let _ = fs::rename(dir.join("log"), part(1));
        fs::write(dir.join("log"), next).unwrap();
    }

    #[tokio::test]
    async fn every_part_is_read_and_the_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["lost ", "one ", "two ", "three ", "four"] {
            rotate(dir.path(), 3, text);
        }

        let mut log = Log::new(dir.path().join("log"));

        assert_eq!(all(&mut log).await, "one two three four");
        assert_eq!(all(&mut log).await, "");
    }

    #[tokio::test]
    async fn a_number_that_is_free_in_the_middle_of_a_rotation_hides_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["one ", "two ", "three"] {
            rotate(dir.path(), 3, text);
        }
        let whole = async || all(&mut Log::new(dir.path().join("log"))).await;

        fs::rename(dir.path().join("log.2"), dir.path().join("log.3")).unwrap();
        fs::rename(dir.path().join("log.1"), dir.path().join("log.2")).unwrap();
        assert_eq!(whole().await, "one two three");
        fs::rename(dir.path().join("log"), dir.path().join("log.1")).unwrap();
        assert_eq!(whole().await, "one two three");
    }

    #[tokio::test]
    async fn the_last_bytes_may_reach_over_several_parts() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["abc", "def", "ghi"] {
            rotate(dir.path(), 3, text);
        }
        let tail = async |bytes| {
            let mut log = Log::new(dir.path().join("log"));
            log.skip_to_tail(bytes).await.unwrap();
            all(&mut log).await
        };

        assert_eq!(tail(2).await, "hi");
        assert_eq!(tail(3).await, "ghi");
        assert_eq!(tail(7).await, "cdefghi");
        assert_eq!(tail(100).await, "abcdefghi");
        assert_eq!(tail(0).await, "abcdefghi");
    }

    #[tokio::test]
    async fn a_log_that_is_rotated_more_than_once_between_two_looks_loses_nothing() {
        use std::io::Write as _;

        let dir = tempfile::tempdir().unwrap();
        rotate(dir.path(), 2, "one ");
        let mut log = Log::new(dir.path().join("log"));
        assert_eq!(all(&mut log).await, "one ");

        let mut current = fs::File::options()
            .append(true)
            .open(dir.path().join("log"))
            .unwrap();
        current.write_all(b"and ").unwrap();
        for text in ["two ", "three ", "four "] {
            rotate(dir.path(), 3, text);
        }

        assert_eq!(all(&mut log).await, "and two three four ");
    }
}
