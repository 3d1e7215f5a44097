//! Many clients at once, in the ways that a load can be: each waits for its answer, or nobody does.

use std::{
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::{Buf as _, BytesMut};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::{
    client::{Ask, Client},
    wire::{ECHO, Order, PREFIX, STREAM, TOKEN_BYTES, now, numbered},
};

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Calls that were answered, or messages.
    pub(crate) done: u64,
    /// Calls that were not, or not rightly.
    pub(crate) failed: u64,
    /// What the first of those said.
    pub(crate) why: Option<String>,
    /// How long each took, in nanoseconds, in their order.
    pub(crate) delays: Vec<u64>,
    /// How long all of it took.
    pub(crate) span: Duration,
}

impl Outcome {
    fn tell(&mut self, ended: anyhow::Result<u64>) {
        match ended {
            Ok(done) => self.done += done,
            Err(why) => self.fail(&format!("{why:#}")),
        }
    }

    fn fail(&mut self, why: &str) {
        self.failed += 1;
        self.why.get_or_insert_with(|| why.to_owned());
    }

    /// The delay that this share of all is not above, in seconds.
    pub(crate) fn at(&self, share: f64) -> Option<f64> {
        let index = (self.delays.len() as f64 * share) as usize;
        let last = self.delays.len().checked_sub(1)?;
        Some(*self.delays.get(index.min(last))? as f64 / 1e9)
    }
}

/// A load.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// Callers that send a message, wait for it to come back, and send the next.
    Closed {
        connections: usize,
        callers: usize,
        bytes: u32,
    },
    /// So many calls a second, whatever becomes of them.
    Paced { calls: u32, bytes: u32 },
    /// One stream on each connection after the other, as fast as they come.
    Bulk {
        connections: usize,
        messages: u32,
        bytes: u32,
    },
    /// Streams of tokens, so many a second on each.
    Tokens {
        connections: usize,
        streams: usize,
        each: u32,
    },
}

impl Load {
    /// Carries it out for this long.
    pub(crate) async fn run(self, port: u16, span: Duration) -> anyhow::Result<Outcome> {
        let crowd = Crowd::new(span);
        let mut tasks = JoinSet::new();
        match self {
            Self::Closed {
                connections,
                callers,
                bytes,
            } => {
                for connection in 0..connections {
                    let client = Client::connect(port).await?;
                    for caller in 0..callers {
                        let number = connection * callers + caller;
                        let ask = Ask::new(ECHO, numbered(number as u64, bytes));
                        tasks.spawn(crowd.clone().repeat(client.clone(), ask));
                    }
                }
            }
            Self::Bulk {
                connections,
                messages,
                bytes,
            } => {
                for _ in 0..connections {
                    let client = Client::connect(port).await?;
                    tasks.spawn(crowd.clone().drain(client, messages, bytes));
                }
            }
            Self::Tokens {
                connections,
                streams,
                each,
            } => {
                for _ in 0..connections {
                    let client = Client::connect(port).await?;
                    for _ in 0..streams {
                        tasks.spawn(crowd.clone().follow(client.clone(), each));
                    }
                }
            }
            Self::Paced { calls, bytes } => {
                let client = Client::connect(port).await?;
                crowd.pace(&mut tasks, &client, calls, bytes).await;
            }
        }
        let all = async { while tasks.join_next().await.is_some() {} };
        let left = (crowd.end + PATIENCE).saturating_duration_since(Instant::now());
        let in_time = tokio::time::timeout(left, all).await.is_ok();
        let mut outcome = std::mem::take(&mut *crowd.outcome());
        outcome.span = crowd.start.elapsed();
        if !in_time {
            for _ in 0..tasks.len() {
                outcome.fail("no answer");
            }
        }
        outcome.delays.sort_unstable();
        Ok(outcome)
    }
}

#[derive(Debug, Clone)]
struct Crowd {
    outcome: Arc<Mutex<Outcome>>,
    start: Instant,
    end: Instant,
}

impl Crowd {
    fn new(span: Duration) -> Self {
        let start = Instant::now();
        Self {
            outcome: Arc::default(),
            start,
            end: start + span,
        }
    }

