//! The four services as four processes on a real etcd.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{path::Path, process::Stdio};

use tether_client::Client;
use tether_etcd_cluster::{Cluster, Setup};
use tether_proto::common::WorkerPhase;
use tether_tests::{
    Tether, Traces, digits::PredictRequest, digits_client, eventually, held_out, kill, program,
};
use tokio::process::{Child, Command};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

struct Apart {
    dir: tempfile::TempDir,
    _etcd: Cluster,
}

impl Apart {
    async fn new() -> Self {
        Self::with("").await
    }

    /// With more in its configuration.
    async fn with(more: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("tether-")
            .tempdir()
            .unwrap();
        let etcd = Setup::members(1).start().await;
        let text = format!(
            "store = \"{}\"\n[listen]\nruntime_dir = {:?}\ngateway = [\"unix:{}\"]\n[agent]\nnode = \"node-1\"\n{more}\n",
            etcd.url("tether"),
            dir.path().display().to_string(),
            dir.path().join("gateway.sock").display(),
        );
        std::fs::write(dir.path().join("tether.toml"), text).unwrap();
        Self { dir, _etcd: etcd }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, service: &str) -> Child {
        self.start_with(service, &[])
    }

    /// With settings of its own.
    fn start_with(&self, service: &str, sets: &[String]) -> Child {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path("log"))
            .unwrap();
        Command::new(program(service))
            .arg("--config")
            .arg(self.path("tether.toml"))
            .args(sets.iter().flat_map(|set| ["--set", set]))
            .stdin(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    fn gateway(&self) -> String {
        format!("unix:{}", self.path("gateway.sock").display())
    }

    fn client(&self) -> Client {
        Client::connect(&self.gateway().parse().unwrap())
    }

    /// Starts the three that are not the arbiter, and waits until all four work.
    async fn start_others(&self) -> [Child; 3] {
        let others = ["tether-discovery", "tether-agent", "tether-gateway"];
        let others = others.map(|service| self.start(service));
        let client = self.client();
        eventually("all four have found each other", async || {
            let events = client
                .workers()
                .watch_events(tether_proto::worker::WatchEventsRequest::default())
                .await;
            (events.is_ok() && self.log().contains("Node joined")).then_some(())
        })
        .await;
        others
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        tether_tests::tidy(self.dir.path());
    }
}

fn pool_file(dir: &Path, size: u32, template: &str) -> std::path::PathBuf {
    let text = format!(
        "[template.digits]\ncommand = {:?}\nargs = [\"worker.py\"]\ncwd = {:?}\n{template}\n[pool.digits]\ntemplate = \"digits\"\nmode = \"independent\"\nsize = {size}\n",
        tether_tests::python().display().to_string(),
        tether_tests::example("digits").display().to_string(),
    );
    let path = dir.join("pool.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test]
async fn four_processes_on_etcd_do_the_main_job_and_an_arbiter_that_is_killed_costs_nothing() {
    let apart = Apart::new().await;
    let mut arbiter = apart.start("tether-arbiter");
    let _others = apart.start_others().await;
    let client = apart.client();

    let file = pool_file(apart.dir.path(), 2, "").display().to_string();
    let mut owner = Command::new(program("demo-client"))
        .args(["--gateway", &apart.gateway()])
        .args(["--owner", "beam", "--file", &file])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pids = async || {
        let request = tether_proto::worker::ListWorkersRequest {
            pool: "digits".into(),
        };
        let answer = client
            .workers()
            .list_workers(request)
            .await
            .ok()?
            .into_inner();
        let ready = answer
            .workers
            .iter()
            .filter(|worker| worker.phase() == WorkerPhase::Ready);
        let pids: Vec<_> = ready.map(|worker| worker.pid).collect();
        (pids.len() == 2).then_some(pids)
    };
    let (before, _) = eventually("both workers are ready", pids).await;
    let digit = held_out(1).remove(0);
    let mut digits = digits_client(client.channel(), "digits");
    digits
        .predict(PredictRequest {
            pixels: digit.pixels.clone(),
        })
        .await
        .expect("a worker answers");

    kill(arbiter.id().unwrap(), rustix::process::Signal::KILL);
    arbiter.wait().await.unwrap();
    // Calls do not pass the arbiter.
    digits
        .predict(PredictRequest {
            pixels: digit.pixels.clone(),
        })
        .await
        .expect("a worker still answers");
    let _arbiter = apart.start("tether-arbiter");

    let (after, _) = eventually("the new arbiter knows the same workers", pids).await;
    assert_eq!(after, before);
    digits
        .predict(PredictRequest {
            pixels: digit.pixels,
        })
        .await
        .expect("a worker answers again");
    // The session lives on: its owner can say goodbye to the new arbiter.
    kill(owner.id().unwrap(), rustix::process::Signal::TERM);
    assert_eq!(owner.wait().await.unwrap().code(), Some(0));

    client
        .pools()
        .delete_pool(tether_proto::pool::DeletePoolRequest {
            name: "digits".into(),
            ..Default::default()
        })
        .await
        .unwrap();
    let traces = Traces::of(apart.dir.path());
    eventually("nothing is left", async || {
        traces.find().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn calls_that_were_counted_before_the_arbiter_was_killed_count_after_it() {
    let apart = Apart::new().await;
    let mut arbiter = apart.start("tether-arbiter");
    let _others = apart.start_others().await;
    let tether = Tether::at(&apart.gateway());
    let template =
        "[template.digits.stop]\ngrace = \"500ms\"\n[template.digits.recycle]\nmax_calls = 30";
    let file = pool_file(apart.dir.path(), 1, template);
    let file = file.display().to_string();
    let apply = ["pool", "apply", "--owner", "ops", "--file", &file];
    assert_eq!(tether.run(&apply).await.code, Some(0));
    let digit = held_out(1).remove(0);
    let mut client = digits_client(apart.client().channel(), "digits");
    let mut predict = async || {
        let pixels = digit.pixels.clone();
        client.predict(PredictRequest { pixels }).await
    };
    eventually("its worker answers", async || predict().await.ok()).await;
    let kinds = async |kind: &str| {
        let events = tether.json_lines(&["events"]).await.into_iter();
        events
            .filter(|event| event["kind"] == kind)
            .collect::<Vec<_>>()
    };

    for _ in 0..19 {
        predict().await.expect("its worker answers");
    }
    kill(arbiter.id().unwrap(), rustix::process::Signal::KILL);
    arbiter.wait().await.unwrap();
    let _arbiter = apart.start("tether-arbiter");
    for _ in 0..15 {
        predict().await.expect("calls do not pass the arbiter");
    }

    // As many as two thirds of them were before.
    let (deaths, _) = eventually("it is replaced", async || {
        let running = tether.run(&["events"]).await.code == Some(0);
        let deaths = if running {
            kinds("WORKER_DIED").await
        } else {
            Vec::new()
        };
        (!deaths.is_empty()).then_some(deaths)
    })
    .await;
    assert_eq!(deaths[0]["death"]["cause"], "RECYCLED", "{deaths:?}");
    let removed = tether.run(&["pool", "rm", "digits"]).await;
    assert_eq!(removed.code, Some(0), "{}", removed.err);
    let traces = Traces::of(apart.dir.path());
    eventually("nothing is left", async || {
        traces.find().is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_gateway_that_is_left_alone_gives_no_call_to_a_worker_whose_permission_is_over() {
    let lease = "[lease]\nha = \"single\"\nnode_ttl = \"4s\"\nnode_beat = \"1s\"";
    let apart = Apart::with(lease).await;
    let mut arbiter = apart.start("tether-arbiter");
    let [mut discovery, mut agent, _gateway] = apart.start_others().await;
    let client = apart.client();
    let file = pool_file(apart.dir.path(), 1, "").display().to_string();
    let tether = Tether::at(&apart.gateway());
    let policy = "[pool.digits.policy]\npartition_grace = \"1s\"\n";
    let pool = std::fs::read_to_string(&file).unwrap() + policy;
    std::fs::write(&file, pool).unwrap();
    let applied = tether
        .run(&["pool", "apply", "--owner", "beam", "--file", &file])
        .await;
    assert_eq!(applied.code, Some(0), "{}", applied.err);
    let pixels = held_out(1).remove(0).pixels;
    let predict = async || {
        let mut digits = digits_client(client.channel(), "digits");
        let request = PredictRequest {
            pixels: pixels.clone(),
        };
        digits.predict(request).await
    };
    eventually("it serves", async || predict().await.ok()).await;
    let fates = apart.dir.path().join("agent.sock");
    eventually("the gateway follows the agent", async || {
        // All that are connected to it.
        let sockets = std::fs::read_to_string("/proc/net/unix").ok()?;
        let connected = sockets
            .lines()
            .filter(|line| line.ends_with(&*fates.to_string_lossy()));
        (connected.count() > 1).then_some(())
    })
    .await;

    let alone = std::time::Instant::now();
    for child in [&mut agent, &mut arbiter, &mut discovery] {
        kill(child.id().unwrap(), rustix::process::Signal::KILL);
        child.wait().await.unwrap();
    }
    // Nobody is left to say that the worker ended with its permission: calls that fail for its end say nothing of a lease.
    let (refused, _) = eventually("it is refused for its lease", async || {
        let failed = predict().await.err()?;
        let reason = tether_proto::reason_of(&failed);
        (reason == Some(tether_types::Reason::LeaseExpired)).then_some(failed)
    })
    .await;
    println!("refused after {:?}: {}", alone.elapsed(), refused.message());
    assert!(alone.elapsed() < std::time::Duration::from_secs(8));
}

/// What a service answers at its admin port: whether it lives, and whether it serves.
async fn probed(socket: &Path) -> (bool, bool) {
    let address = format!("unix:{}", socket.display()).parse().unwrap();
    let channel = Client::connect(&address).channel();
    let ask = async |service: &str| {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = HealthClient::new(channel.clone()).check(request).await;
        answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::Serving)
    };
    (ask("liveness").await, ask("readiness").await)
}

#[tokio::test]
async fn each_service_says_at_its_admin_port_when_it_really_serves() {
    let apart = Apart::new().await;
    let probes = |service: &str| apart.path(&format!("{service}.admin"));
    let start = |service: &str| {
        let at = format!("admin.listen=unix:{}", probes(service).display());
        apart.start_with(service, &[at])
    };
    let until = async |service: &str, wanted| {
        eventually(&format!("{service} says {wanted:?}"), async || {
            (probed(&probes(service)).await == wanted).then_some(())
        })
        .await;
    };

    // Without an arbiter there is nothing to join and nobody to ask; both live.
    let _agent = start("tether-agent");
    let _gateway = start("tether-gateway");
    until("tether-agent", (true, false)).await;
    until("tether-gateway", (true, false)).await;
    let own = probed(&apart.path("agent.sock")).await;
    assert_eq!(own, (true, false), "its service port says the same");

    let mut arbiter = start("tether-arbiter");
    let _discovery = start("tether-discovery");
    for service in [
        "tether-arbiter",
        "tether-discovery",
        "tether-agent",
        "tether-gateway",
    ] {
        until(service, (true, true)).await;
    }
    for socket in [
        "arbiter.sock",
        "discovery.sock",
        "agent.sock",
        "gateway.sock",
    ] {
        let own = probed(&apart.path(socket)).await;
        assert_eq!(own, (true, true), "{socket} says the same");
    }

    arbiter.kill().await.unwrap();
    until("tether-gateway", (true, false)).await;
    assert_eq!(
        probed(&probes("tether-agent")).await,
        (true, true),
        "it holds its lease still"
    );
}

#[tokio::test]
async fn an_arbiter_that_stands_by_is_ready_although_another_leads() {
    let apart = Apart::new().await;
    let start = |name: &str| {
        let sets = [
            format!(
                "admin.listen=unix:{}",
                apart.path(&format!("{name}.admin")).display()
            ),
            format!(
                "listen.arbiter=[\"unix:{}\"]",
                apart.path(&format!("{name}.sock")).display()
            ),
        ];
        apart.start_with("tether-arbiter", &sets)
    };
    let _leads = start("first");
    eventually("it leads", async || {
        (probed(&apart.path("first.sock")).await == (true, true)).then_some(())
    })
    .await;

    let _stands_by = start("second");

    eventually("it stands by", async || {
        (probed(&apart.path("second.admin")).await == (true, true)).then_some(())
    })
    .await;
    let own = probed(&apart.path("second.sock")).await;
    assert_eq!(own, (true, false), "calls are for the other");
}
