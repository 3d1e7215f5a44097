//! A node that is cut off from the arbiter, with real processes: two stages, and when a place is filled elsewhere.
//!
//! Each worker writes who it is and when, so that what lived is read from what was written.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]
#![allow(
    clippy::print_stdout,
    reason = "what was observed is printed beside its bounds"
)]

use std::{path::PathBuf, process::Stdio, time::Duration};

use rustix::process::Signal;
use tether_clock::{BootClock, Clock as _};
use tether_proto::{
    job::{GetJobRequest, JobState, PutCheckpointRequest, StartJobRequest},
    worker::Worker,
};
use tether_tests::{Site, digits::PredictRequest, digits_client, eventually, kill};
use tether_types::Reason;

const GRACE: Duration = Duration::from_secs(3);
const STOP: Duration = Duration::from_millis(100);

/// What a machine that is busy with other things takes to beat, kill and start.
const LAG: Duration = Duration::from_secs(2);

fn written(site: &Site) -> PathBuf {
    site.cluster.dir().join("lived")
}

/// Applies a pool with a worker on each node, and tells the one on the second.
async fn apply(site: &Site) -> Worker {
    let script = format!(
        "while :; do read up rest < /proc/uptime; echo $TETHER_SLOT $TETHER_INCARNATION $up >> {}; sleep 0.02; done",
        written(site).display()
    );
    let text = format!(
        "[template.t]\ncommand = \"sh\"\nargs = [\"-c\", {script:?}]\nreadiness = {{ kind = \"started\" }}\nstop = {{ grace = \"{STOP:?}\" }}\n[pool.p]\ntemplate = \"t\"\nmode = \"distributed\"\nsize = 2\n[pool.p.policy]\npartition_grace = \"{GRACE:?}\"\njob_ttl = \"60s\"\n"
    );
    site.apply(&text).await;
    on_second(site, "ready", |worker| worker.pid != 0 && !worker.disabled).await
}

async fn on_second(site: &Site, what: &str, is: impl Fn(&Worker) -> bool) -> Worker {
    site.on_second("p", what, is).await
}

/// Incarnations in a slot, in the order in which they wrote: the first and the last time each did, in
/// seconds since boot.
fn lives(site: &Site, slot: u32) -> Vec<(u64, f64, f64)> {
    let mut lives: Vec<(u64, f64, f64)> = Vec::new();
    for line in std::fs::read_to_string(written(site))
        .unwrap_or_default()
        .lines()
    {
        let words: Vec<_> = line.split(' ').collect();
        let [at, incarnation, up] = words[..] else {
            continue;
        };
        let (incarnation, up) = (incarnation.parse().unwrap(), up.parse().unwrap());
        if at != slot.to_string() {
            continue;
        }
        match lives.last_mut() {
            Some(last) if last.0 == incarnation => last.2 = up,
            _ => lives.push((incarnation, up, up)),
        }
    }
    lives
}

/// Waits until another incarnation writes in this slot; tells the last word of the first and the first of
/// the second.
async fn replaced(site: &Site, slot: u32) -> (f64, f64) {
    let (lives, _) = eventually("another one writes", async || {
        let lives = lives(site, slot);
        (lives.len() > 1).then_some(lives)
    })
    .await;
    // One that wrote again after another had begun would be there twice.
    assert_eq!(lives.len(), 2, "two lived at the same time: {lives:?}");
    (lives[0].2, lives[1].1)
}

/// Sees that a worker ended, and another began, no sooner and no later than the leases say.
async fn check_times(site: &Site, slot: u32, cut: f64) {
    let (last, first) = replaced(site, slot).await;
    let seconds = |span: Duration| span.as_secs_f64();
    let gone = seconds(Site::TTL + GRACE) * 0.995;
    let free = seconds(Site::TTL + GRACE) * (1.005 / 0.995) + 0.5;
    // The last beat before the cut may be an interval old, and more where the machine is busy.
    let beat = seconds(Site::BEAT + LAG);
    let told = |what: &str, at: f64, from: f64, to: f64| {
        let after = at - cut;
        println!("{what}: {after:.2} s after the cut, of {from:.2} to {to:.2}");
        assert!(
            from <= after && after <= to,
            "{what}: {after:.2}, {from:.2} to {to:.2}"
        );
    };
    told(
        "the last word of the old",
        last,
        gone - beat - seconds(STOP),
        gone + 0.1,
    );
    told(
        "the first word of the new",
        first,
        free - beat,
        free + seconds(LAG) * 2.0,
    );
    assert!(last < first, "{last} {first}");
    // Whatever the network did: 0.5 s of slack, and 1.5 % of five seconds for clocks.
    println!("between them: {:.2} s", first - last);
    assert!(first - last > 0.4, "{:.2}", first - last);
}

