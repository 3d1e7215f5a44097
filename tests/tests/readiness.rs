//! Real workers that become ready in every way there is, and some that stop working afterwards.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::Signal;
use serde_json::Value;
use tether_proto::{common::WorkerPhase, worker::Worker};
use tether_tests::{Cluster, Owner, eventually, kill, python};

/// What every script here begins with. `DIR` is the test's directory.
const PRELUDE: &str = r#"
import http.server, os, pathlib, socket, socketserver, sys, threading, time

DIR = pathlib.Path(os.environ["TEST_DIR"])

def say(text):
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])

def wait_for(name):
    while not (DIR / name).exists():
        time.sleep(0.005)

def is_first():
    return os.environ["TETHER_INCARNATION"] == (DIR / "first").read_text() if (DIR / "first").exists() else True

if not (DIR / "first").exists():
    (DIR / "first").write_text(os.environ["TETHER_INCARNATION"])

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        good = self.path == "/healthz?full" and (DIR / "go").exists() and not (is_first() and (DIR / "sick").exists())
        if not good:
            with open(DIR / "asked", "a") as asked:
                asked.write("x")
        self.send_response(204 if good else 503)
        self.end_headers()
    def address_string(self):
        return "agent"
"#;

/// Ends a script that has nothing else to do.
const STAY: &str = "\nthreading.Event().wait()\n";

/// A pool of one worker that runs this script; `template` is more lines of its template.
fn pool(cluster: &Cluster, mode: &str, script: &str, template: &str, more: &str) -> PathBuf {
    let program = cluster.dir().join("worker.py");
    fs::write(&program, format!("{PRELUDE}{script}{STAY}")).unwrap();
    let text = format!(
        "[template.own]\ncommand = {:?}\nargs = [{:?}]\nenv = {{ TEST_DIR = {:?} }}\n{template}\n[pool.own]\ntemplate = \"own\"\nmode = {mode:?}\nsize = 1\n{more}\n",
        python().display().to_string(),
        program.display().to_string(),
        cluster.dir().display().to_string(),
    );
    let file = cluster.dir().join("own.toml");
    fs::write(&file, text).unwrap();
    file
}

fn readiness(text: &str) -> String {
    format!("[template.own.readiness]\n{text}\n")
}

async fn worker(cluster: &Cluster) -> Option<Worker> {
    cluster.workers("own").await.into_iter().next()
}

async fn exists(file: &Path) {
    eventually("the worker made a file", async || {
        file.exists().then_some(())
    })
    .await;
}

/// Its worker is not ready when it has made `almost`, and ready once the test made `go`.
async fn ready_only_when_it_shows_it(script: &str, template: &str) {
    let cluster = Cluster::start().await;
    let file = pool(&cluster, "coupled", script, template, "");
    let mut owner = Owner::start(&cluster, "beam", &["--file", &file.display().to_string()]);
    let almost = cluster.dir().join("almost");
    exists(&almost).await;
    let before = worker(&cluster).await.unwrap();
    assert_eq!(before.phase(), WorkerPhase::Starting, "{template}");

    fs::write(cluster.dir().join("go"), "").unwrap();

    owner.until("ready").await;
    let after = worker(&cluster).await.unwrap();
    assert_eq!(after.phase(), WorkerPhase::Ready);
    assert_eq!(after.pid, before.pid);
}

/// Serves HTTP, and is almost ready once it was asked three times.
const HTTP: &str = r#"
class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    allow_reuse_address = True
class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    pass
listen = os.environ["TETHER_LISTEN"]
if listen.startswith("unix:"):
    server = UnixServer(listen[5:], Answer)
else:
    host, port = listen.rsplit(":", 1)
    server = Server((host, int(port)), Answer)
def count():
    while not (DIR / "asked").exists() or len((DIR / "asked").read_text()) < 3:
        time.sleep(0.005)
    (DIR / "almost").touch()
threading.Thread(target=count).start()
threading.Thread(target=server.serve_forever).start()
"#;

#[tokio::test]
async fn a_worker_is_ready_when_it_answers_http_over_tcp_with_a_good_status() {
    let template = readiness("kind = \"http\"\npath = \"/healthz?full\"");
    ready_only_when_it_shows_it(HTTP, &format!("listen = \"tcp\"\n{template}")).await;
}

#[tokio::test]
async fn a_worker_is_ready_when_it_answers_http_over_a_unix_socket_with_a_good_status() {
    let template = readiness("kind = \"http\"\npath = \"healthz?full\"");
    ready_only_when_it_shows_it(HTTP, &template).await;
}

#[tokio::test]
async fn a_worker_is_ready_when_it_says_so_itself() {
    let script = "say('STATUS=READY=1')\nsay('READY=0')\n(DIR / 'almost').touch()\nwait_for('go')\nsay('READY=1')";
    ready_only_when_it_shows_it(script, &readiness("kind = \"notify\"")).await;
}

