//! The streams to gateways.

use std::sync::Arc;

use tether_proto::fate::{WatchFatesRequest, WatchFatesResponse, fate_service_server::FateService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Board, Change, Reading};

/// Changes told in one message.
const MANY: usize = 256;

/// Messages on their way to a gateway.
const OUTBOX: usize = 4;

/// Serves a board.
#[derive(Debug)]
pub(crate) struct Fates(Arc<Board>);

impl Fates {
    pub(crate) fn new(board: Arc<Board>) -> Self {
        Self(board)
    }
}

#[tonic::async_trait]
impl FateService for Fates {
    type WatchFatesStream = ReceiverStream<Result<WatchFatesResponse, Status>>;

    async fn watch_fates(
        &self,
        request: Request<Streaming<WatchFatesRequest>>,
    ) -> Result<Response<Self::WatchFatesStream>, Status> {
        let board = Arc::clone(&self.0);
        let Some(reading) = board.read() else {
            return Err(Status::unavailable("the agent is stopping"));
        };
        let (outbox, responses) = mpsc::channel(OUTBOX);
        tokio::spawn(async move {
            let reader = reading.reader;
            // A gateway that is gone needs no answer.
            let _ = tell(&board, reading, request.into_inner(), outbox).await;
            board.leave(reader);
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

type Outbox = mpsc::Sender<Result<WatchFatesResponse, Status>>;

/// Tells one gateway until it or the board is gone; nothing then.
async fn tell(
    board: &Board,
    reading: Reading,
    mut requests: Streaming<WatchFatesRequest>,
    outbox: Outbox,
) -> Option<()> {
    let Reading {
        reader,
        mut number,
        workers,
        mut changes,
    } = reading;
    let node = || board.node.to_string();
    let all = WatchFatesResponse {
        node: node(),
        number,
        snapshot: true,
        workers,
        ..WatchFatesResponse::default()
    };
    outbox.send(Ok(all)).await.ok()?;
    let mut news = Vec::new();
    loop {
        let mut response = WatchFatesResponse {
            node: node(),
            ..WatchFatesResponse::default()
        };
        tokio::select! {
            // What happened first: whoever asks again and again must not keep it back.
            biased;
            count = changes.recv_many(&mut news, MANY) => {
                if count == 0 {
                    return None;
                }
                for (at, change) in news.drain(..) {
                    number = at;
                    match change {
                        Change::Told(told) => response.workers.push(told),
                        Change::Gone(id) => response.gone.push((&id).into()),
                    }
                }
            }
            request = requests.message() => {
                let request = request.ok()??;
                board.on_seen(reader, request.seen);
                response.seq = request.seq;
                response.permissions = board.permissions();
            }
        }
        response.number = number;
        outbox.send(Ok(response)).await.ok()?;
    }
}
