//! Workers that are forked from what is imported already, with real Python, real calls and real kills: what
//! holds for any worker holds for them.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]
#![allow(clippy::print_stdout, reason = "what was skipped, and why")]

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use tether_proto::{common::WorkerPhase, worker::Worker};
use tether_tests::{
    Cluster, Owner, Process, Setup, cgroups, digits::PredictRequest, digits_client, eventually,
    eventually_within, held_out, kill, signal_all,
};

/// What a template needs to be forked, and a worker to be ended quickly.
const FORKED: &str = "forked_from = { imports = [\"grpc\", \"numpy\"] }\n\
    env = { OPENBLAS_NUM_THREADS = \"1\" }\n\
    [template.digits.stop]\ngrace = \"500ms\"";

const POLICY: &str = "[pool.digits.policy]\nheartbeat_interval = \"500ms\"\nheartbeat_timeout = \"60s\"\npartition_grace = \"0s\"";

const DAEMON: &str = "unruly.py --ignore-sigterm --daemonize-child";

/// Nobody waited for a lease here, all of which are longer.
const SEEN: Duration = Duration::from_secs(5);

/// A cluster whose node can fork; none on a machine without cgroup v2, where a test of its own shows the
/// refusal.
async fn cluster(setup: Setup) -> Option<Cluster> {
    let cluster = setup.start().await;
    let made = cgroups(&cluster.runtime());
    let usable = made.iter().any(|path| path.join("cgroup.kill").exists());
    if !usable {
        println!("skipped: this machine has no cgroup.kill, which forked workers need");
    }
    usable.then_some(cluster)
}

async fn start(cluster: &Cluster, mode: &str, size: u32, script: &str) -> (Owner, Vec<Worker>) {
    let file = cluster.pool_file("digits", mode, size, script, FORKED, POLICY);
    let owner = Owner::with_pool(cluster, "beam", &file).await;
    let workers = cluster.workers("digits").await;
    (owner, workers)
}

fn parent(pid: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.unwrap().trim().parse().unwrap()
}

/// The process that a worker was forked from.
fn server_of(worker: &Worker) -> u32 {
    let server = parent(worker.pid);
    let command = fs::read_to_string(format!("/proc/{server}/cmdline")).unwrap();
    assert!(command.contains("tether_forkserver.py"), "{command}");
    server
}

/// Every shim below this cluster's zygote, by the name of the directory it works in.
fn shims(cluster: &Cluster) -> Vec<(String, u32)> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of_ours = |pid: u32| {
        let dir = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
        dir.starts_with(cluster.runtime()).then_some(())?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "tether-shim").then_some(())?;
        Some((dir.file_name()?.to_str()?.to_owned(), pid))
    };
    pids.filter_map(of_ours).collect()
}

/// The shim that holds this worker.
fn keeper_of(cluster: &Cluster, worker: &Worker) -> u32 {
    let id = worker.worker.as_ref().unwrap();
    let name = format!("{}.{}.{}", id.pool, id.slot, id.incarnation);
    let found = shims(cluster).into_iter().find(|shim| shim.0 == name);
    found
        .unwrap_or_else(|| panic!("{name}: {:?}", shims(cluster)))
        .1
}

/// Everything of the cluster's workers, with at least so many processes.
async fn settled(cluster: &Cluster, count: usize) -> Vec<Process> {
    let traces = cluster.traces();
    let found = eventually("all is there", async || {
        let found = traces.find();
        (found.len() >= count).then_some(found)
    });
    found.await.0
}

/// All workers are ready, and those that are to be gone are.
async fn ready_without(cluster: &Cluster, gone: &[&Worker], count: usize) -> Vec<Worker> {
    let ready = eventually("others are ready", async || {
        let workers = cluster.workers("digits").await;
        let is_good = |it: &&Worker| {
            it.phase() == WorkerPhase::Ready && gone.iter().all(|dead| dead.pid != it.pid)
        };
        (workers.iter().filter(is_good).count() == count).then_some(workers)
    });
    ready.await.0
}

async fn deaths(cluster: &Cluster, count: usize) -> Vec<Value> {
    let deaths = eventually("the deaths are recorded", async || {
        let events = cluster.tether().json_lines(&["events"]).await.into_iter();
        let deaths = events.filter(|event| event["kind"] == "WORKER_DIED");
        let deaths: Vec<_> = deaths.map(|event| event["death"].clone()).collect();
        (deaths.len() >= count).then_some(deaths)
    });
    deaths.await.0
}

async fn answers(cluster: &Cluster) {
    let mut client = digits_client(cluster.client().channel(), "digits");
    let digit = held_out(1).remove(0);
    eventually("a worker answers", async || {
        let pixels = digit.pixels.clone();
        client.predict(PredictRequest { pixels }).await.ok()
    })
    .await;
}

