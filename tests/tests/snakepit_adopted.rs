//! Snakepit's workers that outlive their BEAM: adopted by the next one, answered meanwhile, and never anybody else's.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tether_tests::{
    Cluster, Setup, eventually,
    snakepit::{ADAPTER, Beam, Port},
};
use tokio::time::timeout;

const WORKER: &str = "grpc_server.py";

/// No test is so slow that its workers end because of it.
const PATIENT: (&str, &str) = ("TETHER_SNAKEPIT_HEARTBEAT_TIMEOUT", "120s");

/// To be waited out, and long enough for a busy machine to start a worker in.
const SHORT: (&str, &str) = ("TETHER_SNAKEPIT_HEARTBEAT_TIMEOUT", "10s");

/// Far from the minute that holds where nobody says anything.
const NOT_USUAL: Duration = Duration::from_secs(40);

/// The arbiter's own lease where nobody wishes for one, and what is far more.
const BRIEF: &str = "1s";
const LONGER: (&str, &str) = ("TETHER_SNAKEPIT_HEARTBEAT_TIMEOUT", "18s");

/// So long after its BEAM hangs a program has held its beats back for the arbiter's own lease: it asks each sixth of its
/// timeout, and waits as long for an answer.
const HUNG: Duration = Duration::from_secs(8);

/// Longer than the arbiter's own lease, and far shorter than a node's.
const AWAY: Duration = Duration::from_secs(2);

const COUPLED: (&str, &str) = ("TETHER_SNAKEPIT_MODE", "coupled");
const INDEPENDENT: (&str, &str) = ("TETHER_SNAKEPIT_MODE", "independent");

async fn beam(cluster: &Cluster, name: &str) -> Beam {
    Beam::start(cluster, name, &[INDEPENDENT, PATIENT]).await
}

async fn identities(ports: &mut [Port]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for port in ports {
        all.insert(port.identity().await);
    }
    all
}

async fn pids(cluster: &Cluster) -> BTreeSet<u32> {
    cluster
        .workers("")
        .await
        .iter()
        .map(|worker| worker.pid)
        .filter(|&pid| pid != 0)
        .collect()
}

async fn end(cluster: &Cluster, ports: &mut [Port]) {
    for port in ports {
        port.signal(Signal::TERM);
        assert_eq!(port.gone().await.0, Some(0));
    }
    cluster.no_orphans().await;
}

#[tokio::test]
async fn the_next_beam_gets_the_workers_of_the_last_one() {
    let cluster = Cluster::start().await;
    let first = beam(&cluster, "first").await;
    let mut ports = first.pool(3).await;
    let (before, processes) = (identities(&mut ports).await, pids(&cluster).await);
    assert_eq!((before.len(), processes.len()), (3, 3));
    // One of them has not even the time to see its BEAM go.
    ports[1].signal(Signal::KILL);
    first.kill(&mut ports).await;
    for port in &mut ports {
        port.gone().await;
    }

    let second = beam(&cluster, "second").await;
    let mut ports = second.pool(3).await;

    // Each call asks the BEAM first: none fails because the one before was away.
    assert_eq!(identities(&mut ports).await, before);
    assert_eq!(pids(&cluster).await, processes);
    for port in &mut ports {
        assert_eq!(port.call("elixir:x").await.unwrap()["beam"], "second");
    }
    let mut more = second.port(3, WORKER, ADAPTER);
    assert!(
        !before.contains(&more.identity().await),
        "one more is another one"
    );
    ports.push(more);
    end(&cluster, &mut ports).await;
}

#[tokio::test]
async fn a_worker_whose_program_its_own_beam_killed_is_replaced() {
    let cluster = Cluster::start().await;
    let beam = beam(&cluster, "beam").await;
    let mut ports = beam.pool(1).await;
    let (distrusted, process) = (ports[0].identity().await, pids(&cluster).await);
    // As Snakepit does with a worker that does not answer it, without a word before.
    ports[0].signal(Signal::KILL);
    ports[0].gone().await;

    let mut next = beam.pool(1).await;

    assert_ne!(next[0].identity().await, distrusted);
    assert!(pids(&cluster).await.is_disjoint(&process));
    end(&cluster, &mut next).await;
}

