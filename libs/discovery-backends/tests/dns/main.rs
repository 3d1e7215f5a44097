//! The `dns://` source against real servers, and against one that shows the faults that those do not.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::StreamExt as _;
use tether_discovery_backends::{Answer, Watch, open};

mod faults;
mod faulty;
mod named;
mod place;
mod records;
mod several;

const PATIENCE: Duration = Duration::from_secs(15);

/// What comes next.
async fn next(watch: &mut Watch) -> Result<Answer, String> {
    let next = tokio::time::timeout(PATIENCE, watch.next()).await;
    next.expect("a watch says something")
        .expect("a watch never ends (B3)")
}

/// Addresses, each with its weight.
fn weights(answer: &Answer) -> BTreeMap<String, u32> {
    let targets = answer.targets.iter();
    targets
        .map(|(address, traits)| (address.to_string(), traits.weight))
        .collect()
}

fn addresses(answer: &Answer) -> Vec<String> {
    answer.targets.keys().map(ToString::to_string).collect()
}

/// Waits until the source says exactly this; what it says on the way there is passed over.
async fn says(watch: &mut Watch, expected: &[&str]) {
    let deadline = Instant::now() + PATIENCE;
    let mut said = None;
    while Instant::now() < deadline {
        match next(watch).await {
            Ok(answer) if addresses(&answer) == expected => return,
            other => said = Some(other),
        }
    }
    panic!("the source never says {expected:?}, but {said:?}");
}

/// Waits for an error.
async fn fails(watch: &mut Watch) -> String {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Err(error) = next(watch).await {
            return error;
        }
    }
    panic!("the source never fails");
}

/// Goes on to listen for so long.
async fn listen(watch: &mut Watch, time: Duration) {
    let listening = async { while watch.next().await.is_some() {} };
    let _ = tokio::time::timeout(time, listening).await;
}

fn source(target: &str, options: &str) -> Watch {
    open(&format!("dns://{target}?{options}")).unwrap()
}
