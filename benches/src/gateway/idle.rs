//! Ten thousand streams on which nothing happens: what they take in memory.

use std::time::{Duration, Instant};

use crate::{
    calls::client::{Ask, Client},
    proxies::{Proxies, Proxy},
};

/// Connections, with as many streams on each as every proxy allows by itself.
const CONNECTIONS: usize = 100;
const EACH: usize = 100;

/// All streams.
pub(super) const STREAMS: usize = CONNECTIONS * EACH;

/// Longest time for all of them.
const ALL: Duration = Duration::from_secs(60);

/// What they took.
#[derive(Debug)]
pub(super) struct Idle {
    /// Bytes in memory with nobody there; none where nobody stands between.
    pub(super) at_rest: Option<u64>,
    /// With all streams open.
    pub(super) open: Option<u64>,
    /// Streams that could not be opened.
    pub(super) failed: usize,
    pub(super) why: Option<String>,
}

impl Idle {
    pub(super) async fn turn(proxies: &Proxies, proxy: Proxy) -> anyhow::Result<Self> {
        let running = proxies.start(proxy).await?;
        let at_rest = running.memory();
        let ask = Ask::silence();
        let (mut held, mut failed, mut why) = (Vec::with_capacity(STREAMS), 0, None);
        let deadline = Instant::now() + ALL;
        for _ in 0..CONNECTIONS {
            let client = Client::connect(running.port).await?;
            let opening = (0..EACH).map(|_| client.clone().open(&ask));
            for opened in futures::future::join_all(opening).await {
                match opened {
                    Ok(stream) => held.push(stream),
                    Err(error) => {
                        failed += 1;
                        why.get_or_insert_with(|| format!("{error:#}"));
                    }
                }
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{} of {STREAMS} streams are open after {ALL:?}: {why:?}",
                held.len()
            );
        }
        Ok(Self {
            at_rest,
            open: running.memory(),
            failed,
            why,
        })
    }
}