fn left_of(cluster: &Cluster, before: &[Process]) -> Vec<Process> {
    let mut alive = cluster.traces().find();
    alive.retain(|process| before.iter().any(|it| it.pid == process.pid));
    alive
}

#[tokio::test]
async fn workers_of_a_template_are_forked_from_one_process_and_answer_calls() {
    let Some(cluster) = cluster(Setup::default()).await else {
        return;
    };

    let (_owner, workers) = start(&cluster, "coupled", 2, "worker.py").await;

    let server = server_of(&workers[0]);
    assert_eq!(server_of(&workers[1]), server);
    assert_eq!(cluster.traces().find().len(), 3);
    answers(&cluster).await;
    // Its output is its own, and so is its cgroup.
    let log = cluster.tether().run(&["logs", "digits/1"]).await;
    let everything = format!("{}{}", log.out, log.err);
    assert_eq!(
        everything.matches("digits.server: serving").count(),
        1,
        "{everything}"
    );
    let group = |pid: u32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(
        group(workers[0].pid).contains("/digits.0."),
        "{}",
        group(workers[0].pid)
    );
    assert!(
        group(server).contains("/forkserver.0.0"),
        "{}",
        group(server)
    );
    let stopped = cluster.tether().run(&["pool", "rm", "digits"]).await;
    assert_eq!(stopped.code, Some(0), "{}", stopped.err);
    // SIGTERM reached them, and their server went with the last of them.
    for death in deaths(&cluster, 2).await {
        assert_eq!(death["exit_code"], 0, "{death}");
    }
    assert!(cluster.no_orphans().await < SEEN);
}

#[tokio::test]
async fn a_killed_keeper_takes_its_worker_along_with_what_that_left_and_no_other() {
    let Some(cluster) = cluster(Setup::default()).await else {
        return;
    };
    let (_owner, workers) = start(&cluster, "independent", 2, DAEMON).await;
    let before = settled(&cluster, 5).await;
    let (victim, other) = (&workers[0], &workers[1]);

    kill(keeper_of(&cluster, victim), Signal::KILL);

    let now = ready_without(&cluster, &[victim], 2).await;
    assert!(now.iter().any(|worker| worker.pid == other.pid), "{now:?}");
    assert_eq!(server_of(&now[0]), server_of(other));
    // The server, the other worker and its daemon: nothing lived beside the next incarnation.
    let left = left_of(&cluster, &before);
    assert_eq!(left.len(), 3, "{left:?}");
    assert_eq!(deaths(&cluster, 1).await[0]["signal"], 9);
}

#[tokio::test]
async fn a_killed_fork_server_is_followed_by_another_and_nothing_of_it_stays() {
    for (killed, no_namespaces) in [
        ("server", "false"),
        ("its shim", "false"),
        ("server", "true"),
        ("its shim", "true"),
    ] {
        let setup = Setup::default().set("agent.no_namespaces", no_namespaces);
        let Some(cluster) = cluster(setup).await else {
            return;
        };
        let script = "unruly.py --daemonize-child";
        let (_owner, workers) = start(&cluster, "independent", 2, script).await;
        let before = settled(&cluster, 5).await;
        let server = server_of(&workers[0]);
        let target = match killed {
            "server" => server,
            _ => parent(server),
        };

        kill(target, Signal::KILL);

        let now = ready_without(&cluster, &[&workers[0], &workers[1]], 2).await;
        let what = format!("{killed}, no_namespaces = {no_namespaces}");
        assert_ne!(server_of(&now[0]), server);
        assert_eq!(left_of(&cluster, &before), [], "{what}");
        for death in deaths(&cluster, 2).await {
            let how = (&death["cause"], &death["signal"]);
            assert_eq!(how, (&"SIGNALED".into(), &9.into()), "{what}: {death}");
        }
        answers(&cluster).await;
    }
}

