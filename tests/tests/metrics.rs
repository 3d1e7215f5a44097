//! Metrics of the agent, read from a real `tether up` while workers live and die.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{collections::BTreeMap, fs, path::Path, process::Stdio};

use rustix::process::Signal;
use tether_tests::{Cluster, DEADLINE, Owner, Setup, eventually, kill, program};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    process::Command,
    time::timeout,
};

/// Every series with its value.
type Scrape = BTreeMap<String, f64>;

/// Reads the metrics of a cluster that serves them on a free port.
async fn scrape(cluster: &Cluster) -> Scrape {
    let log = cluster.log();
    let line = log.lines().find(|line| line.contains("Metrics are served"));
    let (_, rest) = line.unwrap().split_once("address=").unwrap();
    let address = rest.split_whitespace().next().unwrap();
    series(&read(TcpStream::connect(address).await.unwrap()).await)
}

/// Asks once, as any reader would.
async fn read(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) -> String {
    let request = b"GET /metrics HTTP/1.1\r\nhost: tether\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    let answered = timeout(DEADLINE, stream.read_to_string(&mut answer));
    answered.await.expect("it answers in time").unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    text.to_owned()
}

fn series(text: &str) -> Scrape {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn on_a_port() -> Setup {
    Setup::default().set("metrics.listen", "127.0.0.1:0")
}

/// A pool of one worker that runs a shell script and is ready at once.
fn pool(cluster: &Cluster, command: &str, script: &str) -> std::path::PathBuf {
    let text = format!(
        "[template.own]\ncommand = {command:?}\nargs = [\"-c\", {script:?}]\n[template.own.readiness]\nkind = \"started\"\n[pool.own]\ntemplate = \"own\"\nmode = \"coupled\"\n",
    );
    let file = cluster.dir().join("own.toml");
    fs::write(&file, text).unwrap();
    file
}

/// The number of a line of `/proc/PID/status`.
fn status_of(pid: u32, key: &str) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn starts_states_and_deaths_are_counted_as_they_happen() {
    let cluster = on_a_port().start().await;
    let before = scrape(&cluster).await;
    assert_eq!(before[r#"tether_workers{state="ready"}"#], 0.0);
    assert_eq!(before["tether_worker_starts_total"], 0.0);
    assert_eq!(
        before[r#"tether_worker_deaths_total{cause="SIGNALED"}"#],
        0.0
    );

    let file = pool(&cluster, "sh", "exec sleep 600");
    let owner = Owner::with_pool(&cluster, "beam", &file).await;
    let running = scrape(&cluster).await;
    assert_eq!(running[r#"tether_workers{state="ready"}"#], 1.0);
    assert_eq!(running["tether_worker_starts_total"], 1.0);
    assert_eq!(running["tether_worker_start_duration_seconds_count"], 1.0);
    let took = running["tether_worker_start_duration_seconds_sum"];
    assert!(took > 0.0 && took < DEADLINE.as_secs_f64(), "{took}");
    assert!(running["tether_heartbeat_rtt_seconds_count"] > 0.0);
    let age = running["tether_heartbeat_age_seconds"];
    assert!((0.0..DEADLINE.as_secs_f64()).contains(&age), "{age}");

    kill(cluster.workers("own").await[0].pid, Signal::KILL);
    let (after, _) = eventually("the death and the next start are counted", async || {
        let now = scrape(&cluster).await;
        let ready = now[r#"tether_workers{state="ready"}"#];
        (now["tether_worker_starts_total"] == 2.0 && ready == 1.0).then_some(now)
    })
    .await;
    assert_eq!(
        after[r#"tether_worker_deaths_total{cause="SIGNALED"}"#],
        1.0
    );

    drop(owner);
    eventually("nothing is spoken for any more", async || {
        let now = scrape(&cluster).await;
        let workers = now
            .iter()
            .filter(|(name, _)| name.starts_with("tether_workers{"));
        (workers.map(|(_, count)| *count).sum::<f64>() == 0.0).then_some(())
    })
    .await;
    let last = scrape(&cluster).await;
    assert_eq!(
        last[r#"tether_worker_deaths_total{cause="OWNER_GONE"}"#],
        1.0
    );
}

#[tokio::test]
async fn the_level_of_guarantee_is_the_one_that_nodes_are_listed_with() {
    for (no_namespaces, reduced) in [("false", 0.0), ("true", 1.0)] {
        let setup = on_a_port().set("agent.no_namespaces", no_namespaces);
        let cluster = setup.start().await;

        let nodes = cluster.tether().json(&["nodes"]).await;
        let scraped = scrape(&cluster).await;

        let level = nodes[0]["guarantee"].as_str().unwrap();
        let levels: Vec<_> = scraped
            .iter()
            .filter(|(name, _)| name.starts_with("tether_agent_guarantee_level{"))
            .collect();
        let expected = format!("tether_agent_guarantee_level{{level=\"{level}\"}}");
        assert_eq!(levels, [(&expected, &1.0)]);
        // Where a level without namespaces is all there is, nothing is held back.
        let has_namespaces = cluster.tether().json(&["doctor"]).await["means"]
            .as_array()
            .unwrap()
            .iter()
            .any(|means| means[0] == "PID namespaces" && means[1] == true);
        let reduced = if has_namespaces { reduced } else { 0.0 };
        assert_eq!(scraped["tether_agent_guarantee_reduced"], reduced);
    }
}

#[tokio::test]
async fn a_start_that_fails_and_an_orphan_that_is_found_are_counted_by_what_they_were() {
    let setup = on_a_port()
        .set("agent.no_namespaces", "true")
        .set("agent.no_cgroups", "true");
    let cluster = setup.start().await;
    let missing = pool(&cluster, "/nonexistent/program", "");
    let failing = Owner::start(&cluster, "one", &["--file", &missing.display().to_string()]);
    eventually("the failed start is counted", async || {
        let now = scrape(&cluster).await;
        let failed = now[r#"tether_spawn_failures_total{stage="exec"}"#];
        let died = now[r#"tether_worker_deaths_total{cause="SPAWN_FAILED"}"#];
        (failed >= 1.0 && failed == died).then_some(())
    })
    .await;
    assert_eq!(scrape(&cluster).await["tether_worker_starts_total"], 0.0);
    drop(failing);
    eventually("its pool is forgotten", async || {
        let pools = cluster.tether().json(&["pool", "ls"]).await;
        pools.as_array()?.is_empty().then_some(())
    })
    .await;

    let daemon = cluster.dir().join("daemon");
    let script = format!("setsid sleep 600 & echo $! > {}; wait", daemon.display());
    let _owner = Owner::with_pool(&cluster, "two", &pool(&cluster, "sh", &script)).await;
    eventually("the worker has a child", async || {
        let pid = fs::read_to_string(&daemon)
            .ok()?
            .trim()
            .parse::<u32>()
            .ok()?;
        Path::new(&format!("/proc/{pid}")).exists().then_some(())
    })
    .await;
    let shim = status_of(cluster.workers("own").await[0].pid, "PPid:");
    let zygote = status_of(shim, "PPid:");
    // Awake, it would end the orphan before anybody had to search for it.
    kill(zygote, Signal::STOP);
    kill(shim, Signal::KILL);

    eventually("the orphan is counted", async || {
        let now = scrape(&cluster).await;
        (now[r#"tether_orphans_reaped_total{how="search"}"#] >= 1.0).then_some(())
    })
    .await;
    kill(zygote, Signal::CONT);
}

#[tokio::test]
async fn metrics_can_be_read_from_a_socket_and_nothing_is_left_of_it() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("metrics.sock");
    let address = format!("unix:{}", socket.display());
    let mut cluster = Setup::default()
        .set("metrics.listen", &address)
        .start()
        .await;

    let scraped = series(&read(UnixStream::connect(&socket).await.unwrap()).await);

    let version = format!(
        "tether_build_info{{version=\"{}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    assert_eq!(scraped[&version], 1.0);
    assert_eq!(cluster.stop().await, Some(0));
    assert!(!socket.exists());
}

#[tokio::test]
async fn an_address_that_is_taken_or_open_to_others_is_refused_by_its_key() {
    let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = holder.local_addr().unwrap().to_string();
    let refused = async |name: &str, first: &[&str], at: &str| {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new(program(name))
            .args(first)
            .args([
                "--set",
                &format!("listen.runtime_dir={}", dir.path().display()),
            ])
            .args(["--set", &format!("metrics.listen={at}")])
            .env_remove("TETHER_CONFIG")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(DEADLINE, output).await.expect("it ends").unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };

    for (name, first) in [
        ("tether", &["up", "--store", "memory:"][..]),
        ("tether-agent", &[]),
    ] {
        let (code, text) = refused(name, first, &taken).await;
        assert_eq!(code, Some(1), "{text}");
        for part in [
            "`metrics.listen`",
            "already in use",
            "listen elsewhere",
            &taken,
        ] {
            assert!(text.contains(part), "`{part}` is missing in: {text}");
        }
        let (code, text) = refused(name, first, "0.0.0.0:9464").await;
        assert_eq!(code, Some(78), "{text}");
        assert!(
            text.contains("`metrics.listen`") && text.contains("insecure"),
            "{text}"
        );
    }
}
