//! No double life, shown by what workers did: each act is a line with the incarnation that did it.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{fs, path::Path, time::Duration};

use rustix::process::Signal;
use tether_clock::{BootClock, Clock as _};
use tether_tests::{Cluster, Owner, Setup, eventually, example, kill};

const TTL: Duration = Duration::from_secs(4);

/// What a grantor waits beyond the end of a lease before it grants again.
const SLACK: Duration = Duration::from_millis(500);

/// One act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Act {
    incarnation: u64,
    epoch: u64,
    at_ns: u64,
}

fn acts(file: &Path) -> Vec<Act> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let act = |line: &str| {
        let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        let [incarnation, epoch, at_ns] = numbers[..] else {
            panic!("half a line: {line:?}");
        };
        Act {
            incarnation,
            epoch,
            at_ns,
        }
    };
    text.lines().map(act).collect()
}

async fn acting(file: &Path, is_by: impl Fn(&Act) -> bool) -> Act {
    let by = async || acts(file).into_iter().rfind(&is_by);
    eventually("somebody acts", by).await.0
}

async fn start() -> (Cluster, Owner, std::path::PathBuf) {
    let cluster = Setup::default()
        .set("lease.node_ttl", &format!("{}s", TTL.as_secs()))
        .set("lease.node_beat", "500ms")
        .start()
        .await;
    let file = cluster.dir().join("acts.log");
    let pool = cluster.dir().join("actor.toml");
    let text = format!(
        "[template.actor]\ncommand = \"python3\"\nargs = [\"worker.py\", {file:?}]\ncwd = {cwd:?}\n\
         [template.actor.readiness]\nkind = \"started\"\n[template.actor.stop]\ngrace = \"200ms\"\n\
         [pool.actor]\ntemplate = \"actor\"\nmode = \"independent\"\nsize = 1\n",
        cwd = example("fenced"),
    );
    fs::write(&pool, text).unwrap();
    let owner = Owner::with_pool(&cluster, "beam", &pool).await;
    (cluster, owner, file)
}

#[tokio::test]
async fn nobody_acts_after_the_end_of_a_hung_agents_lease_and_a_successor_only_after_that() {
    let (mut cluster, _owner, file) = start().await;
    let first = acting(&file, |_| true).await;
    assert!(first.incarnation > 0 && first.epoch > 0, "{first:?}");

    let stopped = BootClock.now();
    kill(cluster.pid(), Signal::STOP);
    cluster.no_orphans().await;
    let last = *acts(&file).last().unwrap();
    let end = stopped + TTL + SLACK;
    assert!(last.at_ns <= end.as_nanos(), "{last:?} after {end}");
    cluster.kill().await;
    cluster.up().await;
    let next = acting(&file, |act| act.incarnation != first.incarnation).await;

    let all = acts(&file);
    assert!(next.incarnation > first.incarnation, "{next:?}");
    assert!(
        all.is_sorted_by_key(|act| (act.incarnation, act.epoch, act.at_ns)),
        "two acted at once"
    );
}

#[tokio::test]
async fn a_worker_that_is_taken_over_by_another_agent_acts_on_under_its_own_token() {
    let (mut cluster, _owner, file) = start().await;
    let first = acting(&file, |_| true).await;

    cluster.kill().await;
    cluster.up().await;
    // Twice the lease that it was left with: only the new agent can have renewed it.
    let later = BootClock.now() + 2 * TTL;
    let act = acting(&file, |act| act.at_ns > later.as_nanos()).await;

    assert_eq!(act.incarnation, first.incarnation);
    assert!(acts(&file).is_sorted_by_key(|act| act.at_ns));
}
