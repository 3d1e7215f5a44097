//! Unmodified Snakepit with `tether-python` for its Python: its contract with a worker, kept for it.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tether_tests::{
    Cluster, DEADLINE, Setup, Traces,
    bridge::{ExecuteToolRequest, bridge_service_client::BridgeServiceClient},
    eventually, kill, program,
    snakepit::{ADAPTER, Beam, script_named},
};
use tokio::{net::UnixListener, time::timeout};
use tonic::Request;

const WORKER: &str = "grpc_server.py";

/// Far less than it takes to give an answer up.
const AT_ONCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_is_no_worker_is_the_real_pythons() {
    let cluster = Cluster::start().await;
    let beam = Beam::start(&cluster, "beam", &[]).await;
    let script = cluster.dir().join("other.py");
    fs::write(
        &script,
        "import sys; print(sys.argv[1:], sys.stdin.read()); sys.exit(3)",
    )
    .unwrap();
    let worker = script_named(WORKER).display().to_string();
    let run = async |args: &[&str]| {
        let output = beam.python(args).output().await.unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };

    let (code, version) = run(&["--version"]).await;
    assert!(
        code == Some(0) && version.starts_with("Python 3."),
        "{version}"
    );
    assert_eq!(
        run(&["-c", "print(6 * 7)"]).await,
        (Some(0), "42\n".to_owned())
    );
    let other = run(&[&script.display().to_string(), "--elixir-address", "x"]).await;
    assert_eq!(other, (Some(3), "['--elixir-address', 'x'] \n".to_owned()));
    for (adapter, healthy) in [("pretend.Adapter", 0), ("no.Adapter", 1)] {
        let (code, _) = run(&[
            &worker,
            "--health-check",
            "--adapter",
            adapter,
            "--elixir-address",
            "h:1",
        ])
        .await;
        assert_eq!(code, Some(healthy), "{adapter}");
    }
    assert!(
        cluster
            .traces()
            .find()
            .iter()
            .all(|process| !process.command.contains("snakepit")),
        "nothing was started for it"
    );
}

#[tokio::test]
async fn the_real_python_is_never_this_program_again() {
    let cluster = Cluster::start().await;
    let beam = Beam::start(&cluster, "beam", &[]).await;
    let first = cluster.dir().join("first");
    fs::create_dir(&first).unwrap();
    symlink(program("tether-python"), first.join("python3")).unwrap();
    let path = format!("{}:{}", first.display(), std::env::var("PATH").unwrap());
    let mut command = beam.python(&["-c", "print('real')"]);
    command
        .env_remove("TETHER_PYTHON")
        .env("PATH", path)
        .env("SNAKEPIT_PYTHON", program("tether-python"));

    let output = timeout(DEADLINE, command.output()).await.unwrap().unwrap();

    assert_eq!(String::from_utf8_lossy(&output.stdout), "real\n");
}

