//! Bad input: each gives an error that names the cause and what to do, and leaves no process behind.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _, path::Path, process::Stdio};

use rustix::process::Signal;
use tether_tests::{
    Cluster, DEADLINE, Owner, Process, Ran, Tether, digits::PredictRequest, digits_client,
    eventually, kill, mentioning, program,
};
use tokio::{process::Command, time::timeout};
use tonic::Code;

/// What is said, on either stream.
fn said(ran: &Ran) -> String {
    format!("{}{}", ran.out, ran.err)
}

/// Runs `tether run` on a pool file that cannot work, and sees nothing left behind.
async fn run_fails(cluster: &Cluster, file: &Path) -> String {
    let path = file.display().to_string();
    let tether = cluster.tether();
    let ran = timeout(DEADLINE, tether.run(&["run", "-f", &path]))
        .await
        .expect("it gives up in time");
    assert!(!matches!(ran.code, Some(0) | None), "{}", said(&ran));
    cluster.no_orphans().await;
    said(&ran)
}

fn names(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in: {text}");
    }
}

/// Starts a server of ours that is to refuse to start.
async fn refuses_to_start(name: &str, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program(name))
        .args(args)
        .env_remove("TETHER_CONFIG")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(DEADLINE, output)
        .await
        .expect("it ends")
        .expect("it can be started");
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// What a refused start must not add to: the processes that name its directory, and the sockets in it.
#[derive(Debug, PartialEq, Eq)]
struct Remains {
    processes: Vec<Process>,
    sockets: BTreeSet<String>,
}

impl Remains {
    const NONE: Self = Self {
        processes: Vec::new(),
        sockets: BTreeSet::new(),
    };

    fn of(dir: &Path, runtime: &Path) -> Self {
        // Made only by a start that came that far.
        let entries = std::fs::read_dir(runtime).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_str().unwrap().to_owned());
        Self {
            processes: mentioning(dir),
            sockets: names.filter(|name| name.ends_with(".sock")).collect(),
        }
    }
}

/// Ends the owner, then the services, and sees nothing of either left behind.
async fn ends_with_nothing_left(mut cluster: Cluster, owner: Option<Owner>) {
    if let Some(mut owner) = owner {
        kill(owner.pid(), Signal::TERM);
        assert_eq!(owner.gone().await, Some(0));
    }
    cluster.no_orphans().await;
    assert_eq!(cluster.stop().await, Some(0));
    // A shim may live a moment longer than the agent that heard its last word.
    let (left, _) = eventually("no process names the directory", async || {
        let left = Remains::of(cluster.dir(), &cluster.runtime());
        left.processes.is_empty().then_some(left)
    })
    .await;
    assert_eq!(left, Remains::NONE);
}

#[tokio::test]
async fn a_configuration_with_a_typo_is_refused_at_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tether.toml");
    let runtime = dir.path().join("run");
    std::fs::write(
        &file,
        format!(
            "[lease]\nnode_ttl = \"20s\"\nnode_beet = \"5s\"\n[listen]\nruntime_dir = {runtime:?}\n"
        ),
    )
    .unwrap();

    let path = file.display().to_string();
    for (server, args) in [
        ("tether", vec!["up", "--config", &path]),
        ("tether-arbiter", vec!["--config", &path]),
    ] {
        let (code, text) = refuses_to_start(server, &args).await;
        assert_eq!(code, Some(78), "{text}");
        names(
            &text,
            &["unknown field", "node_beet", "node_beat", "tether.toml:3"],
        );
        assert_eq!(Remains::of(dir.path(), &runtime), Remains::NONE, "{server}");
    }
}

#[tokio::test]
async fn an_unknown_pool_is_named_with_those_there_are() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 1, "worker.py", "", "");
    let owner = Owner::with_pool(&cluster, "beam", &file).await;

    let mut client = digits_client(cluster.client().channel(), "digit");
    let status = client.predict(PredictRequest::default()).await.unwrap_err();

    assert_eq!(status.code(), Code::NotFound);
    names(status.message(), &["`digit`", "digits"]);
    let ran = cluster.tether().run(&["pool", "scale", "digit", "2"]).await;
    assert_eq!(ran.code, Some(1));
    names(&ran.err, &["`digit`", "digits", "UNKNOWN_POOL"]);
    ends_with_nothing_left(cluster, Some(owner)).await;
}

#[tokio::test]
async fn an_unknown_template_is_named_with_what_to_write() {
    let cluster = Cluster::start().await;
    let file = cluster.dir().join("pool.toml");
    std::fs::write(
        &file,
        "[pool.digits]\ntemplate = \"digit\"\nmode = \"coupled\"\n",
    )
    .unwrap();

    let text = run_fails(&cluster, &file).await;

    names(&text, &["`digit`", "[template.digit]", "UNKNOWN_TEMPLATE"]);
    ends_with_nothing_left(cluster, None).await;
}

