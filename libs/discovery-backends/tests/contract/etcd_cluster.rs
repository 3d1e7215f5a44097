//! Three members of etcd on hosts of their own, and whoever watches on another one: leaders lost, networks cut.

use std::time::Duration;

use etcd_client::Client;
use tether_discovery_backends::open;
use tether_etcd_cluster::{Cluster, Seat, Setup};
use tokio::time::sleep;

use crate::{
    grounds::etcd::PREFIX,
    hosts::{Hosts, Unmade, address},
    rules::{fails, says, set, until},
};

const MEMBERS: [&str; 3] = ["etcd-1", "etcd-2", "etcd-3"];

/// Nothing is cut off from it: it asks and changes whatever happens to the one who watches.
const OPERATOR: &str = "operator";
const WATCHER: &str = "watcher";

/// The hosts with a cluster on them; this thread is on the host that watches. None where the kernel lets us have no hosts.
async fn start() -> Option<(Hosts, Cluster)> {
    let hosts = match Hosts::make(&[&MEMBERS[..], &[OPERATOR, WATCHER]].concat()) {
        Ok(hosts) => hosts,
        #[expect(clippy::print_stderr, reason = "who runs it should know")]
        Err(Unmade::Kernel(why)) => {
            eprintln!("SKIPPED: the kernel has no hosts for us: {why}");
            return None;
        }
        Err(Unmade::Missing(why)) => panic!("{why}: install `util-linux` and `iproute2`"),
    };
    hosts.enter(WATCHER);
    let seats = MEMBERS.iter().enumerate().map(|(index, name)| Seat {
        client: format!("{}:2379", address(index)).parse().unwrap(),
        peer: format!("{}:2380", address(index)).parse().unwrap(),
        data: None,
        wrapper: hosts.wrapper(name),
    });
    let cluster = Setup::seats(seats.collect()).start().await;
    Some((hosts, cluster))
}

/// Changes keys from the operator's host, through this member: an empty value deletes. Answers with the revision.
fn change(hosts: &Hosts, cluster: &Cluster, member: usize, changes: &[(&str, &str)]) -> i64 {
    hosts.at(OPERATOR, async || {
        let mut client = connect(cluster, member).await;
        let mut revision = 0;
        for (key, value) in changes {
            let key = format!("{PREFIX}{key}");
            let header = match value.is_empty() {
                true => client.delete(key, None).await.unwrap().take_header(),
                false => client
                    .put(key, format!("{value}:50051"), None)
                    .await
                    .unwrap()
                    .take_header(),
            };
            revision = header.unwrap().revision();
        }
        revision
    })
}

async fn connect(cluster: &Cluster, member: usize) -> Client {
    cluster.client(member).await.unwrap()
}

#[tokio::test]
async fn a_leader_that_is_killed_or_cut_off_costs_no_change() {
    let Some((hosts, mut cluster)) = start().await else {
        return;
    };
    change(&hosts, &cluster, 0, &[("a", "10.0.0.1")]);
    let mut watch = open(&cluster.url("services/web")).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;

    let leader = cluster.leader().await;
    cluster.member(leader).kill();
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    change(&hosts, &cluster, next, &[("b", "10.0.0.2")]);
    says(&mut watch, &["10.0.0.1", "10.0.0.2"]).await;
    cluster.restart(leader).await;

    // Now the leader is there, and nobody hears of it.
    hosts.cut_off(MEMBERS[next]);
    let after = loop {
        let leader = cluster.leader().await;
        if leader != next {
            break leader;
        }
        sleep(Duration::from_millis(50)).await;
    };
    change(&hosts, &cluster, after, &[("a", ""), ("c", "10.0.0.3")]);
    says(&mut watch, &["10.0.0.2", "10.0.0.3"]).await;
    hosts.heal(MEMBERS[next]);
    cluster.formed().await;
    change(&hosts, &cluster, next, &[("d", "10.0.0.4")]);
    says(&mut watch, &["10.0.0.2", "10.0.0.3", "10.0.0.4"]).await;
}

#[tokio::test]
async fn who_was_cut_off_while_etcd_forgot_reads_everything_anew() {
    let Some((hosts, cluster)) = start().await else {
        return;
    };
    change(&hosts, &cluster, 0, &[("a", "10.0.0.1"), ("b", "10.0.0.2")]);
    let mut watch = open(&cluster.url("services/web")).unwrap();
    let before = until(&mut watch, |answer| answer.targets.len() == 2).await;

    hosts.cut_off(WATCHER);
    // The same address again, by another key: another worker.
    let revision = change(
        &hosts,
        &cluster,
        1,
        &[("a", ""), ("b", ""), ("b", "10.0.0.2"), ("c", "10.0.0.3")],
    );
    hosts.at(OPERATOR, async || {
        let mut client = connect(&cluster, 2).await;
        client.compact(revision, None).await.unwrap();
    });
    let error = fails(&mut watch, &set(&["10.0.0.1", "10.0.0.2"])).await;
    assert!(
        cluster
            .addresses()
            .iter()
            .all(|member| error.contains(member)),
        "{error}"
    );

    hosts.heal(WATCHER);
    let after = until(&mut watch, |answer| {
        answer.targets.len() == 2 && answer.targets != before.targets
    })
    .await;
    let identity = |answer: &tether_discovery_backends::Answer| {
        let address = "10.0.0.2:50051".parse().unwrap();
        answer.targets[&address].identity.clone()
    };
    assert_ne!(identity(&before), identity(&after));
    change(&hosts, &cluster, 0, &[("b", "")]);
    says(&mut watch, &["10.0.0.3"]).await;
}

#[tokio::test]
async fn a_cluster_without_a_majority_is_an_error_until_it_has_one() {
    let Some((hosts, cluster)) = start().await else {
        return;
    };
    change(&hosts, &cluster, 0, &[("a", "10.0.0.1")]);
    let mut watch = open(&cluster.url("services/web")).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    hosts.cut_off(MEMBERS[0]);
    hosts.cut_off(MEMBERS[1]);
    fails(&mut watch, &set(&["10.0.0.1"])).await;
    hosts.heal(MEMBERS[0]);
    hosts.heal(MEMBERS[1]);
    says(&mut watch, &["10.0.0.1"]).await;
    cluster.formed().await;
    change(&hosts, &cluster, 2, &[("b", "10.0.0.2")]);
    says(&mut watch, &["10.0.0.1", "10.0.0.2"]).await;
}