#[tokio::test]
async fn a_worker_is_started_serves_and_ends_when_it_is_told_to() {
    let cluster = Cluster::start().await;
    let given = [("MODEL", "large"), ("TETHER_AGENT", "unix:/another")];
    let beam = Beam::start(&cluster, "beam", &given).await;
    let mut port = beam.port(0, WORKER, ADAPTER);
    port.ready().await;
    let written: Vec<_> = fs::read_dir(cluster.dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(
        written.iter().all(|name| !name.ends_with(".tmp")),
        "{written:?}"
    );

    let who = port.call("who").await.unwrap();
    let called = port.call("elixir:hello").await.unwrap();

    assert_eq!(
        (&called["beam"], &called["size"]),
        (&"beam".into(), &5.into())
    );
    assert_eq!(
        (
            beam.asked("InitializeSession"),
            beam.asked("RegisterTools"),
            beam.asked("Ping")
        ),
        (2, 1, 0)
    );
    let argv: Vec<_> = who["argv"]
        .as_array()
        .unwrap()
        .iter()
        .map(|arg| arg.as_str().unwrap())
        .collect();
    assert!(
        argv.iter().all(|arg| !arg.contains("snakepit-run-id")
            && !arg.contains("instance")
            && *arg != beam.address()),
        "{argv:?}"
    );
    let seen = fs::read_to_string(format!("/proc/{}/cmdline", port.pid())).unwrap();
    assert!(
        seen.contains("grpc_server.py") && !seen.contains("run-id") && !seen.contains("instance"),
        "a BEAM that starts would take it for one to be killed: {seen}"
    );
    let env = &who["env"];
    assert!(
        env["SNAKEPIT_HEARTBEAT_CONFIG"]
            .as_str()
            .unwrap()
            .contains("\"dependent\":false")
    );
    assert_eq!(
        (&env["MODEL"], &env["SNAKEPIT_PROCESS_GROUP"]),
        (&"large".into(), &"1".into())
    );
    assert!(
        env["TETHER_WORKER"]
            .as_str()
            .unwrap()
            .starts_with("snakepit-"),
        "{env}"
    );
    let agent = env["TETHER_AGENT"].as_str().unwrap();
    assert!(
        agent != "unix:/another"
            && env["TETHER_LEASE"].is_string()
            && env["TETHER_LISTEN"].is_null(),
        "{env}"
    );

    port.signal(Signal::TERM);
    assert_eq!(port.gone().await.0, Some(0));
    cluster.no_orphans().await;
    assert_eq!(cluster.workers("").await, []);
    assert_eq!(
        fs::read_dir(cluster.runtime().join("snakepit"))
            .unwrap()
            .count(),
        0,
        "nothing is left of its berth"
    );
}

#[tokio::test]
async fn gateways_reach_the_worker_as_any_other() {
    let cluster = Cluster::start().await;
    let beam = Beam::start(&cluster, "beam", &[]).await;
    let mut port = beam.port(0, WORKER, ADAPTER);
    let own = port.identity().await;
    let pool = cluster.workers("").await.remove(0).worker.unwrap().pool;
    let mut worker = BridgeServiceClient::new(cluster.client().channel());
    let mut request = Request::new(ExecuteToolRequest {
        session_id: "s2".to_owned(),
        tool_name: "who".to_owned(),
        ..ExecuteToolRequest::default()
    });
    request
        .metadata_mut()
        .insert("tether-pool", pool.parse().unwrap());

    let answer = worker.execute_tool(request).await.unwrap().into_inner();

    let who = String::from_utf8(answer.result.unwrap().value).unwrap();
    assert!(answer.success && who.contains(&own), "{who}");
}

#[tokio::test]
async fn a_worker_that_ends_ends_its_program_with_its_code() {
    let cluster = Cluster::start().await;
    let beam = Beam::start(&cluster, "beam", &[]).await;

    let tools = [
        ("exit:0", 0),
        ("exit:3", 3),
        ("kill:9", 137),
        ("kill:15", 0),
    ];
    for (number, (tool, expected)) in tools.into_iter().enumerate() {
        let mut port = beam.port(number, WORKER, ADAPTER);
        let _ = port.try_call(tool).await;
        assert_eq!(port.gone().await.0, Some(expected), "{tool}");
    }
    let mut bad = beam.port(9, WORKER, &["--adapter", "no.Adapter", "--port", "0"]);
    let (code, said) = bad.gone().await;
    assert_eq!(code, Some(1));
    assert!(said.contains("no adapter is called no.Adapter"), "{said}");
    cluster.no_orphans().await;
}

#[tokio::test]
async fn a_tool_that_fails_is_an_answer() {
    let cluster = Cluster::start().await;
    let beam = Beam::start(&cluster, "beam", &[]).await;
    let mut port = beam.port(0, WORKER, ADAPTER);

    let failed = port.call("fail:0").await.unwrap_err();

    assert_eq!(failed["type"], "IndexError");
    port.identity().await;
}

#[tokio::test]
async fn a_coupled_worker_goes_with_its_beam_and_with_its_program() {
    let cluster = Cluster::start().await;
    let beam = Beam::start(&cluster, "beam", &[]).await;
    let mut ports = beam.pool(2).await;
    let (first, second) = ports.split_at_mut(1);
    assert_ne!(first[0].identity().await, second[0].identity().await);

    // The program alone: nobody is left to say so.
    first[0].signal(Signal::KILL);
    first[0].gone().await;
    let left = async || {
        cluster
            .workers("")
            .await
            .iter()
            .filter(|worker| worker.pid != 0)
            .count()
    };
    eventually("its worker is gone, and the other is not", async || {
        (left().await == 1).then_some(())
    })
    .await;
    second[0].identity().await;

    beam.kill(&mut ports).await;
    // The worker's own code, or where the gateway was too slow to hear of it, that of the program.
    let code = ports[1].gone().await.0;
    assert!(matches!(code, Some(0 | 143)), "{code:?}");
    cluster.no_orphans().await;
}

#[tokio::test]
async fn a_coupled_worker_goes_with_its_beam_also_while_its_gateway_hangs() {
    let cluster = Cluster::start().await;
    let beam = Beam::start(&cluster, "beam", &[]).await;
    let mut ports = beam.pool(1).await;

    // All of its services hang.
    kill(cluster.pid(), Signal::STOP);
    let start = Instant::now();
    beam.kill(&mut ports).await;
    assert_eq!(ports[0].gone().await.0, Some(143));
    let traces = cluster.traces();
    let (took, _) = eventually("its worker is gone", async || {
        let found = traces.find();
        let lives = found
            .iter()
            .any(|process| process.command.contains("pretend.Adapter"));
        (!lives).then(|| start.elapsed())
    })
    .await;
    kill(cluster.pid(), Signal::CONT);

    assert!(took < AT_ONCE, "{took:?}");
    cluster.no_orphans().await;
}

#[tokio::test]
async fn a_worker_that_does_not_end_when_it_is_asked_to_is_killed_also_when_nobody_is_left_to_ask()
{
    let cluster = Cluster::start().await;
    let beam = Beam::start(&cluster, "beam", &[]).await;
    let flags = ["--adapter", "pretend.Stubborn", "--port", "0"];
    let mut port = beam.port(0, "light/grpc_server.py", &flags);
    port.ready().await;

    port.signal(Signal::KILL);

    port.gone().await;
    cluster.no_orphans().await;
}

#[tokio::test]
async fn a_worker_can_be_ended_before_it_is_ready() {
    let cluster = Cluster::start().await;
    let beam = Beam::start(&cluster, "beam", &[]).await;
    let flags = ["--adapter", "pretend.Slow", "--port", "0"];
    let mut port = beam.port(0, "light/grpc_server.py", &flags);
    let traces = cluster.traces();
    eventually("the worker runs", async || {
        let found = traces.find();
        found
            .iter()
            .any(|process| process.command.contains("pretend.Slow"))
            .then_some(())
    })
    .await;

    port.signal(Signal::TERM);

    assert_eq!(port.gone().await.0, Some(143));
    cluster.no_orphans().await;
}

#[tokio::test]
async fn what_stands_beside_a_worker_may_be_killed_before_that_is_ready() {
    let cluster = Cluster::start().await;
    let beam = Beam::start(&cluster, "beam", &[]).await;
    let flags = ["--adapter", "pretend.Slow", "--port", "0"];
    let mut port = beam.port(0, "light/grpc_server.py", &flags);
    let traces = cluster.traces();
    let (beside, _) = eventually("the worker runs beside another process", async || {
        let found = traces.find();
        let pid_of = |what: &str| {
            let is_it = found.iter().find(|process| process.command.contains(what));
            is_it.map(|process| process.pid)
        };
        pid_of("pretend.Slow").and_then(|_| pid_of("--tether-beside"))
    })
    .await;

    kill(beside, Signal::KILL);

    assert_eq!(port.gone().await.0, Some(137));
    cluster.no_orphans().await;
}

#[tokio::test]
async fn without_a_gateway_it_says_what_to_do() {
    let cluster = Cluster::start().await;
    let beam = Beam::start(
        &cluster,
        "beam",
        &[("TETHER_GATEWAY", "unix:/nowhere/gateway.sock")],
    )
    .await;

    let mut port = beam.port(0, WORKER, ADAPTER);

    let (code, said) = port.gone().await;
    assert_eq!(code, Some(69), "{said}");
    assert!(
        said.contains("start `tether up`") && said.contains("python_executable"),
        "{said}"
    );
}

#[tokio::test]
async fn a_program_ends_when_it_is_told_to_also_while_its_gateway_hangs() {
    let cluster = Cluster::start().await;
    let path = cluster.dir().join("hangs.sock");
    let gateway = UnixListener::bind(&path).unwrap();
    let address = format!("unix:{}", path.display());
    let beam = Beam::start(&cluster, "beam", &[("TETHER_GATEWAY", &address)]).await;

    for (number, is_ordered) in [true, false].into_iter().enumerate() {
        let mut port = beam.port(number, WORKER, ADAPTER);
        // From here on it waits for an answer.
        let _unanswered = timeout(DEADLINE, gateway.accept()).await.unwrap().unwrap();
        if is_ordered {
            port.signal(Signal::TERM);
        } else {
            port.close();
        }
        let (code, said) = port.gone().await;
        assert_eq!(code, Some(143), "{said}");
    }
}

#[tokio::test]
async fn a_worker_whose_port_somebody_shares_is_not_ready() {
    // Where processes without a parent fall to is another one in each.
    for no_namespaces in ["false", "true"] {
        let setup = Setup::default().set("agent.no_namespaces", no_namespaces);
        let cluster = setup.start().await;
        let beam = Beam::start(&cluster, "beam", &[]).await;
        let flags = ["--adapter", "pretend.Shared", "--port", "0"];

        let mut port = beam.port(0, "light/grpc_server.py", &flags);

        let (code, said) = port.gone().await;
        assert_eq!(code, Some(75), "{said}");
        assert!(said.contains("another process listens there too"), "{said}");
        cluster.no_orphans().await;
    }
}

#[tokio::test]
async fn two_hundred_workers_at_once_share_no_port() {
    let cluster = Cluster::start().await;
    let beam = Beam::start(&cluster, "beam", &[]).await;

    let mut ports: Vec<_> = (0..200)
        .map(|number| beam.port(number, "light/grpc_server.py", ADAPTER))
        .collect();
    let mut numbers = Vec::new();
    for port in &mut ports {
        numbers.push(port.ready().await);
    }

    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 200);
    assert_eq!(cluster.workers("").await.len(), 200);
    let programs: Vec<_> = ports
        .iter()
        .map(tether_tests::snakepit::Port::pid)
        .collect();
    for pid in programs {
        kill(pid, Signal::KILL);
    }
    let traces: Traces = cluster.traces();
    eventually("none of them is left", async || {
        traces.find().is_empty().then_some(())
    })
    .await;
}
