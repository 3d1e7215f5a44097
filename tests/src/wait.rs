//! Waiting for what is to happen, with a deadline; never for time to pass.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Longer than anything takes on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Looks until there is something to see, and tells how long that took.
///
/// # Panics
/// When there is nothing within [`DEADLINE`].
pub async fn eventually<T>(what: &str, look: impl AsyncFnMut() -> Option<T>) -> (T, Duration) {
    match eventually_within(DEADLINE, look).await {
        Some(seen) => seen,
        None => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// Looks until there is something to see; none when there is nothing in time.
pub async fn eventually_within<T>(
    deadline: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> Option<(T, Duration)> {
    let start = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return Some((seen, start.elapsed()));
        }
        if start.elapsed() > deadline {
            return None;
        }
        sleep(PAUSE).await;
    }
}
