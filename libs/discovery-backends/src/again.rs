//! Asks a source again and again, with pauses after errors.

use std::{future::Future, time::Duration};

use backon::{BackoffBuilder as _, ExponentialBuilder};
use futures::{StreamExt as _, stream};

use super::{Answer, Watch};

/// After the first error, and after many. The jitter adds up to as much again.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A source that is asked.
pub(super) trait Ask: Send + 'static {
    /// What it is called in errors: what was tried, and where.
    fn name(&self) -> String;

    /// The next answer, as soon as it may differ from the one before. After an error it starts anew.
    ///
    /// Dropping the future has to lose nothing but the time it took.
    fn next(&mut self) -> impl Future<Output = Result<Answer, String>> + Send;
}

/// Delays that grow, with jitter, so that watches that lost one source do not come back to it together (B3).
pub(super) fn pauses() -> impl Iterator<Item = Duration> + Send + use<> {
    ExponentialBuilder::default()
        .with_min_delay(PAUSE_MIN)
        .with_max_delay(PAUSE_MAX)
        .with_jitter()
        .without_max_times()
        .build()
}

/// What the source says, for ever (B3). All of it happens while the watch is polled: nothing of it outlives the watch.
pub(super) fn and_again(source: impl Ask) -> Watch {
    let state = (source, pauses(), Duration::ZERO);
    stream::unfold(state, |(mut source, mut delays, pause)| async move {
        tokio::time::sleep(pause).await;
        match source.next().await {
            Ok(answer) => Some((Ok(answer), (source, pauses(), Duration::ZERO))),
            Err(why) => {
                let error = format!("{}: {why}", source.name());
                let pause = delays.next().unwrap_or(PAUSE_MAX);
                Some((Err(error), (source, delays, pause)))
            }
        }
    })
    .boxed()
}