#[tokio::test]
async fn another_application_gets_workers_of_its_own() {
    let cluster = Cluster::start().await;
    let named = |name: &'static str| [ADAPTER, &["--snakepit-instance-name", name]].concat();
    let first = beam(&cluster, "first").await;
    let mut ports = [first.port(0, WORKER, &named("web"))];
    let own = ports[0].identity().await;
    first.kill(&mut ports).await;
    ports[0].gone().await;

    let second = beam(&cluster, "second").await;
    let mut other = second.port(0, WORKER, &named("batch"));
    let mut same = second.port(1, WORKER, &named("web"));

    assert_ne!(other.identity().await, own);
    assert_eq!(same.identity().await, own);
    end(&cluster, &mut [other, same]).await;
}

#[tokio::test]
async fn a_worker_that_nobody_adopts_ends() {
    let cluster = Cluster::start().await;
    let first = Beam::start(&cluster, "first", &[INDEPENDENT, SHORT]).await;
    let mut ports = first.pool(1).await;
    first.kill(&mut ports).await;
    assert_eq!(ports[0].gone().await.0, Some(0));

    cluster.no_orphans().await;

    // What it left is no worker to adopt.
    let second = Beam::start(&cluster, "second", &[INDEPENDENT, PATIENT]).await;
    let mut ports = second.pool(1).await;
    ports[0].identity().await;
    end(&cluster, &mut ports).await;
}

#[tokio::test]
async fn a_worker_whose_beam_hangs_ends_and_so_does_its_program() {
    let cluster = Cluster::start().await;
    let mut all = Vec::new();
    for mode in [INDEPENDENT, COUPLED] {
        let beam = Beam::start(&cluster, mode.1, &[mode, SHORT]).await;
        let ports = beam.pool(1).await;
        all.push((beam, ports));
    }

    // Their processes live, and every pipe to their ports is open.
    let start = Instant::now();
    for (beam, _) in &all {
        beam.hang();
    }

    for (_, ports) in &mut all {
        ports[0].gone().await;
    }
    assert!(start.elapsed() < NOT_USUAL, "{:?}", start.elapsed());
    cluster.no_orphans().await;
}

#[tokio::test]
async fn a_beam_that_hangs_within_its_timeout_keeps_its_workers_whatever_the_arbiters_own_lease() {
    let setup = Setup::default().set("lease.session_ttl", BRIEF);
    let cluster = setup.start().await;
    let mut all = Vec::new();
    for mode in [INDEPENDENT, COUPLED] {
        let beam = Beam::start(&cluster, mode.1, &[mode, LONGER]).await;
        let mut ports = beam.pool(1).await;
        let own = ports[0].identity().await;
        all.push((beam, ports, own));
    }

    for (beam, ..) in &all {
        beam.hang();
    }
    let (hung, others) = all.split_at_mut(1);
    let ended = timeout(HUNG, async {
        tokio::select! {
            ended = hung[0].1[0].gone() => ended,
            ended = others[0].1[0].gone() => ended,
        }
    });
    let ended = ended.await;
    assert!(ended.is_err(), "a program has ended: {ended:?}");
    for (beam, ..) in &all {
        beam.go_on();
    }

    for (_, mut ports, own) in all {
        assert_eq!(ports[0].identity().await, own);
        ports[0].signal(Signal::TERM);
        assert_eq!(ports[0].gone().await.0, Some(0));
    }
    cluster.no_orphans().await;
}