    fn outcome(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how a call ended that stands for one, and how long it took.
    async fn time(&self, call: impl Future<Output = anyhow::Result<()>>) {
        let start = now();
        let ended = call.await;
        let took = now() - start;
        let mut outcome = self.outcome();
        if ended.is_ok() {
            outcome.delays.push(took);
        }
        outcome.tell(ended.map(|()| 1));
    }

    async fn repeat(self, mut client: Client, ask: Ask) {
        while Instant::now() < self.end {
            self.time(client.echo(&ask)).await;
        }
    }

    async fn pace(&self, tasks: &mut JoinSet<()>, client: &Client, calls: u32, bytes: u32) {
        let mut pace = interval(Duration::from_secs(1) / calls);
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut number = 0;
        while Instant::now() < self.end {
            pace.tick().await;
            let (crowd, mut client) = (self.clone(), client.clone());
            let ask = Ask::new(ECHO, numbered(number, bytes));
            number += 1;
            tasks.spawn(async move { crowd.time(client.echo(&ask)).await });
            while tasks.try_join_next().is_some() {}
        }
    }

    async fn drain(self, mut client: Client, messages: u32, bytes: u32) {
        let order = Order {
            messages,
            bytes,
            pause: Duration::ZERO,
            hangs: false,
        };
        let ask = Ask::new(STREAM, order.framed());
        let whole = messages as usize * (PREFIX + bytes as usize);
        while Instant::now() < self.end {
            let call = async {
                let mut answer = client.call(&ask).await?;
                while answer.more().await?.is_some() {}
                answer.end(whole).await?;
                Ok(messages.into())
            };
            let ended = call.await;
            self.outcome().tell(ended);
        }
    }

    async fn follow(self, mut client: Client, each: u32) {
        let span = self.end.saturating_duration_since(self.start);
        let messages = (span.as_secs_f64() * f64::from(each)) as u32;
        let order = Order {
            messages,
            bytes: TOKEN_BYTES,
            pause: Duration::from_secs(1) / each,
            hangs: false,
        };
        let one = PREFIX + TOKEN_BYTES as usize;
        let call = async {
            let mut answer = client.call(&Ask::new(STREAM, order.framed())).await?;
            let mut rest = BytesMut::new();
            while let Some(chunk) = answer.more().await? {
                let now = now();
                rest.extend_from_slice(&chunk);
                let mut outcome = self.outcome();
                while rest.len() >= one {
                    let mut token = rest.split_to(one);
                    token.advance(PREFIX);
                    outcome.delays.push(now.saturating_sub(token.get_u64()));
                }
            }
            answer.end(messages as usize * one).await?;
            Ok(messages.into())
        };
        let ended = call.await;
        self.outcome().tell(ended);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calls::upstream::Upstream;

    #[tokio::test]
    async fn every_load_is_carried_out_without_a_failure_by_a_server_that_works() {
        let upstream = Upstream::start().await.unwrap();
        let loads = [
            Load::Closed {
                connections: 2,
                callers: 2,
                bytes: 100_000,
            },
            Load::Paced {
                calls: 500,
                bytes: 128,
            },
            Load::Bulk {
                connections: 2,
                messages: 100,
                bytes: 1024,
            },
            Load::Tokens {
                connections: 1,
                streams: 4,
                each: 500,
            },
        ];
        for load in loads {
            let run = load.run(upstream.port(), Duration::from_millis(100));
            let outcome = run.await.unwrap();

            assert_eq!(outcome.why, None, "{load:?}");
            assert_eq!(outcome.failed, 0, "{load:?}");
            assert!(outcome.done > 0, "{load:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_of_another_length_is_a_failure() {
        let upstream = Upstream::start().await.unwrap();
        let mut client = Client::connect(upstream.port()).await.unwrap();
        let order = Order {
            messages: 3,
            bytes: 8,
            pause: Duration::ZERO,
            hangs: false,
        };

        let mut answer = client
            .call(&Ask::new(STREAM, order.framed()))
            .await
            .unwrap();
        while answer.more().await.unwrap().is_some() {}
        let ended = answer.end(4 * (PREFIX + 8)).await.unwrap_err();

        assert_eq!(ended.to_string(), "39 bytes, not 52");
    }

    #[tokio::test]
    async fn what_was_not_sent_is_not_taken_for_an_echo() {
        let upstream = Upstream::start().await.unwrap();
        let mut client = Client::connect(upstream.port()).await.unwrap();
        let order = Order {
            messages: 1,
            bytes: 13,
            pause: Duration::ZERO,
            hangs: false,
        };

        let ended = client.echo(&Ask::new(STREAM, order.framed())).await;

        let why = ended.unwrap_err().to_string();
        assert_eq!(why, "the answer is not what was sent");
    }
}
