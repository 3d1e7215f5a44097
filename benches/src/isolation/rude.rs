//! What no client should do: not read what it asked for, or take back what it asked for, over and over.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::FutureExt as _;
use h2::{Reason, SendStream, client::ResponseFuture};
use tokio::{
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use crate::calls::{
    client::{Answer, Ask, Client},
    wire::{Order, STREAM},
};

/// Calls that are cancelled in a second.
pub(super) const CANCELS: u32 = 3_000;

/// Longest time for a stream to begin.
const PATIENCE: Duration = Duration::from_secs(5);

/// So often some are started, and those started before are cancelled.
const EVERY: Duration = Duration::from_millis(1);

/// A client that is being rude.
pub(super) enum Rude {
    /// Streams that it does not read, of so many.
    Unread { held: Vec<Answer>, asked: usize },
    /// What takes calls back, and how many since when.
    Cancels {
        task: JoinHandle<anyhow::Result<()>>,
        count: Arc<AtomicU32>,
        since: Instant,
    },
}

impl Rude {
    pub(super) async fn unread(port: u16, streams: usize, bytes: u32) -> anyhow::Result<Self> {
        let mut client = Client::connect(port).await?;
        let order = Order {
            messages: u32::MAX,
            bytes,
            pause: Duration::ZERO,
            hangs: false,
        };
        let ask = Ask::new(STREAM, order.framed());
        let mut held = Vec::new();
        for _ in 0..streams {
            let answer = tokio::time::timeout(PATIENCE, client.call(&ask)).await;
            // One that does not come is over.
            let Ok(Ok(answer)) = answer else { break };
            held.push(answer);
        }
        let asked = streams;
        Ok(Self::Unread { held, asked })
    }

    pub(super) async fn cancels(port: u16) -> anyhow::Result<Self> {
        let count = Arc::new(AtomicU32::new(0));
        let client = Client::connect(port).await?;
        Ok(Self::Cancels {
            task: tokio::spawn(cancel(client, Arc::clone(&count))),
            count,
            since: Instant::now(),
        })
    }

    /// How many of its streams are over, and how many calls it cancelled in a second.
    pub(super) fn end(self) -> (usize, f64) {
        match self {
            Self::Unread { held, asked } => {
                let live = held.into_iter().filter_map(|mut stream| {
                    // What was sent stands before the end.
                    loop {
                        match stream.more().now_or_never() {
                            Some(Ok(Some(_))) => {}
                            Some(Ok(None) | Err(_)) => return None,
                            None => return Some(()),
                        }
                    }
                });
                (asked - live.count(), 0.0)
            }
            Self::Cancels { task, count, since } => {
                task.abort();
                let count = count.load(Ordering::Relaxed);
                (0, f64::from(count) / since.elapsed().as_secs_f64())
            }
        }
    }
}

async fn cancel(mut client: Client, count: Arc<AtomicU32>) -> anyhow::Result<()> {
    let each = CANCELS / u32::try_from(Duration::from_secs(1).as_millis() / EVERY.as_millis())?;
    let ask = Ask::silence();
    let mut pace = interval(EVERY);
    pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut open: Vec<(ResponseFuture, SendStream<Bytes>)> = Vec::new();
    loop {
        pace.tick().await;
        for (_, mut stream) in std::mem::take(&mut open) {
            stream.send_reset(Reason::CANCEL);
            count.fetch_add(1, Ordering::Relaxed);
        }
        for _ in 0..each {
            // One that cuts the connection off gets another.
            if let Ok(started) = client.start(&ask).await {
                open.push(started);
            }
        }
    }
}