#[tokio::test]
async fn a_fork_server_that_hangs_is_followed_by_another_while_those_it_forked_live_on() {
    let Some(cluster) = cluster(Setup::default()).await else {
        return;
    };
    let (_owner, workers) = start(&cluster, "independent", 1, "worker.py").await;
    let (first, hung) = (&workers[0], server_of(&workers[0]));

    kill(hung, Signal::STOP);
    let scaled = cluster
        .tether()
        .run(&["pool", "scale", "digits", "3"])
        .await;
    assert_eq!(scaled.code, Some(0), "{}", scaled.err);

    // Two waited for it. Both are told, and have others in their places.
    for death in deaths(&cluster, 2).await {
        assert_eq!(death["cause"], "SPAWN_FAILED", "{death}");
        let detail = death["detail"].as_str().unwrap();
        assert!(detail.contains("does not answer"), "{detail}");
    }
    let now = ready_without(&cluster, &[], 3).await;
    let (old, new): (Vec<_>, Vec<_>) = now.iter().partition(|worker| worker.pid == first.pid);
    assert_eq!((old.len(), new.len()), (1, 2), "{now:?}");
    assert_eq!(server_of(old[0]), hung);
    assert_ne!(server_of(new[0]), hung);
    assert_eq!(server_of(new[0]), server_of(new[1]));
    answers(&cluster).await;

    // With the last of its workers it goes, stopped as it is.
    kill(first.pid, Signal::KILL);
    let now = ready_without(&cluster, &[first], 3).await;
    assert!(now.iter().all(|worker| server_of(worker) != hung));
    eventually("the one that hangs is ended", async || {
        (!Path::new(&format!("/proc/{hung}")).exists()).then_some(())
    })
    .await;
    assert_eq!(deaths(&cluster, 3).await.len(), 3);
}

#[tokio::test]
async fn the_next_agent_takes_over_the_workers_with_their_server_and_forks_more_of_it() {
    let Some(mut cluster) = cluster(Setup::default()).await else {
        return;
    };
    let (_owner, workers) = start(&cluster, "independent", 1, "worker.py").await;
    let server = server_of(&workers[0]);

    cluster.kill().await;
    cluster.up().await;

    let adopted = ready_without(&cluster, &[], 1).await;
    assert_eq!(adopted[0].pid, workers[0].pid);
    let scaled = cluster
        .tether()
        .run(&["pool", "scale", "digits", "3"])
        .await;
    assert_eq!(scaled.code, Some(0), "{}", scaled.err);
    for worker in ready_without(&cluster, &[], 3).await {
        assert_eq!(server_of(&worker), server);
    }
    kill(workers[0].pid, Signal::SEGV);
    let death = deaths(&cluster, 1).await.remove(0);
    assert_eq!(
        (&death["cause"], &death["signal"]),
        (&"SIGNALED".into(), &11.into()),
        "{death}"
    );
    answers(&cluster).await;
}

#[tokio::test]
async fn a_coupled_pool_is_gone_with_its_server_when_its_owner_is_killed() {
    let Some(cluster) = cluster(Setup::default()).await else {
        return;
    };
    let (mut owner, _) = start(&cluster, "coupled", 2, DAEMON).await;
    settled(&cluster, 5).await;

    owner.kill().await;

    let gone = cluster.no_orphans().await;
    assert!(gone < SEEN, "{gone:?}");
    for death in deaths(&cluster, 2).await {
        assert_eq!(death["cause"], "OWNER_GONE", "{death}");
    }
}

#[tokio::test]
async fn a_coupled_pool_is_gone_with_its_server_when_the_agent_is_killed() {
    let Some(mut cluster) = cluster(Setup::default()).await else {
        return;
    };
    let (_owner, _) = start(&cluster, "coupled", 2, DAEMON).await;
    settled(&cluster, 5).await;

    cluster.kill().await;

    let gone = cluster.no_orphans().await;
    assert!(gone < SEEN, "{gone:?}");
}

#[tokio::test]
async fn nothing_is_left_when_agent_keepers_and_server_are_killed_in_one_instant() {
    let Some(mut cluster) = cluster(Setup::default()).await else {
        return;
    };
    let (_owner, workers) = start(&cluster, "independent", 3, DAEMON).await;
    settled(&cluster, 7).await;
    let nodes = cluster.tether().json(&["nodes"]).await;
    let mut all = vec![cluster.pid(), server_of(&workers[0])];
    all.extend(shims(&cluster).into_iter().map(|(_, pid)| pid));
    assert_eq!(all.len(), 6);

    signal_all(&all, Signal::KILL);

    cluster.gone().await;
    if nodes[0]["guarantee"] != "G1" {
        // Without a namespace the daemons are the next agent's to end.
        cluster.up().await;
        ready_without(&cluster, &workers.iter().collect::<Vec<_>>(), 3).await;
        return;
    }
    let gone = cluster.no_orphans().await;
    assert!(gone < SEEN, "{gone:?}");
}

#[tokio::test]
async fn a_lease_ends_workers_although_everything_is_stopped() {
    let setup = Setup::default()
        .set("lease.node_ttl", "6s")
        .set("lease.node_beat", "500ms");
    let Some(cluster) = cluster(setup).await else {
        return;
    };
    let (_owner, workers) = start(&cluster, "independent", 2, "worker.py").await;
    let mut all = vec![cluster.pid(), server_of(&workers[0])];
    all.extend(workers.iter().map(|worker| worker.pid));
    all.extend(shims(&cluster).into_iter().map(|(_, pid)| pid));

    signal_all(&all, Signal::STOP);

    let early = eventually_within(Duration::from_secs(4), async || {
        cluster.traces().find().is_empty().then_some(())
    });
    assert!(early.await.is_none(), "it ended before its lease");
    let gone = cluster.no_orphans().await;
    assert!(gone < Duration::from_secs(4), "{gone:?} after 4 s");
    kill(cluster.pid(), Signal::CONT);
}

