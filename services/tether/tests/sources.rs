//! A pool that no agent runs, from its file over discovery and the gateway to the command line and to calls.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;
use tether_discovery::{Config, Discovery, PoolSource};
use tether_gateway::Gateway;
use tether_kit::{channel, listen, serve};
use tether_store::MemoryStore;
use tether_types::Address;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status, transport::Server};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// Nothing here takes as long, on a busy machine either.
const DEADLINE: Duration = Duration::from_secs(60);

/// Discovery and a gateway, with a pool `rank` that is in a file.
struct Site {
    folder: TempDir,
    stop: CancellationToken,
}

impl Site {
    async fn start(file: &str, list: &str, pool: PoolSource) -> Self {
        let site = Self {
            folder: tempfile::tempdir().unwrap(),
            stop: CancellationToken::new(),
        };
        site.write(file, list);
        let pool = PoolSource {
            source: format!("file://{}", site.folder.path().join(file).display()),
            ..pool
        };
        let config = Config {
            pools: BTreeMap::from([("rank".to_owned(), pool)]),
            ..Config::default()
        };
        let discovery = Discovery::build(&config, Arc::new(MemoryStore::new())).unwrap();
        let listener = listen::bind(&site.at("discovery"), false).await.unwrap();
        let server = serve::Server::new(tether_proto::DESCRIPTORS).service(discovery.service());
        tokio::spawn(server.serve(listener, site.stop.clone(), Duration::ZERO));
        tokio::spawn(discovery.run(site.stop.clone()));
        let listener = listen::bind(&site.at("gateway"), false).await.unwrap();
        let arbiter = vec![site.at("arbiter")];
        let gateway = Gateway::build(Default::default(), arbiter, site.at("discovery"));
        tokio::spawn(gateway.serve(vec![listener], site.stop.clone()));
        site
    }

    fn at(&self, name: &str) -> Address {
        Address::Unix(self.folder.path().join(format!("{name}.sock")))
    }

    fn write(&self, file: &str, list: &str) {
        let next = self.folder.path().join("next");
        fs::write(&next, list).unwrap();
        fs::rename(next, self.folder.path().join(file)).unwrap();
    }

    /// What the command line says, for people or programs, and what it notes beside that.
    async fn tether(&self, arguments: &[&str]) -> (String, String) {
        let gateway = self.at("gateway").to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tether"));
        command
            .env_remove("TETHER_CONFIG")
            .env_remove("TETHER_LOG")
            .args(["--gateway", &gateway])
            .args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr))
    }

    /// Asks again until what is said is as it should be.
    async fn says(&self, arguments: &[&str], wanted: impl Fn(&str, &str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let (said, noted) = self.tether(arguments).await;
            if wanted(&said, &noted) {
                return said;
            }
            assert!(begun.elapsed() < DEADLINE, "{arguments:?}: {said}{noted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The one worker of the pool, as `rank/SLOT.INCARNATION`, where it is another one than that.
    async fn worker(&self, other_than: &str) -> String {
        let name = |said: &str| {
            let rows: Value = serde_json::from_str(said).ok()?;
            let row = rows.as_array()?.first()?;
            let (worker, incarnation) = (row["worker"].as_str()?, &row["incarnation"]);
            Some(format!("{worker}.{incarnation}")).filter(|name| name != other_than)
        };
        let asked = ["--output", "json", "endpoints", "rank"];
        let said = self.says(&asked, |said, _| name(said).is_some()).await;
        name(&said).unwrap()
    }

    /// A call to this worker and no other.
    async fn call(&self, worker: &str) -> Result<(), Status> {
        let mut client = HealthClient::new(channel::connect(&self.at("gateway")));
        let mut request = Request::new(HealthCheckRequest::default());
        let metadata = request.metadata_mut();
        metadata.insert("tether-worker", worker.parse().unwrap());
        client.check(request).await.map(drop)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn list(numbers: std::ops::RangeInclusive<u8>) -> String {
    numbers.fold(String::new(), |mut list, number| {
        writeln!(list, "10.0.0.{number}:1").unwrap();
        list
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_of_a_source_is_left_out_is_shown_with_why_until_it_is_mended() {
    let bad = "10.0.0.1:1\n10.0.0.2:0\n0.0.0.0:1\n";
    let site = Site::start("list", bad, PoolSource::default()).await;
    let one_serves = |said: &str| said.contains("10.0.0.1:1") && !said.contains("0.0.0.0");
    for asked in [
        &["endpoints"][..],
        &["endpoints", "rank"],
        &["discover", "rank"],
    ] {
        site.says(asked, |said, noted| {
            let list = format!("`file://{}/list`", site.folder.path().display());
            let parts = [
                "2 entries of",
                &list,
                "pool `rank`",
                "port 0",
                "`0.0.0.0:1`",
            ];
            one_serves(said) && parts.iter().all(|part| noted.contains(part))
        })
        .await;
    }

    site.write("list", "10.0.0.1:1\n10.0.0.2:1\n");
    site.says(&["endpoints", "rank"], |said, noted| {
        said.contains("10.0.0.2:1") && noted.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_held_is_shown_with_why_and_what_ends_it_and_what_is_old_with_its_age() {
    let pool = PoolSource {
        hold: Duration::from_secs(600),
        ..PoolSource::default()
    };
    let site = Site::start("list", &list(1..=8), pool).await;
    let count = |said: &str, word: &str| said.lines().filter(|line| line.contains(word)).count();
    site.says(&["endpoints", "rank"], |said, noted| {
        count(said, "serving") == 8 && noted.is_empty()
    })
    .await;

    site.write("list", &list(1..=2));

    for command in [
        &["endpoints"][..],
        &["endpoints", "rank"],
        &["discover", "rank"],
    ] {
        site.says(command, |said, noted| {
            (count(said, " held "), count(said, "serving")) == (6, 2)
                && noted.contains("6 endpoints of pool `rank` are held")
                && noted.contains("`discovery.pools.rank.hold`")
        })
        .await;
    }

    site.write("list", "<html>sorry</html>\n");
    site.says(&["endpoints", "rank"], |said, noted| {
        count(said, "10.0.0.") == 8
            && noted.contains("a source of pool `rank` has not answered for")
            && noted.contains("none of its 1 entries can be called")
            && noted.contains("<html>sorry")
    })
    .await;
    // Nobody is an answer.
    site.write("list", "# nobody\n");
    site.says(&["endpoints", "rank"], |said, noted| {
        count(said, "10.0.0.") == 0 && noted.is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_for_one_worker_reaches_another_that_was_given_its_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (reporter, service) = tonic_health::server::health_reporter();
    let status = tonic_health::ServingStatus::Serving;
    reporter.set_service_status("", status).await;
    let server = Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let is = |identity: u32| {
        format!("[{{\"address\": \"{address}\", \"identity\": \"pod-{identity}\"}}]\n")
    };
    let site = Site::start("list.json", &is(0), PoolSource::default()).await;
    let mut before = String::new();

    // Numbers have no order: of so many changes some go up and some down.
    for identity in 1..8 {
        let worker = site.worker(&before).await;
        let begun = Instant::now();
        while let Err(status) = site.call(&worker).await {
            assert!(begun.elapsed() < DEADLINE, "{worker}: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if !before.is_empty() {
            let status = site.call(&before).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{before}, and now {worker}");
            assert!(
                status.message().contains("another one serves"),
                "{status:?}"
            );
        }
        before = worker;
        site.write("list.json", &is(identity));
    }
}