#[tokio::test]
async fn a_worker_without_a_beam_is_answered_and_lives() {
    let cluster = Cluster::start().await;
    let first = beam(&cluster, "first").await;
    let mut ports = first.pool(1).await;
    let own = ports[0].identity().await;
    let streamed = ports[0].call("stream:one,two,end").await.unwrap();
    assert_eq!(
        streamed.to_string(),
        r#"{"code":"OK","seen":["one","two"]}"#
    );
    first.kill(&mut ports).await;
    ports[0].gone().await;

    let refused = ports[0].call("elixir:x").await.unwrap_err();
    assert_eq!(refused["message"], "UNAVAILABLE");

    // Told to depend on its heartbeats it would be gone after two of them.
    let second = beam(&cluster, "second").await;
    let mut ports = second.pool(1).await;
    assert_eq!(ports[0].identity().await, own);
    let beats = ports[0].call("beats").await.unwrap().as_u64().unwrap();
    eventually("its heart beats, though no BEAM hears it", async || {
        (ports[0].call("beats").await.unwrap().as_u64().unwrap() > beats + 2).then_some(())
    })
    .await;
    assert_eq!((second.asked("Heartbeat"), second.asked("Ping")), (0, 0));
    end(&cluster, &mut ports).await;
}

#[tokio::test]
async fn what_waits_for_a_beam_whose_program_goes_is_told_so() {
    let cluster = Cluster::start().await;
    let beam = beam(&cluster, "beam").await;
    for (number, tool) in ["elixir:hang", "stream:one"].into_iter().enumerate() {
        let mut ports = [beam.port(number, WORKER, ADAPTER)];
        ports[0].ready().await;
        let caller = ports[0].caller();
        let asked = || beam.asked("ExecuteElixirTool") + beam.asked("StreamTelemetry");
        let before = asked();
        let waits = tokio::spawn(async move { caller.call(tool).await });
        eventually("the BEAM has the call", async || {
            (asked() > before).then_some(())
        })
        .await;

        // The BEAM would answer one day.
        ports[0].signal(Signal::KILL);

        let told = waits.await.unwrap();
        let code = told
            .as_ref()
            .map_or_else(|failed| &failed["message"], |ended| &ended["code"]);
        assert_eq!(code, "UNAVAILABLE", "{tool}");
    }
    end(&cluster, &mut beam.pool(2).await).await;
}

#[tokio::test]
async fn a_program_that_was_taken_over_ends_and_its_worker_does_not() {
    let cluster = Cluster::start().await;
    let first = beam(&cluster, "first").await;
    let mut ports = first.pool(1).await;
    let own = ports[0].identity().await;
    // As where somebody clears away what is locked: the name is the same, the lock is not.
    let berths = cluster.runtime().join("snakepit");
    let berth = fs::read_dir(&berths)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let aside = cluster.dir().join("aside");
    fs::rename(&berth, &aside).unwrap();
    fs::create_dir(&berth).unwrap();
    for entry in fs::read_dir(&aside).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), berth.join(entry.file_name())).unwrap();
    }

    let second = beam(&cluster, "second").await;
    let mut taken = second.pool(1).await;

    let (code, said) = ports[0].gone().await;
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("not ours any more"), "{said}");
    assert_eq!(taken[0].identity().await, own);
    assert_eq!(taken[0].call("elixir:x").await.unwrap()["beam"], "second");
    end(&cluster, &mut taken).await;
}

#[tokio::test]
async fn workers_and_programs_live_through_a_restart_of_tether() {
    let setup = Setup::default().set("lease.session_ttl", BRIEF);
    let mut cluster = setup.start().await;
    let first = beam(&cluster, "first").await;
    let mut ports = first.pool(2).await;
    let before = identities(&mut ports).await;

    cluster.kill().await;
    // Away for longer than its own lease.
    let away = timeout(AWAY, ports[0].gone()).await;
    assert!(away.is_err(), "its program has ended: {away:?}");
    // Nobody between worker and BEAM is Tether's but what is beside the worker.
    assert_eq!(ports[0].call("elixir:x").await.unwrap()["beam"], "first");
    cluster.up().await;

    assert_eq!(identities(&mut ports).await, before);
    end(&cluster, &mut ports).await;
}
