//! `tether logs`: a worker's output, on the stream it was written to.

use std::io::{self, Write as _};

use tether_client::{Client, Problem};
use tether_proto::{
    common::WorkerRef,
    worker::{LogStream, ReadLogsRequest},
};

use crate::{cli, output::Output};

pub(crate) async fn logs(client: &Client, args: &cli::Logs, out: &Output) -> anyhow::Result<()> {
    let request = ReadLogsRequest {
        worker: Some(WorkerRef::from(&args.worker)),
        follow: args.follow,
        tail_bytes: args.tail_bytes,
    };
    let mut pieces = client
        .workers()
        .read_logs(request)
        .await
        .map_err(Problem::from)?
        .into_inner();
    while let Some(piece) = pieces.message().await.map_err(Problem::from)? {
        let stream = piece.stream();
        if out.is_json() {
            let stream = if stream == LogStream::Stderr {
                "stderr"
            } else {
                "stdout"
            };
            let text = String::from_utf8_lossy(&piece.data);
            out.line(&serde_json::json!({ "stream": stream, "text": text }).to_string())?;
            continue;
        }
        // Bytes as written: a worker's progress bar is not to wait for its end of line.
        match stream {
            LogStream::Stderr => io::stderr().write_all(&piece.data)?,
            LogStream::Unspecified | LogStream::Stdout => {
                io::stdout().write_all(&piece.data)?;
                io::stdout().flush()?;
            }
        }
    }
    Ok(())
}
