//! Deaths as callers see them: real workers that are killed, stopped and ended, and how soon no call goes to them.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]
#![allow(clippy::print_stdout, reason = "what was measured")]

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open},
};
use tether_client::Client;
use tether_clock::{BootClock, Clock as _};
use tether_kit::channel::connect;
use tether_proto::{
    common::{DeathCause, WorkerPhase},
    fate::{
        Fate, WatchFatesRequest, WatchFatesResponse, WorkerFate,
        fate_service_client::FateServiceClient,
    },
    reason_of,
    worker::Worker,
};
use tether_tests::{
    Cluster, DEADLINE, Owner,
    digits::{PredictRequest, TrainRequest, TrainResponse},
    digits_client, eventually, kill, worker_client,
};
use tether_types::{Address, Reason, WorkerId};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming};

/// The digits worker, with as many MiB of memory in small pages in slot 0 as its first argument says, a sign of its
/// death where the second one says so, and a note of when it was asked to end.
const SCRIPT: &str = r#"
import mmap, os, sys, time
mib, holds, ended = int(sys.argv[1]), sys.argv[2] == "holds", sys.argv[3]
del sys.argv[1:]
sys.path.insert(0, os.getcwd())
import worker
worker.prepare_signals()
worker.prepare_numpy()
if os.environ["TETHER_SLOT"] == "0":
    ballast = mmap.mmap(-1, (mib or 1) << 20)
    ballast.madvise(mmap.MADV_NOHUGEPAGE)
    for _ in range(mib):
        ballast.write(b"x" * (1 << 20))
if holds:
    assert worker.hold_life()
def until():
    worker.sigterm()
    with open(ended + ".new", "w") as note:
        note.write(str(time.clock_gettime_ns(time.CLOCK_BOOTTIME)))
    os.rename(ended + ".new", ended)
worker.leave(worker.run(worker.parsed(worker.parser(), []), until))
"#;

/// A cluster with a pool `digits` of two workers.
struct Stage {
    cluster: Cluster,
    _owner: Owner,
    client: Client,
}

impl Stage {
    async fn new(mib: u32, holds: bool) -> Self {
        let cluster = Cluster::start().await;
        let script = cluster.dir().join("fated.py");
        fs::write(&script, SCRIPT).unwrap();
        let holds = if holds { "holds" } else { "holds_not" };
        let ended = Self::note(&cluster);
        let script = format!("{} {mib} {holds} {}", script.display(), ended.display());
        let template = "[template.digits.readiness]\nkind = \"grpc\"\n[template.digits.restart]\nmode = \"never\"";
        let file = cluster.pool_file("digits", "coupled", 2, &script, template, "");
        let owner = Owner::with_pool(&cluster, "beam", &file).await;
        let client = cluster.client();
        let stage = Self {
            cluster,
            _owner: owner,
            client,
        };
        eventually("both workers serve", async || {
            (stage.ready().await.len() == 2).then_some(())
        })
        .await;
        for worker in stage.ready().await {
            let worker = worker.worker.as_ref().unwrap().try_into().unwrap();
            let mut client = worker_client(stage.client.channel(), &worker);
            eventually("the gateway knows the worker as well", async || {
                let pixels = vec![0; 64];
                client.predict(PredictRequest { pixels }).await.ok()
            })
            .await;
        }
        stage
    }

    fn note(cluster: &Cluster) -> PathBuf {
        cluster.dir().join("ended")
    }

    async fn ready(&self) -> Vec<Worker> {
        let mut workers = self.cluster.workers("digits").await;
        workers.retain(|worker| worker.phase() == WorkerPhase::Ready);
        workers
    }

    /// The one in slot 0, and its process.
    async fn first(&self) -> (WorkerId, u32) {
        let workers = self.ready().await;
        let first = workers
            .iter()
            .find(|worker| worker.worker.as_ref().unwrap().slot == 0)
            .unwrap();
        let id = first.worker.as_ref().unwrap().try_into().unwrap();
        (id, first.pid)
    }