#[tokio::test]
async fn a_worker_is_ready_when_a_child_that_wiped_its_environment_says_so() {
    let script = r#"
import subprocess
(DIR / 'almost').touch()
wait_for('go')
child = "import socket, sys, time; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'READY=1', sys.argv[1]); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child, os.environ["NOTIFY_SOCKET"]], env={}, start_new_session=True)
"#;
    ready_only_when_it_shows_it(script, &readiness("kind = \"notify\"")).await;
}

#[tokio::test]
async fn a_worker_is_ready_when_it_made_its_file() {
    let script = "here = pathlib.Path(os.environ['TETHER_DIR'])\n(here / 'up-1').touch()\n(DIR / 'almost').touch()\nwait_for('go')\n(here / 'up-0').touch()";
    for file in ["up-{slot}", "{dir}/up-0"] {
        let template = readiness(&format!("kind = \"file\"\nfile = \"{file}\""));
        ready_only_when_it_shows_it(script, &template).await;
    }
}

#[tokio::test]
async fn a_worker_is_ready_when_it_wrote_its_line() {
    for stream in ["stdout", "stderr"] {
        let script = format!(
            "out = sys.{stream}\nprint('serving own', file=out, flush=True)\n(DIR / 'almost').touch()\nwait_for('go')\nprint('now serving own-0 on x', file=out, flush=True)"
        );
        let template = readiness("kind = \"log_line\"\ntext = \"serving {pool}-{slot}\"");
        ready_only_when_it_shows_it(&script, &template).await;
    }
}

#[tokio::test]
async fn a_worker_is_ready_when_it_takes_connections() {
    let script = "(DIR / 'almost').touch()\nwait_for('go')\nserver = socket.socket(socket.AF_UNIX)\nserver.bind(os.environ['TETHER_LISTEN'][5:])\nserver.listen()";
    ready_only_when_it_shows_it(script, &readiness("kind = \"connect\"")).await;
}

#[tokio::test]
async fn a_worker_may_be_ready_as_soon_as_it_runs() {
    let cluster = Cluster::start().await;
    let file = pool(
        &cluster,
        "coupled",
        "",
        &readiness("kind = \"started\""),
        "",
    );

    Owner::with_pool(&cluster, "beam", &file).await;
}

/// The first death of the pool, once it is recorded.
async fn death(cluster: &Cluster) -> Value {
    let (death, _) = eventually("a death is recorded", async || {
        let events = cluster.tether().json_lines(&["events"]).await;
        let mut deaths = events
            .into_iter()
            .filter(|event| event["kind"] == "WORKER_DIED");
        deaths.next()
    })
    .await;
    death["death"].clone()
}