#[tokio::test]
async fn a_command_that_is_not_there_is_given_up_at_once_with_the_reason() {
    let cluster = Cluster::start().await;
    let file = cluster.dir().join("pool.toml");
    std::fs::write(
        &file,
        "[template.x]\ncommand = \"no-such-python\"\n[pool.x]\ntemplate = \"x\"\nmode = \"coupled\"\n",
    )
    .unwrap();

    let text = run_fails(&cluster, &file).await;

    names(&text, &["`no-such-python` not found on PATH", "given up"]);
    let events = cluster.tether().json_lines(&["events"]).await;
    let deaths: Vec<_> = events
        .iter()
        .filter(|event| event["kind"] == "WORKER_DIED")
        .collect();
    assert_eq!(deaths.len(), 1, "it is not tried again: {deaths:?}");
    assert_eq!(deaths[0]["death"]["cause"], "SPAWN_FAILED");
    ends_with_nothing_left(cluster, None).await;
}

#[tokio::test]
async fn a_worker_that_never_gets_ready_is_stopped_and_so() {
    let cluster = Cluster::start().await;
    let template = "[template.digits.readiness]\ntimeout = \"1500ms\"\n[template.digits.restart]\nmax_restarts = 0\n[template.digits.stop]\ngrace = \"1s\"";
    let file = cluster.pool_file(
        "digits",
        "coupled",
        1,
        "unruly.py --never-ready",
        template,
        "",
    );

    let text = run_fails(&cluster, &file).await;

    names(&text, &["NEVER_READY", "never became ready", "tether logs"]);
    ends_with_nothing_left(cluster, None).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_with_what_to_do() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let listen = format!("listen.gateway=[\"127.0.0.1:{port}\"]");
    let runtime = format!("listen.runtime_dir={}", dir.path().display());

    let (code, text) = refuses_to_start(
        "tether",
        &[
            "up", "--store", "memory:", "--set", &listen, "--set", &runtime,
        ],
    )
    .await;

    assert_eq!(code, Some(1), "{text}");
    names(
        &text,
        &[&format!("127.0.0.1:{port}"), "in use", "listen elsewhere"],
    );
    assert_eq!(Remains::of(dir.path(), dir.path()), Remains::NONE);
}