    /// A call that goes on for long on one worker, whose answer has begun.
    async fn training(&self, worker: &WorkerId) -> Streaming<TrainResponse> {
        let request = TrainRequest {
            job: "long".to_owned(),
            epochs: 100_000,
            throttle_ms: 50,
            ..TrainRequest::default()
        };
        let mut client = worker_client(self.client.channel(), worker);
        let mut training = client.train(request).await.unwrap().into_inner();
        training.message().await.unwrap().unwrap();
        training
    }
}

/// How a call ends that is under way.
async fn end_of(mut training: Streaming<TrainResponse>) -> (Instant, Status) {
    loop {
        match training.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it ended well"),
            Err(status) => return (Instant::now(), status),
        }
    }
}

/// Calls to whichever worker, one each four milliseconds and none waiting for another, until told to stop: when each failed
/// one was made, and how.
fn calls(
    client: &Client,
) -> (
    mpsc::Sender<()>,
    tokio::task::JoinHandle<Vec<(Instant, Status)>>,
) {
    let (stop, mut stopped) = mpsc::channel::<()>(1);
    let client = digits_client(client.channel(), "digits");
    let calling = tokio::spawn(async move {
        let mut under_way = JoinSet::new();
        while stopped.try_recv() == Err(mpsc::error::TryRecvError::Empty) {
            let mut client = client.clone();
            under_way.spawn(async move {
                let mut request = Request::new(PredictRequest {
                    pixels: vec![0; 64],
                });
                request.set_timeout(Duration::from_secs(5));
                let made = Instant::now();
                client
                    .predict(request)
                    .await
                    .err()
                    .map(|error| (made, error))
            });
            sleep(Duration::from_millis(4)).await;
        }
        under_way.join_all().await.into_iter().flatten().collect()
    });
    (stop, calling)
}

/// When the kernel says that a process is dead.
fn dead_at(pid: u32) -> JoinHandle<Instant> {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    tokio::task::spawn_blocking(move || {
        let mut pidfd = [PollFd::new(&pidfd, PollFlags::IN)];
        let within = Timespec {
            tv_sec: 60,
            tv_nsec: 0,
        };
        assert_eq!(poll(&mut pidfd, Some(&within)), Ok(1));
        Instant::now()
    })
}

/// Kills the worker in slot 0 under calls; checks what its callers are told, and says whether they were told before the
/// kernel told its parent.
async fn killed(mib: u32, holds: bool) -> bool {
    let stage = Stage::new(mib, holds).await;
    let (worker, pid) = stage.first().await;
    let training = tokio::spawn(end_of(stage.training(&worker).await));
    let (stop, calling) = calls(&stage.client);
    let dead = dead_at(pid);

    let killed_at = Instant::now();
    kill(pid, Signal::KILL);
    let (ended_at, status) = timeout(DEADLINE, training).await.unwrap().unwrap();
    let dead_at = dead.await.unwrap();
    let dead_after = dead_at - killed_at;
    sleep(Duration::from_millis(200)).await;
    drop(stop);
    let failed = calling.await.unwrap();

    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(reason_of(&status), Some(Reason::WorkerDied), "{status:?}");
    let said = status.message();
    assert!(said.contains("signal 9"), "{said}");
    let (first, second) = (format!("{worker}"), "during the call");
    assert!(said.contains(&first) && said.contains(second), "{said}");
    let last = failed.iter().map(|(made, _)| *made).max();
    let last = last.map(|made| made.saturating_duration_since(killed_at));
    let answered = ended_at - killed_at;
    println!(
        "{mib} MiB, holds {holds}: call under way answered after {answered:?}, last call to it made after {last:?} ({} failed), pidfd after {dead_after:?}",
        failed.len()
    );
    for (_, status) in &failed {
        assert_eq!(reason_of(status), Some(Reason::WorkerDied), "{status:?}");
    }
    let recorded = eventually("the death is recorded", async || {
        let events = stage.cluster.tether().json_lines(&["events"]).await;
        events
            .into_iter()
            .find(|event| event["kind"] == "WORKER_DIED")
    });
    assert_eq!(recorded.await.0["death"]["cause"], "SIGNALED");
    ended_at < dead_at
}

#[tokio::test]
async fn callers_of_a_worker_that_is_killed_are_told_why_and_no_call_follows() {
    killed(0, false).await;
}

