//! Real workers on sockets that are held for them: callers wait, and are not refused.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::process::CommandExt as _},
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::process::Signal;
use serde_json::Value;
use tether_proto::{common::WorkerPhase, worker::Worker};
use tether_tests::{Cluster, DEADLINE, Owner, eventually, kill, program, python};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// Answers each caller with its incarnation, its process id and the names of what it was given.
const SERVER: &str = r#"
import os, pathlib, socket, sys

DIR = pathlib.Path(os.environ["TEST_DIR"])
(DIR / "started").touch()
assert os.environ["LISTEN_PID"] == str(os.getpid())
names = os.environ["LISTEN_FDNAMES"].split(":")
assert int(os.environ["LISTEN_FDS"]) == len(names)

def say(text, *fds):
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.connect(os.environ["NOTIFY_SOCKET"])
    socket.send_fds(end, [text.encode()], fds)

def serve():
    server = socket.socket(fileno=3)
    assert server.getblocking()
    while True:
        end, _ = server.accept()
        end.sendall(f"{os.environ['TETHER_INCARNATION']} {' '.join(names)}".encode())
        end.close()
"#;

/// A pool of workers that run this script after [`SERVER`]; `template` is more lines of its template.
fn pool(cluster: &Cluster, mode: &str, size: u32, script: &str, template: &str) -> PathBuf {
    let worker = cluster.dir().join("worker.py");
    fs::write(&worker, format!("{SERVER}{script}")).unwrap();
    let text = format!(
        "[template.own]\ncommand = {:?}\nargs = [{:?}]\nenv = {{ TEST_DIR = {:?} }}\n{template}\n[pool.own]\ntemplate = \"own\"\nmode = {mode:?}\nsize = {size}\n[pool.own.policy]\nheartbeat_interval = \"500ms\"\nheartbeat_timeout = \"60s\"\n",
        python().display().to_string(),
        worker.display().to_string(),
        cluster.dir().display().to_string(),
    );
    let file = cluster.dir().join("own.toml");
    fs::write(&file, text).unwrap();
    file
}

/// A template's lines: ready as soon as it runs, and this socket.
fn socket(listen: &str, on_demand: bool) -> String {
    format!(
        "[template.own.readiness]\nkind = \"started\"\n[template.own.restart]\ndelay = \"300ms\"\n[template.own.sockets.web]\nlisten = {listen:?}\non_demand = {on_demand}\n"
    )
}

/// What the worker at this address answers to one caller, who is never refused.
async fn ask(address: &str) -> String {
    let mut answer = String::new();
    let asked = async {
        match address.strip_prefix("unix:") {
            Some(path) => {
                let mut end = UnixStream::connect(path).await?;
                end.read_to_string(&mut answer).await
            }
            None => {
                let mut end = TcpStream::connect(address).await?;
                end.read_to_string(&mut answer).await
            }
        }
    };
    timeout(DEADLINE, asked)
        .await
        .expect("the worker answers")
        .expect("nobody refuses");
    answer
}

async fn worker(cluster: &Cluster) -> Worker {
    cluster.workers("own").await.remove(0)
}

async fn deaths(cluster: &Cluster) -> Vec<Value> {
    let events = cluster.tether().json_lines(&["events"]).await;
    let deaths = events
        .into_iter()
        .filter(|event| event["kind"] == "WORKER_DIED");
    deaths.map(|event| event["death"].clone()).collect()
}

fn comm(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .unwrap_or_default()
        .trim()
        .to_owned()
}