fn now() -> f64 {
    BootClock
        .now()
        .since(tether_clock::Tick::ZERO)
        .as_secs_f64()
}

fn alive(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn a_worker_that_is_cut_off_is_disabled_and_serves_again_as_the_same_when_its_node_is_back() {
    let site = Site::start().await;
    let worker = apply(&site).await;

    site.cable.cut();
    let disabled = on_second(&site, "disabled", |worker| worker.disabled).await;
    assert_eq!(disabled.pid, worker.pid);
    let nodes = site.cluster.tether().run(&["nodes"]).await.out;
    assert!(nodes.contains("lost, "), "{nodes}");
    let events = site.cluster.tether().run(&["events"]).await.out;
    assert!(
        events.contains("their places are filled elsewhere in"),
        "{events}"
    );
    assert!(alive(worker.pid));
    site.cable.heal();
    let enabled = on_second(&site, "enabled", |worker| !worker.disabled).await;

    assert_eq!(
        (enabled.pid, enabled.worker),
        (worker.pid, worker.worker.clone())
    );
    let slot = worker.worker.unwrap().slot;
    let wrote = lives(&site, slot);
    assert_eq!(wrote.len(), 1, "{wrote:?}");
    assert!(alive(worker.pid));
}

#[tokio::test]
async fn beyond_the_grace_it_is_dead_in_time_and_only_then_is_another_one_started_elsewhere() {
    let site = Site::start().await;
    let worker = apply(&site).await;

    let cut = now();
    site.cable.cut();

    check_times(&site, worker.worker.unwrap().slot, cut).await;
}

#[tokio::test]
async fn an_agent_that_starts_anew_while_it_is_cut_off_gives_its_workers_no_more_time() {
    let mut site = Site::start().await;
    let worker = apply(&site).await;
    let cut = now();
    site.cable.cut();
    on_second(&site, "disabled", |worker| worker.disabled).await;

    site.kill_agent().await;
    site.start_agent();

    check_times(&site, worker.worker.unwrap().slot, cut).await;
}

#[tokio::test]
async fn a_job_runs_on_beyond_the_grace_and_is_found_again_and_its_checkpoint_is_kept() {
    let site = Site::start().await;
    let worker = apply(&site).await;
    let client = site.cluster.client();
    // One for each worker, as the less busy one is asked.
    let mut doing = None;
    for key in ["a", "b"] {
        let start = StartJobRequest {
            pool: "p".to_owned(),
            key: key.to_owned(),
            restarts: Some(0),
            ..StartJobRequest::default()
        };
        let job = client.jobs().start_job(start).await.unwrap().into_inner();
        doing = doing.or_else(|| job.job.filter(|job| job.worker == worker.worker));
    }
    let job = doing.expect("each worker has one");
    let checkpoint = PutCheckpointRequest {
        pool: "p".to_owned(),
        key: job.key.clone(),
        fence: job.fence,
        seq: 1,
        uri: "file:///somewhere".to_owned(),
        ..PutCheckpointRequest::default()
    };
    client.jobs().put_checkpoint(checkpoint).await.unwrap();
    let get = || GetJobRequest {
        pool: "p".to_owned(),
        key: job.key.clone(),
    };
    let look = async || {
        let answer = client.jobs().get_job(get()).await.unwrap();
        answer.into_inner().job.unwrap()
    };
    // Its node is told with an answer, which it says with the beat after.
    let told = now() + (Site::BEAT + LAG).as_secs_f64();
    eventually("its node has heard of the job", async || {
        (now() > told).then_some(())
    })
    .await;

    let cut = now();
    site.cable.cut();
    let beyond = (Site::TTL + GRACE).as_secs_f64() * 1.01 + 2.0;
    eventually("it is beyond the grace", async || {
        (now() - cut > beyond).then_some(())
    })
    .await;
    assert!(alive(worker.pid), "it has a job");
    assert_eq!(look().await.state(), JobState::Orphaned);
    site.cable.heal();
    eventually("it is found again", async || {
        (look().await.state() == JobState::Running).then_some(())
    })
    .await;

    let again = look().await;
    assert_eq!((again.fence, again.worker), (job.fence, job.worker));
    assert_eq!(again.checkpoint.unwrap().uri, "file:///somewhere");
    assert!(alive(worker.pid));
    println!(
        "alive {:.2} s after the cut, its grace was over after {:.2}",
        now() - cut,
        beyond - 2.0
    );
}

#[tokio::test]
async fn a_witness_has_the_place_of_a_dead_node_filled_at_once() {
    let mut site = Site::start().await;
    let worker = apply(&site).await;
    let early = site.cluster.tether().run(&["node", "dead", "node-2"]).await;
    assert!(early.err.contains("so it lives"), "{}", early.err);

    site.kill_agent().await;
    tether_tests::tidy(&site.runtime());
    on_second(&site, "disabled", |worker| worker.disabled).await;
    let lost = now();
    let dead = ["node", "dead", "node-2", "--witness", "the test"];
    let ran = site.cluster.tether().run(&dead).await;

    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let (_, first) = replaced(&site, worker.worker.unwrap().slot).await;
    println!(
        "another one after {:.2} s, the grace is {GRACE:?}",
        first - lost
    );
    let events = site.cluster.tether().run(&["events"]).await.out;
    assert!(events.contains("was declared dead by the test"), "{events}");
}

#[tokio::test]
async fn an_owner_that_hears_nothing_refuses_itself_in_time_whoever_else_may_be_asked() {
    let site = Site::start().await;
    apply(&site).await;
    let client = site.cluster.client();
    let ttl = Duration::from_secs(4);
    let options = tether_client::SessionOptions {
        ttl: Some(ttl),
        ..tether_client::SessionOptions::default()
    };
    let session = client
        .open_session("beam".parse().unwrap(), options)
        .await
        .unwrap();
    let acting = session.acting();
    assert!(acting.check().is_ok());

    // All of `tether up`, gateway and arbiter, answers nothing any more.
    let stopped = now();
    kill(site.cluster.pid(), Signal::STOP);
    let (refused, _) = eventually("it refuses itself", async || acting.check().err()).await;
    let after = now() - stopped;
    kill(site.cluster.pid(), Signal::CONT);

    assert_eq!(refused.reason(), Reason::LeaseExpired);
    println!("refused {after:.2} s after the last answer could come, of a lease of {ttl:?}");
    assert!(
        after <= ttl.as_secs_f64() && after > ttl.as_secs_f64() - 2.0,
        "{after}"
    );
    assert!(matches!(
        session.lost().await,
        tether_client::Lost::Expired(_)
    ));
}

#[tokio::test]
async fn tether_run_says_when_its_session_is_in_jeopardy_and_last_of_all_that_it_is_lost() {
    let site = Site::start().await;
    let args = [
        "run",
        "--owner",
        "runner",
        "--ttl",
        "4s",
        "--mode",
        "independent",
        "--pool",
        "q",
    ];
    let command = ["--", "sh", "-c", "sleep 1000"];
    let mut run = site
        .cluster
        .tether()
        .command(&[&args[..], &command].concat());
    let run = run
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it owns a pool", async || {
        let pools = site.cluster.tether().json(&["pool", "ls"]).await;
        let owned = |pool: &serde_json::Value| pool["owner"] == "runner";
        pools.as_array()?.iter().any(owned).then_some(())
    })
    .await;

    kill(site.cluster.pid(), Signal::STOP);
    let ended = run.wait_with_output().await.unwrap();
    kill(site.cluster.pid(), Signal::CONT);

    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(75), "{said}");
    assert!(said.contains("in jeopardy"), "{said}");
    let last = said.trim_end().lines().last().unwrap();
    assert!(
        last.contains("owns nothing any more") && last.contains("the lease ran out"),
        "{said}"
    );
}