#[tokio::test]
async fn callers_of_a_large_worker_that_holds_its_lock_are_told_before_the_kernel_tells_anyone_else()
 {
    assert!(killed(2_048, true).await);
}

/// What the agent tells, as a gateway hears it that takes nothing in.
struct Feed {
    ask: mpsc::Sender<WatchFatesRequest>,
    stream: Streaming<WatchFatesResponse>,
}

impl Feed {
    async fn of(cluster: &Cluster) -> (Self, WatchFatesResponse) {
        let agent = Address::Unix(cluster.runtime().join("agent.sock"));
        let (ask, requests) = mpsc::channel(1);
        let stream = FateServiceClient::new(connect(&agent))
            .watch_fates(ReceiverStream::new(requests))
            .await;
        let mut feed = Self {
            ask,
            stream: stream.unwrap().into_inner(),
        };
        let all = feed.next().await;
        (feed, all)
    }

    async fn next(&mut self) -> WatchFatesResponse {
        let told = timeout(DEADLINE, self.stream.message()).await;
        told.unwrap().unwrap().unwrap()
    }

    async fn until(&mut self, fate: Fate) -> WorkerFate {
        loop {
            let told = self.next().await.workers;
            if let Some(told) = told.into_iter().find(|told| told.fate() == fate) {
                return told;
            }
        }
    }
}

#[tokio::test]
async fn a_worker_that_is_stopped_gets_no_more_calls_until_it_goes_on() {
    let stage = Stage::new(0, false).await;
    let (_, pid) = stage.first().await;
    let (mut feed, _) = Feed::of(&stage.cluster).await;

    let stopped = Instant::now();
    kill(pid, Signal::STOP);
    let (stop, calling) = calls(&stage.client);
    feed.until(Fate::Doubtful).await;
    println!("told after {:?} that it is stopped", stopped.elapsed());
    sleep(Duration::from_millis(500)).await;
    drop(stop);
    let stuck = calling.await.unwrap();
    println!("{} calls were stuck", stuck.len());
    assert!(stuck.len() <= 3, "{stuck:?}");

    kill(pid, Signal::CONT);
    feed.until(Fate::Running).await;
}

#[tokio::test]
async fn the_end_of_a_worker_is_announced_before_it_is_signalled() {
    let stage = Stage::new(0, false).await;
    let (worker, _) = stage.first().await;
    let (mut feed, all) = Feed::of(&stage.cluster).await;
    assert!(all.snapshot && all.node == "node-1", "{all:?}");
    assert_eq!(all.workers.len(), 2, "{all:?}");
    assert!(all.workers.iter().all(|told| told.fate() == Fate::Running));
    let first = WatchFatesRequest {
        seq: 1,
        seen: all.number,
    };
    feed.ask.send(first).await.unwrap();
    let answer = feed.next().await;
    assert_eq!(answer.seq, 1);
    let left = answer.permissions[0].remaining_ms;
    assert!((1..=20_000).contains(&left), "{answer:?}");

    let tether = stage.cluster.tether();
    let slot = format!("{}/{}", worker.pool, worker.slot);
    let arguments = ["stop", slot.as_str()];
    // Nothing is taken in, so that the signal waits for as long as it does for anyone.
    let (stopped, announced) = tokio::join!(tether.run(&arguments), async {
        feed.until(Fate::Ending).await;
        BootClock.now().as_nanos()
    });
    assert_eq!(stopped.code, Some(0), "{}", stopped.err);
    let note = Stage::note(&stage.cluster);
    let (signalled, _) = eventually("it was signalled", async || {
        fs::read_to_string(&note).ok()?.parse::<u64>().ok()
    })
    .await;
    assert!(announced < signalled, "{announced} {signalled}");
    println!(
        "signalled {} us after it was told",
        (signalled - announced) / 1_000
    );

    let died = feed.until(Fate::Dead).await.death.unwrap();
    assert_eq!(died.cause(), DeathCause::OrderedByOperator);
}

/// Figures for the page on deaths: with and without a lock, small and large.
#[tokio::test]
#[ignore = "takes a while, and is for figures"]
async fn how_soon_callers_are_told() {
    for (mib, holds) in [(0, false), (0, true), (1_024, false), (1_024, true)] {
        for _ in 0..3 {
            killed(mib, holds).await;
        }
    }
}