/// The worker was ended as unhealthy for this reason, and another one is ready in its place.
async fn replaced(cluster: &Cluster, pool: &str, pid: u32, why: &[&str]) {
    let death = death(cluster).await;
    assert_eq!(death["cause"], "UNHEALTHY", "{death}");
    let detail = death["detail"].as_str().unwrap();
    for part in why {
        assert!(detail.contains(part), "{detail:?} does not say {part:?}");
    }
    eventually("another incarnation is ready", async || {
        let worker = cluster.workers(pool).await.into_iter().next()?;
        (worker.phase() == WorkerPhase::Ready && worker.pid != pid).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_ready_worker_that_hangs_is_ended_by_the_question_it_does_not_answer_and_replaced() {
    let cluster = Cluster::start().await;
    let template = "[template.digits.liveness]\ninterval = \"100ms\"\ntimeout = \"300ms\"\nfailures = 3\n[template.digits.stop]\ngrace = \"200ms\"";
    let file = cluster.pool_file("digits", "coupled", 1, "worker.py", template, "");
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let pid = cluster.workers("digits").await[0].pid;

    kill(pid, Signal::STOP);

    let why = "no answer to grpc.health.v1 within 300 ms, 3 times in a row";
    replaced(&cluster, "digits", pid, &[why]).await;
}

#[tokio::test]
async fn a_ready_worker_that_answers_http_with_an_error_is_ended_and_replaced() {
    let cluster = Cluster::start().await;
    fs::write(cluster.dir().join("go"), "").unwrap();
    let template = format!(
        "{}[template.own.liveness]\ninterval = \"50ms\"\nfailures = 2\n",
        readiness("kind = \"http\"\npath = \"/healthz?full\"")
    );
    let file = pool(&cluster, "coupled", HTTP, &template, "");
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let pid = worker(&cluster).await.unwrap().pid;

    fs::write(cluster.dir().join("sick"), "").unwrap();

    let why = "GET /healthz?full: the answer was 503, 2 times in a row";
    replaced(&cluster, "own", pid, &[why]).await;
}

/// Is ready, and pings until the test makes `hang`; the number of pings stands in `pings`.
const PINGS: &str = r#"
assert os.environ["WATCHDOG_USEC"] == "1000000"
say("READY=1")
count = 0
while not (is_first() and (DIR / "hang").exists()):
    say("WATCHDOG=1")
    count += 1
    (DIR / "pings.new").write_text(str(count))
    (DIR / "pings.new").rename(DIR / "pings")
    time.sleep(0.1)
"#;

/// Waits for so many more pings than there are: time that the worker lived through.
async fn pings(cluster: &Cluster, more: u32) {
    let count = || {
        let text = fs::read_to_string(cluster.dir().join("pings")).ok()?;
        text.parse::<u32>().ok()
    };
    let (begin, _) = eventually("the worker pings", async || count()).await;
    eventually("it pings on", async || {
        count().filter(|now| *now >= begin + more).map(drop)
    })
    .await;
}

fn watched() -> String {
    format!(
        "{}[template.own.liveness]\nwatchdog = \"1s\"\n",
        readiness("kind = \"notify\"")
    )
}

#[tokio::test]
async fn a_worker_that_no_longer_pings_is_ended_and_replaced_and_one_that_pings_is_not() {
    let cluster = Cluster::start().await;
    let file = pool(&cluster, "coupled", PINGS, &watched(), "");
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let pid = worker(&cluster).await.unwrap().pid;
    // Twice as long as it could live without being heard.
    pings(&cluster, 20).await;
    assert_eq!(worker(&cluster).await.unwrap().pid, pid);

    fs::write(cluster.dir().join("hang"), "").unwrap();

    let why = "it did not send WATCHDOG=1 within 1 s";
    replaced(&cluster, "own", pid, &[why]).await;
}

#[tokio::test]
async fn a_worker_that_said_it_is_ready_is_ready_and_heard_under_the_next_agent_too() {
    let mut cluster = Cluster::start().await;
    // A ping that nobody hears is no reason to end.
    let script = PINGS.replacen(
        "say(\"WATCHDOG=1\")",
        "try:\n        say(\"WATCHDOG=1\")\n    except OSError:\n        pass",
        1,
    );
    let policy = "[pool.own.policy]\nheartbeat_interval = \"500ms\"\nheartbeat_timeout = \"60s\"";
    let file = pool(&cluster, "independent", &script, &watched(), policy);
    let _owner = Owner::with_pool(&cluster, "beam", &file).await;
    let pid = worker(&cluster).await.unwrap().pid;

    cluster.kill().await;
    cluster.up().await;

    eventually("the worker is taken over and ready", async || {
        let worker = worker(&cluster).await?;
        (worker.phase() == WorkerPhase::Ready).then_some(())
    })
    .await;
    pings(&cluster, 20).await;
    let after = worker(&cluster).await.unwrap();
    assert_eq!((after.pid, after.phase()), (pid, WorkerPhase::Ready));
    fs::write(cluster.dir().join("hang"), "").unwrap();
    let why = "it did not send WATCHDOG=1 within 1 s";
    replaced(&cluster, "own", pid, &[why]).await;
}

#[tokio::test]
async fn what_a_worker_says_of_itself_is_listed_and_follows_what_it_says() {
    let cluster = Cluster::start().await;
    let script =
        "say('STATUS=loading the model')\nwait_for('loaded')\nsay('READY=1\\nSTATUS=serving v7')";
    let template = readiness("kind = \"notify\"");
    let file = pool(&cluster, "coupled", script, &template, "");
    let _owner = Owner::start(&cluster, "beam", &["--file", &file.display().to_string()]);
    let says = async |phase: &str, status: &str| {
        let what = format!("it is {phase} and says `{status}`");
        let listed = eventually(&what, async || {
            let workers = cluster.tether().json(&["ps"]).await;
            (workers[0]["phase"] == phase && workers[0]["status"] == status).then_some(())
        });
        listed.await;
        let table = cluster.tether().run(&["ps"]).await.out;
        let lines: Vec<_> = table.lines().collect();
        let said = lines[0].ends_with("STATUS") && lines[1].ends_with(status);
        assert!(said, "{table}");
    };

    says("starting", "loading the model").await;
    fs::write(cluster.dir().join("loaded"), "").unwrap();
    says("ready", "serving v7").await;
}

#[tokio::test]
async fn a_worker_that_never_gets_ready_died_of_what_it_was_waited_for() {
    let waits = [
        (
            HTTP,
            "kind = \"http\"\npath = \"/other\"",
            ["GET /other", "the answer was 503"],
        ),
        (
            "print('hello', flush=True)",
            "kind = \"log_line\"\ntext = \"serving\"",
            ["a line with `serving`", "none of the 6 bytes"],
        ),
        (
            "say('STATUS=loading')",
            "kind = \"notify\"",
            ["READY=1", "it said `loading`"],
        ),
        (
            "",
            "kind = \"file\"\nfile = \"up\"",
            ["the file `", "it is not there"],
        ),
    ];
    for (script, kind, why) in waits {
        let cluster = Cluster::start().await;
        let template = readiness(&format!("{kind}\ntimeout = \"2s\""));
        let file = pool(&cluster, "coupled", script, &template, "");
        let _owner = Owner::start(&cluster, "beam", &["--file", &file.display().to_string()]);

        let death = death(&cluster).await;

        assert_eq!(death["cause"], "NEVER_READY", "{death}");
        let detail = death["detail"].as_str().unwrap();
        for part in why {
            assert!(detail.contains(part), "{detail:?} does not say {part:?}");
        }
    }
}