#[tokio::test]
async fn a_call_in_the_name_of_a_session_is_refused_once_another_took_over_and_once_it_is_over() {
    let site = Site::start().await;
    apply(&site).await;
    let client = site.cluster.client();
    let open = async || {
        let options = tether_client::SessionOptions::default();
        client
            .open_session("beam".parse().unwrap(), options)
            .await
            .unwrap()
    };
    // Its workers speak no gRPC: what is not refused before it fails in another way.
    let act = async |epoch: u64| {
        let mut request = tonic::Request::new(PredictRequest::default());
        let metadata = request.metadata_mut();
        metadata.insert("tether-owner", "beam".parse().unwrap());
        metadata.insert("tether-epoch", epoch.into());
        let answer = digits_client(client.channel(), "p").predict(request).await;
        tether_proto::reason_of(&answer.unwrap_err())
    };

    let first = open().await;
    assert_ne!(act(first.epoch().0).await, Some(Reason::LeaseFenced));
    let second = open().await;
    eventually("the first is refused", async || {
        (act(first.epoch().0).await == Some(Reason::LeaseFenced)).then_some(())
    })
    .await;
    eventually("and was told, so that it refuses itself", async || {
        let refused = first.acting().check().err()?;
        (refused.reason() == Reason::LeaseFenced).then_some(())
    })
    .await;

    let epoch = second.epoch().0;
    let holds = act(epoch).await;
    assert!(
        ![Some(Reason::LeaseFenced), Some(Reason::LeaseExpired)].contains(&holds),
        "{holds:?}"
    );
    second.close().await.unwrap();
    eventually("it is over", async || {
        (act(epoch).await == Some(Reason::LeaseExpired)).then_some(())
    })
    .await;
}