#[tokio::test]
async fn a_death_tells_its_exit_code_and_what_was_measured() {
    let Some(cluster) = cluster(Setup::default()).await else {
        return;
    };
    let script = "unruly.py --daemonize-child --exit-after 1 --exit-code 7";
    let (_owner, _) = start(&cluster, "coupled", 1, script).await;

    let death = deaths(&cluster, 1).await.remove(0);

    assert_eq!(
        (&death["cause"], &death["exit_code"]),
        (&"EXITED".into(), &7.into()),
        "{death}"
    );
    assert_eq!(death["measures"]["proof"], "cgroup", "{death}");
    assert_eq!(death["measures"]["reaped"], 1, "{death}");
    assert!(
        death["measures"]["max_rss_kib"].as_u64() > Some(10_000),
        "{death}"
    );
    assert!(
        death["stderr_tail"].as_str().unwrap().contains("serving"),
        "{death}"
    );
}

#[tokio::test]
async fn an_import_that_fails_is_told_with_its_traceback_and_not_tried_for_ever() {
    let Some(cluster) = cluster(Setup::default()).await else {
        return;
    };
    let broken = "forked_from = { imports = [\"grpc\", \"no_such_module\"] }";
    let file = cluster.pool_file("digits", "coupled", 2, "worker.py", broken, "");

    let _owner = Owner::start(&cluster, "beam", &["--file", &file.display().to_string()]);

    for death in deaths(&cluster, 2).await {
        assert_eq!(death["cause"], "SPAWN_FAILED", "{death}");
        let detail = death["detail"].as_str().unwrap();
        assert!(
            detail.ends_with("No module named 'no_such_module'"),
            "{detail}"
        );
        assert!(
            death["stderr_tail"].as_str().unwrap().contains("Traceback"),
            "{death}"
        );
    }
    let given_up = eventually("both are given up", async || {
        let workers = cluster.workers("digits").await;
        let given_up = |it: &Worker| it.phase() == WorkerPhase::CrashLoop;
        (workers.len() == 2 && workers.iter().all(given_up)).then_some(())
    });
    given_up.await;
    assert_eq!(deaths(&cluster, 2).await.len(), 2);
    assert_eq!(cluster.traces().find(), []);
}

#[tokio::test]
async fn a_script_that_fails_is_told_as_of_any_worker() {
    let Some(cluster) = cluster(Setup::default()).await else {
        return;
    };
    let once = format!("{FORKED}\n[template.digits.restart]\nmode = \"never\"");
    let file = cluster.pool_file("digits", "coupled", 1, "nowhere.py", &once, "");

    let _owner = Owner::start(&cluster, "beam", &["--file", &file.display().to_string()]);

    let death = deaths(&cluster, 1).await.remove(0);
    assert_eq!(
        (&death["cause"], &death["exit_code"]),
        (&"EXITED".into(), &1.into()),
        "{death}"
    );
    assert!(
        death["stderr_tail"]
            .as_str()
            .unwrap()
            .contains("nowhere.py"),
        "{death}"
    );
}

#[tokio::test]
async fn where_no_cgroup_holds_a_worker_it_is_not_forked_and_told_why() {
    let cluster = Setup::default()
        .set("agent.no_cgroups", "true")
        .start()
        .await;
    let file = cluster.pool_file("digits", "coupled", 1, "worker.py", FORKED, "");

    let _owner = Owner::start(&cluster, "beam", &["--file", &file.display().to_string()]);

    let death = deaths(&cluster, 1).await.remove(0);
    assert_eq!(death["cause"], "SPAWN_FAILED");
    let detail = death["detail"].as_str().unwrap();
    assert!(
        detail.contains("`forked_from`") && detail.contains("`agent.no_cgroups`"),
        "{detail}"
    );
    assert_eq!(cluster.traces().find(), []);
}

#[tokio::test]
async fn what_no_fork_can_have_is_refused_before_anything_starts() {
    let cluster = Cluster::start().await;
    let file: PathBuf = cluster.pool_file(
        "digits",
        "coupled",
        1,
        "worker.py",
        "forked_from = { imports = [\"grpc\"] }\nprocess = { pty = true }",
        "",
    );
    let file = file.display().to_string();

    let ran = cluster
        .tether()
        .run(&["pool", "apply", "--owner", "ops", "--file", &file])
        .await;

    assert_ne!(ran.code, Some(0));
    assert!(ran.err.contains("`process.pty`"), "{}", ran.err);
}