#[tokio::test]
async fn a_caller_of_a_killed_worker_waits_for_the_next_one_and_is_not_refused() {
    let cluster = Cluster::start().await;
    let file = pool(
        &cluster,
        "coupled",
        1,
        "serve()",
        &socket("127.0.0.1:0", false),
    );
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let before = worker(&cluster).await;
    let first = ask(&before.address).await;

    kill(before.pid, Signal::KILL);
    // Nobody is there now: the next one is started after a delay.
    eventually("its death is recorded", async || {
        deaths(&cluster).await.pop()
    })
    .await;
    let second = ask(&before.address).await;

    assert!(
        first.ends_with(" web") && second.ends_with(" web"),
        "{first} {second}"
    );
    assert_ne!(first, second);
    eventually("the next one is ready at the same address", async || {
        let after = worker(&cluster).await;
        let ready = after.phase() == WorkerPhase::Ready && after.pid != before.pid;
        (ready && after.address == before.address).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_worker_on_demand_counts_as_ready_and_is_started_by_its_first_caller() {
    let cluster = Cluster::start().await;
    let listen = format!("unix:{}/{{pool}}-{{slot}}.sock", cluster.dir().display());
    let file = pool(&cluster, "coupled", 1, "serve()", &socket(&listen, true));
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let waiting = worker(&cluster).await;
    assert!(
        waiting.address.ends_with("/own-0.sock"),
        "{}",
        waiting.address
    );
    assert_eq!(comm(waiting.pid), "tether-shim");
    assert!(!cluster.dir().join("started").exists());

    let answer = ask(&waiting.address).await;

    assert!(answer.ends_with(" web"), "{answer}");
    eventually("its process is known", async || {
        let running = worker(&cluster).await;
        let started = running.pid != waiting.pid && comm(running.pid).starts_with("python");
        (started && running.phase() == WorkerPhase::Ready).then_some(())
    })
    .await;
    assert_eq!(deaths(&cluster).await.len(), 0);
}

#[tokio::test]
async fn a_worker_on_demand_that_nobody_called_ends_when_it_is_told_to_and_was_never_started() {
    let cluster = Cluster::start().await;
    let listen = format!("unix:{}/w.sock", cluster.dir().display());
    let file = pool(&cluster, "coupled", 1, "serve()", &socket(&listen, true));
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let waiting = worker(&cluster).await;

    let ran = cluster.tether().run(&["pool", "rm", "own"]).await;

    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let (death, _) = eventually("its end is recorded", async || deaths(&cluster).await.pop()).await;
    assert_eq!(death["cause"], "ORDERED_BY_SCALE", "{death}");
    assert!(
        death["signal"].is_null() && death["exit_code"].is_null(),
        "{death}"
    );
    assert!(!cluster.dir().join("started").exists());
    eventually("its shim is gone and its socket is closed", async || {
        let closed = !cluster.dir().join("w.sock").exists();
        (closed && comm(waiting.pid) != "tether-shim").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_worker_on_demand_that_never_gets_ready_is_ended_as_such() {
    let cluster = Cluster::start().await;
    let readiness = "[template.own.readiness]\nkind = \"notify\"\ntimeout = \"500ms\"\n[template.own.sockets.web]\nlisten = \"127.0.0.1:0\"\non_demand = true\n";
    let file = pool(&cluster, "coupled", 1, "serve()", readiness);
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;

    ask(&worker(&cluster).await.address).await;

    let (death, _) = eventually("its end is recorded", async || deaths(&cluster).await.pop()).await;
    assert_eq!(death["cause"], "NEVER_READY", "{death}");
    assert!(
        death["detail"].as_str().unwrap().contains("READY=1"),
        "{death}"
    );
}

#[tokio::test]
async fn sockets_that_workers_share_are_the_next_agents_too() {
    let mut cluster = Cluster::start().await;
    let listen = format!("unix:{}/w.sock", cluster.dir().display());
    let file = pool(
        &cluster,
        "independent",
        2,
        "serve()",
        &socket(&listen, false),
    );
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let before = cluster.workers("own").await;

    cluster.kill().await;
    ask(&listen).await;
    cluster.up().await;
    eventually("both are taken over", async || {
        let workers = cluster.workers("own").await;
        let ready = workers
            .iter()
            .filter(|worker| worker.phase() == WorkerPhase::Ready);
        (ready.count() == 2).then_some(())
    })
    .await;
    // One after the other, so that all there was of the sockets is what the agent got.
    for worker in &before {
        kill(worker.pid, Signal::KILL);
        eventually("another one is in its place", async || {
            let workers = cluster.workers("own").await;
            let place = workers.iter().find(|now| {
                now.worker.as_ref().unwrap().slot == worker.worker.as_ref().unwrap().slot
            });
            place
                .filter(|now| now.phase() == WorkerPhase::Ready && now.pid != worker.pid)
                .map(drop)
        })
        .await;
    }

    let answer = ask(&listen).await;

    let new: Vec<_> = before
        .iter()
        .map(|worker| worker.worker.as_ref().unwrap().incarnation)
        .collect();
    let answered: u64 = answer.split(' ').next().unwrap().parse().unwrap();
    assert!(
        !new.contains(&answered),
        "{answer} of a worker that was killed: {new:?}"
    );
    let causes: Vec<_> = deaths(&cluster)
        .await
        .iter()
        .map(|death| death["cause"].clone())
        .collect();
    assert_eq!(causes, ["SIGNALED", "SIGNALED"]);
}

#[tokio::test]
async fn a_worker_on_demand_is_started_by_its_caller_while_there_is_no_agent() {
    let mut cluster = Cluster::start().await;
    let listen = format!("unix:{}/w.sock", cluster.dir().display());
    let file = pool(
        &cluster,
        "independent",
        1,
        "serve()",
        &socket(&listen, true),
    );
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let waiting = worker(&cluster).await;
    cluster.kill().await;
    cluster.up().await;
    eventually("it is taken over as it waits", async || {
        let worker = worker(&cluster).await;
        (worker.phase() == WorkerPhase::Ready && worker.pid == waiting.pid).then_some(())
    })
    .await;
    cluster.kill().await;

    let answer = ask(&listen).await;

    cluster.up().await;
    eventually("it is taken over as it runs", async || {
        let worker = worker(&cluster).await;
        (worker.phase() == WorkerPhase::Ready && comm(worker.pid).starts_with("python"))
            .then_some(())
    })
    .await;
    assert_eq!(ask(&listen).await, answer);
    assert_eq!(deaths(&cluster).await.len(), 0);
}

#[tokio::test]
async fn what_a_worker_gave_away_to_have_it_back_comes_after_its_sockets() {
    let cluster = Cluster::start().await;
    let script = r#"
if names == ["web"]:
    read, write = os.pipe()
    os.write(write, b"kept")
    os.close(write)
    say("FDSTORE=1\nFDNAME=pipe", read)
elif names == ["web", "pipe"]:
    (DIR / "back").write_bytes(os.read(4, 16))
assert os.environ["WATCHDOG_PID"] == str(os.getpid())
say("READY=1")
serve()
"#;
    let template = format!(
        "{}[template.own.liveness]\nwatchdog = \"60s\"\n",
        socket("127.0.0.1:0", false).replacen("started", "notify", 1)
    );
    let file = pool(&cluster, "coupled", 1, script, &template);
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;

    kill(worker(&cluster).await.pid, Signal::KILL);

    let back = cluster.dir().join("back");
    eventually("the next one has it", async || {
        (fs::read(&back).ok()? == b"kept").then_some(())
    })
    .await;
}

/// Runs `tether up` with a socket as a service manager would, and tells where that listens.
fn up_with_inherited(cluster: &Cluster) -> (std::process::Child, String) {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Only the process that becomes the agent can name itself in LISTEN_PID.
    let start = "import os, sys\nfd = int(sys.argv[1])\nos.dup2(fd, 3, inheritable=True)\nos.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='web')\nos.execv(sys.argv[2], sys.argv[2:])";
    rustix::io::fcntl_setfd(&listener, rustix::io::FdFlags::empty()).unwrap();
    let runtime = cluster.dir().join("second");
    let mut command = Command::new(python());
    command
        .args(["-c", start, &listener.as_raw_fd().to_string()])
        .arg(program("tether"))
        .args(["up", "--store", "memory:"])
        .args([
            "--set",
            &format!(
                "listen.gateway=[\"unix:{}/gateway.sock\"]",
                runtime.display()
            ),
        ])
        .args([
            "--set",
            &format!("listen.runtime_dir={}", runtime.display()),
        ])
        .args(["--set", "agent.node=node-2"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    let child = command.spawn().unwrap();
    (child, address)
}

#[tokio::test]
async fn a_socket_that_the_agent_was_started_with_goes_on_to_its_worker() {
    let cluster = Cluster::start().await;
    let (mut up, address) = up_with_inherited(&cluster);
    let file = pool(&cluster, "independent", 1, "serve()", &socket("", true));
    let gateway = format!("unix:{}/second/gateway.sock", cluster.dir().display());
    let tether = tether_tests::Tether::at(&gateway);
    let file = file.display().to_string();
    eventually("the pool is applied", async || {
        let applied = tether
            .run(&["pool", "apply", "--owner", "ops", "--file", &file])
            .await;
        (applied.code == Some(0)).then_some(())
    })
    .await;

    let answer = ask(&address).await;

    assert!(answer.ends_with(" web"), "{answer}");
    tether.run(&["pool", "rm", "own"]).await;
    eventually("its worker has ended", async || {
        tether
            .json(&["pool", "ls"])
            .await
            .as_array()?
            .is_empty()
            .then_some(())
    })
    .await;
    kill(up.id(), Signal::TERM);
    assert!(up.wait().unwrap().success());
    tether_tests::tidy(&cluster.dir().join("second"));
}
