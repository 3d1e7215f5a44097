//! What a worker with a job sees of its own permission while its node is cut off, read from what a real one wrote.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]
#![allow(
    clippy::print_stdout,
    reason = "what was observed is printed beside its bounds"
)]

use std::time::Duration;

use tether_clock::{BootClock, Clock as _, Tick};
use tether_proto::{job::StartJobRequest, worker::Worker};
use tether_tests::{Site, eventually};

const GRACE: Duration = Duration::from_secs(3);
const JOB_TTL: Duration = Duration::from_secs(60);

/// What a machine that is busy with other things takes to beat, and to look.
const LAG: Duration = Duration::from_secs(2);

/// Writes what `tether.lease` says, all the time: when, whether it may act, and for how long it may be there.
const SCRIPT: &str = "
import os, sys, time
from tether import lease
said = os.open(sys.argv[1] + os.environ['TETHER_INCARNATION'], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
while True:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    os.write(said, b'%f %d %f\\n' % (now, lease.is_valid(), min(lease.lifetime(), 1e9)))
    time.sleep(0.02)
";

/// What it said once.
#[derive(Debug, Clone, Copy)]
struct Said {
    at: f64,
    is_valid: bool,
    lifetime: f64,
}

fn said(site: &Site, incarnation: u64) -> Vec<Said> {
    let file = site.cluster.dir().join(format!("said.{incarnation}"));
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let one = |line: &str| {
        let words: Vec<f64> = line.split(' ').map(|word| word.parse().unwrap()).collect();
        Said {
            at: words[0],
            is_valid: words[1] != 0.0,
            lifetime: words[2],
        }
    };
    whole.lines().map(one).collect()
}

async fn says(site: &Site, what: &str, incarnation: u64, is: impl Fn(&Said) -> bool) -> Said {
    eventually(what, async || said(site, incarnation).pop().filter(&is))
        .await
        .0
}

fn now() -> f64 {
    BootClock.now().since(Tick::ZERO).as_secs_f64()
}

fn seconds(span: Duration) -> f64 {
    span.as_secs_f64()
}

/// A worker on the second node that does a job, and has been told.
async fn start(site: &Site) -> Worker {
    let sdk = std::path::absolute(concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/python"));
    let file = site.cluster.dir().join("said.");
    let text = format!(
        "[template.t]\ncommand = \"python3\"\nargs = [\"-c\", {SCRIPT:?}, {file:?}]\n\
         env = {{ PYTHONPATH = {sdk:?} }}\nreadiness = {{ kind = \"started\" }}\nstop = {{ grace = \"100ms\" }}\n\
         [pool.p]\ntemplate = \"t\"\nmode = \"distributed\"\nsize = 2\n\
         [pool.p.policy]\npartition_grace = \"{GRACE:?}\"\njob_ttl = \"{JOB_TTL:?}\"\n",
        sdk = sdk.unwrap(),
    );
    site.apply(&text).await;
    let is_ready = |worker: &Worker| worker.pid != 0 && !worker.disabled;
    let worker = site.on_second("p", "it is ready", is_ready).await;
    let of_pool = says(
        site,
        "it is told of its lease",
        incarnation(&worker),
        |said| said.is_valid && said.lifetime < seconds(Site::TTL + GRACE),
    );
    of_pool.await;
    // One for each worker, as the less busy one is asked.
    for key in ["a", "b"] {
        let start = StartJobRequest {
            pool: "p".to_owned(),
            key: key.to_owned(),
            restarts: Some(0),
            ..StartJobRequest::default()
        };
        site.cluster.client().jobs().start_job(start).await.unwrap();
    }
    says(
        site,
        "it sees the end of its job",
        incarnation(&worker),
        |said| said.lifetime > seconds(JOB_TTL - LAG),
    )
    .await;
    worker
}

fn incarnation(worker: &Worker) -> u64 {
    worker.worker.as_ref().unwrap().incarnation
}

/// Cuts the node off until what its other workers may outlive its lease by is long over, and heals; `meanwhile` it
/// may suffer more. Sees what its worker said of its permission all the while.
async fn check(site: &mut Site, meanwhile: impl AsyncFnOnce(&mut Site)) {
    let worker = start(site).await;
    let incarnation = incarnation(&worker);
    let cut = now();
    site.cable.cut();
    let beyond = cut + seconds(Site::TTL + GRACE) * 1.01 + 1.0;
    says(site, "it is disabled", incarnation, |said| !said.is_valid).await;

    meanwhile(site).await;
    says(site, "it lives on beyond the grace", incarnation, |said| {
        said.at > beyond
    })
    .await;
    let healed = now();
    site.cable.heal();
    let again = says(site, "it is enabled again", incarnation, |said| {
        said.is_valid && said.lifetime > seconds(JOB_TTL - LAG)
    })
    .await;

    let all = said(site, incarnation);
    let cut_off: Vec<_> = all
        .iter()
        .filter(|said| cut < said.at && said.at < healed)
        .collect();
    // Exactly once it went from enabled to disabled: no later than its lease allowed, counted from the cut.
    let last = cut_off.iter().rfind(|said| said.is_valid).unwrap();
    println!(
        "enabled until {:.2} s after the cut, of {:?}",
        last.at - cut,
        Site::TTL
    );
    assert!(last.at - cut <= seconds(Site::TTL), "{last:?}");
    assert!(
        cut_off.is_sorted_by_key(|said| !said.is_valid),
        "it was enabled in between"
    );
    // To the same end all the while: that of its job after its node was heard last, less what a slow clock makes of it.
    let until = seconds(JOB_TTL) * 0.995;
    for said in cut_off {
        let end = said.at + said.lifetime - cut;
        let from = until - seconds(Site::BEAT + LAG);
        assert!(
            from <= end && end <= until + 0.1,
            "{end:.2}, {from:.2} to {until:.2}: {said:?}"
        );
    }
    println!("enabled again {:.2} s after the heal", again.at - healed);
    let back = site
        .on_second("p", "it is in service", |worker| !worker.disabled)
        .await;
    assert_eq!((back.pid, back.worker), (worker.pid, worker.worker));
}

#[tokio::test]
async fn a_job_that_is_cut_off_knows_that_it_may_not_act_and_until_when_it_lives_and_acts_again_when_it_may()
 {
    let mut site = Site::start().await;

    check(&mut site, async |_| {}).await;
}

#[tokio::test]
async fn so_it_does_where_its_agent_dies_meanwhile_and_another_one_finds_it() {
    let mut site = Site::start().await;

    check(&mut site, async |site| {
        site.kill_agent().await;
        site.start_agent();
    })
    .await;
}
