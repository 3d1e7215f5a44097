//! Enforcement apart from renewal: whoever renews a lease may hang, and each worker ends on time all the same.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::time::Duration;

use tether_benches::{agent::hung_agent, ground::Ground};

const WORKERS: usize = 200;

/// What a grantor waits beyond the end of a lease before it grants again.
const SLACK: Duration = Duration::from_millis(500);

#[tokio::test]
async fn all_workers_of_an_agent_that_is_stopped_are_dead_within_the_slack_and_none_before_the_end()
{
    let ground = Ground::new().unwrap();
    let agent = tether_tests::program("tether-agent");

    let hung = hung_agent(&ground, &agent, WORKERS).await;
    ground.remove();

    let hung = hung.unwrap();
    println!("{hung:?}");
    assert_eq!((hung.early, hung.survivors), (0, 0));
    assert!(hung.slowest < SLACK, "{hung:?}");
}