#[tokio::test]
async fn no_permission_to_run_a_command_is_named_with_what_to_do() {
    let cluster = Cluster::start().await;
    let script = cluster.dir().join("worker.sh");
    std::fs::write(&script, "#!/bin/sh\nsleep 60\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = cluster.dir().join("pool.toml");
    let text = format!(
        "[template.x]\ncommand = {:?}\n[pool.x]\ntemplate = \"x\"\nmode = \"coupled\"\n",
        script.display().to_string()
    );
    std::fs::write(&file, text).unwrap();

    let text = run_fails(&cluster, &file).await;

    names(&text, &["no permission to run", "worker.sh", "chmod +x"]);
    ends_with_nothing_left(cluster, None).await;
}

#[tokio::test]
async fn an_oversized_message_is_refused_with_the_limit_and_the_setting() {
    let cluster = tether_tests::Setup::default()
        .set("gateway.max_message_bytes", "100000")
        .start()
        .await;
    let file = cluster.pool_file("digits", "coupled", 1, "worker.py", "", "");
    let owner = Owner::with_pool(&cluster, "beam", &file).await;

    let mut client = digits_client(cluster.client().channel(), "digits");
    let status = client
        .predict(PredictRequest {
            pixels: vec![1; 200_000],
        })
        .await
        .unwrap_err();

    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    names(status.message(), &["100000", "max_message_bytes"]);
    ends_with_nothing_left(cluster, Some(owner)).await;
}

#[tokio::test]
async fn malformed_metadata_is_refused_by_key_and_value() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "coupled", 1, "worker.py", "", "");
    let owner = Owner::with_pool(&cluster, "beam", &file).await;

    let mut client = digits_client(cluster.client().channel(), "../digits");
    let status = client.predict(PredictRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    names(status.message(), &["tether-pool", "../digits"]);

    let mut bare = tether_tests::digits::digits_service_client::DigitsServiceClient::new(
        cluster.client().channel(),
    );
    let mut request = tonic::Request::new(PredictRequest::default());
    let status = bare.predict(PredictRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    names(status.message(), &["tether-pool"]);
    request
        .metadata_mut()
        .insert("tether-pool", "digits".parse().unwrap());
    request
        .metadata_mut()
        .insert("grpc-timeout", "soon".parse().unwrap());
    let status = bare.predict(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    names(status.message(), &["grpc-timeout", "soon"]);
    ends_with_nothing_left(cluster, Some(owner)).await;
}

#[tokio::test]
async fn a_gateway_without_an_arbiter_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = format!("listen.runtime_dir={}", dir.path().display());
    let gateway = format!("unix:{}/gateway.sock", dir.path().display());
    let listen = format!("listen.gateway=[\"{gateway}\"]");
    let mut server = Command::new(program("tether-gateway"))
        .args(["--set", &runtime, "--set", &listen])
        .env_remove("TETHER_CONFIG")
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let tether = Tether::at(&gateway);
    eventually("the gateway listens", async || {
        dir.path().join("gateway.sock").exists().then_some(())
    })
    .await;

    let ran = tether.run(&["pool", "ls"]).await;

    assert_eq!(ran.code, Some(1));
    names(
        &ran.err,
        &[
            "cannot reach the arbiter",
            "arbiter.sock",
            "tether up",
            "ARBITER_UNREACHABLE",
        ],
    );
    let channel = tether_client::Client::connect(&gateway.parse().unwrap()).channel();
    let status = digits_client(channel, "digits")
        .predict(PredictRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    names(status.message(), &["discovery"]);
    kill(server.id().unwrap(), Signal::TERM);
    let ended = timeout(DEADLINE, server.wait()).await.expect("it ends");
    assert_eq!(ended.unwrap().code(), Some(0));
    assert_eq!(Remains::of(dir.path(), dir.path()), Remains::NONE);
}

#[tokio::test]
async fn a_mode_whose_needs_are_not_met_is_refused_with_what_is_missing() {
    let cluster = Cluster::start().await;
    let file = cluster.pool_file("digits", "supervised", 1, "worker.py", "", "");

    let text = run_fails(&cluster, &file).await;
    names(
        &text,
        &["systemd", "exec", "launcher = \"exec\"", "MODE_FORBIDS"],
    );

    // Without an owner's process there is nothing to couple to.
    let file = cluster.pool_file("other", "coupled", 1, "worker.py", "", "");
    let ran = cluster
        .tether()
        .run(&[
            "pool",
            "apply",
            "-f",
            &file.display().to_string(),
            "--owner",
            "nobody",
        ])
        .await;
    assert_eq!(ran.code, Some(1));
    names(&ran.err, &["process", "independent", "MODE_FORBIDS"]);
    ends_with_nothing_left(cluster, None).await;
}

#[tokio::test]
async fn plain_text_is_refused_where_others_could_read_along() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = format!("listen.runtime_dir={}", dir.path().display());

    let (code, text) = refuses_to_start(
        "tether",
        &[
            "up",
            "--store",
            "memory:",
            "--set",
            "listen.gateway=[\"0.0.0.0:0\"]",
            "--set",
            &runtime,
        ],
    )
    .await;

    assert_eq!(code, Some(78), "{text}");
    // The lines of a refusal are broken where they are long.
    names(&text, &["plain text", "0.0.0.0:0", "insecure"]);
    assert_eq!(Remains::of(dir.path(), dir.path()), Remains::NONE);
}

#[tokio::test]
async fn a_second_tether_up_on_the_same_directory_is_refused() {
    let cluster = Cluster::start().await;
    let runtime = format!("listen.runtime_dir={}", cluster.runtime().display());
    let gateway = format!("listen.gateway=[\"{}\"]", cluster.gateway());
    let before = Remains::of(cluster.dir(), &cluster.runtime());

    let (code, text) = refuses_to_start(
        "tether",
        &[
            "up", "--store", "memory:", "--set", &runtime, "--set", &gateway,
        ],
    )
    .await;

    assert_eq!(code, Some(1), "{text}");
    names(&text, &["in use by a running process"]);
    // The first one is unharmed, and all there is.
    let after = Remains::of(cluster.dir(), &cluster.runtime());
    assert_eq!(after, before);
    assert_eq!(cluster.tether().run(&["ps"]).await.code, Some(0));
    ends_with_nothing_left(cluster, None).await;
}

#[tokio::test]
async fn a_worker_that_crashes_again_and_again_is_given_up_and_can_be_retried() {
    let cluster = Cluster::start().await;
    let template = "[template.digits.restart]\nmax_restarts = 2\ndelay = \"10ms\"";
    let file = cluster.pool_file(
        "digits",
        "coupled",
        1,
        "unruly.py --exit-after 0 --exit-code 7",
        template,
        "",
    );

    let text = run_fails(&cluster, &file).await;

    names(&text, &["given up", "EXITED with code 7"]);
    let events = cluster.tether().json_lines(&["events"]).await;
    let deaths = events
        .iter()
        .filter(|event| event["kind"] == "WORKER_DIED")
        .count();
    assert_eq!(deaths, 3, "one start and two restarts");
    ends_with_nothing_left(cluster, None).await;
}
