//! Real processes that speak to a real socket, and one that does not belong.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    io::Write as _,
    os::unix::net::{UnixDatagram, UnixListener},
    process::{Child, ChildStdin, Command, Stdio},
};

use tether_proto::{
    common::Death,
    pool::{Liveness as Watched, Readiness},
};
use tether_types::DeathCause as Why;
use tokio::time::timeout;

use super::*;
use crate::{notify::NOTIFY_FILE, report};

/// Longer than anything takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Says each line it reads to the socket in NOTIFY_SOCKET; `+` stands for the end of a line.
const SPEAKER: &str = "
import array, os, socket, sys
end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
for line in sys.stdin:
    text = line.strip().replace('+', '\\n').encode()
    here, _ = socket.socketpair()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [here.fileno()]))
    end.sendmsg([text], [rights], 0, os.environ['NOTIFY_SOCKET'])
";

struct Worker {
    id: WorkerId,
    dir: tempfile::TempDir,
    health: Health,
    speaker: Option<(Child, ChildStdin)>,
}

impl Worker {
    fn new(template: Template) -> Self {
        let id: WorkerId = "digits/0.1".parse().unwrap();
        let dir = tempfile::tempdir().unwrap();
        journal::Entry::default().write(dir.path()).unwrap();
        let health = Health::of_new(place(&id, dir.path(), &template));
        Self {
            id,
            dir,
            health,
            speaker: None,
        }
    }

    fn run(&mut self) {
        let mut child = Command::new("python3")
            .args(["-c", SPEAKER])
            .env("NOTIFY_SOCKET", self.dir.path().join(NOTIFY_FILE))
            .env("TETHER_DIR", self.dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        self.health.on_running(child.id());
        let stdin = child.stdin.take().unwrap();
        self.speaker = Some((child, stdin));
    }

    fn say(&mut self, text: &str) {
        let (_, stdin) = self.speaker.as_mut().unwrap();
        writeln!(stdin, "{text}").unwrap();
    }

    async fn next(&mut self) -> HealthEvent {
        timeout(DEADLINE, self.health.next()).await.unwrap()
    }

    fn explained(&self, why: Why) -> String {
        let mut report = report::lost(&self.id, why, "");
        self.health.explain(&mut report);
        let Some(Death { detail, .. }) = report.death else {
            panic!("it is dead");
        };
        detail
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some((mut child, stdin)) = self.speaker.take() {
            drop(stdin);
            child.wait().unwrap();
        }
        self.health.store.take(&self.id.pool, self.id.slot);
    }
}

fn place<'a>(id: &'a WorkerId, dir: &'a Path, template: &'a Template) -> Place<'a> {
    static NOWHERE: Address = Address::Unix(PathBuf::new());
    Place {
        id,
        dir,
        own_dir: dir,
        cgroup: None,
        address: &NOWHERE,
        template,
        node: "n1",
    }
}

fn template(kind: ReadinessKind, what: &str, liveness: Option<Watched>) -> Template {
    Template {
        readiness: Some(Readiness {
            kind: kind.into(),
            what: what.to_owned(),
            ..Readiness::default()
        }),
        liveness,
        ..Template::default()
    }
}

fn notifying(watchdog_ms: u64) -> Template {
    let liveness = Watched {
        watchdog_ms,
        ..Watched::default()
    };
    template(ReadinessKind::Notify, "", Some(liveness))
}

const READY: HealthEvent = HealthEvent::Phase(WorkerPhase::Ready);
const ENDED: HealthEvent = HealthEvent::Unhealthy { grace_ms: 10_000 };

#[tokio::test]
async fn a_worker_is_ready_when_it_says_so_and_not_when_a_stranger_does() {
    let mut worker = Worker::new(notifying(0));
    worker.run();
    let stranger = UnixDatagram::unbound().unwrap();
    let socket = worker.dir.path().join(NOTIFY_FILE);
    stranger
        .send_to(b"READY=1\nSTATUS=stranger", socket)
        .unwrap();
    worker.say("STATUS=loading");

    // The stranger spoke first: it would have been heard first.
    assert_eq!(
        worker.next().await,
        HealthEvent::Phase(WorkerPhase::Starting)
    );
    assert_eq!(worker.health.status(), "loading");
    worker.say("READY=1");
    assert_eq!(worker.next().await, READY);
}

#[tokio::test]
async fn a_status_is_told_when_it_changed_and_at_most_once_a_second() {
    let mut worker = Worker::new(notifying(0));
    worker.run();
    worker.say("STATUS=0+READY=1");
    assert_eq!(worker.next().await, READY);
    assert_eq!(worker.next().await, READY);
    let told = Instant::now();
    for number in 0..20 {
        worker.say(&format!("STATUS={number}"));
    }

    assert_eq!(worker.next().await, READY);
    assert!(told.elapsed() > Duration::from_millis(900));
    assert_eq!(worker.health.status(), "19");
    worker.say("STATUS=19");
    worker.say("WATCHDOG=trigger");
    assert_eq!(
        worker.next().await,
        ENDED,
        "what was told is not told again"
    );
}

#[tokio::test]
async fn a_worker_that_triggers_its_watchdog_is_ended_and_the_death_says_so() {
    let mut worker = Worker::new(notifying(0));
    worker.run();
    worker.say("READY=1+WATCHDOG=1");
    assert_eq!(worker.next().await, READY);
    worker.say("WATCHDOG=trigger");

    assert_eq!(worker.next().await, ENDED);

    assert_eq!(worker.explained(Why::Unhealthy), "it said WATCHDOG=trigger");
    assert_eq!(worker.explained(Why::OwnerGone), "");
}

#[tokio::test]
async fn a_report_that_came_while_the_agent_was_held_up_is_heard_before_its_absence_is_judged() {
    let mut worker = Worker::new(notifying(300));
    worker.run();
    worker.say("READY=1");
    assert_eq!(worker.next().await, READY);
    worker.say("WATCHDOG=1+STATUS=alive");
    // The agent, which is this thread, looks again only when the worker's time is long over.
    std::thread::sleep(Duration::from_millis(600));

    assert_eq!(worker.next().await, READY);
    assert_eq!(worker.health.status(), "alive");
    assert_eq!(worker.next().await, ENDED);
    let why = "it did not send WATCHDOG=1 within 300 ms";
    assert_eq!(worker.explained(Why::Unhealthy), why);
}

#[tokio::test]
async fn a_worker_that_says_it_stops_is_no_longer_judged_but_must_stop_within_its_grace() {
    let mut template = notifying(200);
    template.stop = Some(tether_proto::pool::Stop {
        grace_ms: Some(700),
        ..Default::default()
    });
    let mut worker = Worker::new(template);
    worker.run();
    worker.say("READY=1");
    assert_eq!(worker.next().await, READY);
    worker.say("STOPPING=1");
    assert_eq!(
        worker.next().await,
        HealthEvent::Phase(WorkerPhase::Stopping)
    );
    let said = Instant::now();

    assert_eq!(
        worker.next().await,
        HealthEvent::Unhealthy { grace_ms: 700 }
    );

    assert!(said.elapsed() > Duration::from_millis(600));
    let why = "it said STOPPING=1 and was still there 700 ms later";
    assert_eq!(worker.explained(Why::Unhealthy), why);
}

#[tokio::test]
async fn descriptors_are_kept_for_the_next_incarnation_and_closed_when_there_is_none() {
    let mut worker = Worker::new(notifying(0));
    worker.run();
    worker.say("FDSTORE=1+FDNAME=listener");
    worker.say("FDSTORE=1+FDNAME=other");
    worker.say("FDNAME=not stored");
    worker.say("FDSTOREREMOVE=1+FDNAME=other");
    worker.say("READY=1");
    assert_eq!(worker.next().await, READY);
    let (pool, store) = (worker.id.pool.clone(), worker.health.store.clone());

    worker.health.on_ending(Cause::Unhealthy);
    let kept = store.take(&pool, 0);
    let names: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["listener"]);
    let kept = kept.into_iter().map(|(_, descriptor)| descriptor).collect();
    store.keep(&pool, 0, None, kept);
    worker.health.on_ending(Cause::Ordered(Orderer::Scale));
    assert!(store.take(&pool, 0).is_empty());
}

#[tokio::test]
async fn an_adopted_worker_that_was_ready_is_ready_and_another_one_must_say_so() {
    let mut worker = Worker::new(notifying(0));
    let template = notifying(0);
    worker.health = Health::of_adopted(place(&worker.id, worker.dir.path(), &template));
    worker.run();
    worker.say("STATUS=not yet");
    let event = worker.next().await;
    assert_eq!(event, HealthEvent::Phase(WorkerPhase::Starting));
    assert!(!was_ready(worker.dir.path(), &template));
    worker.say("READY=1");
    assert_eq!(worker.next().await, READY);
    assert!(was_ready(worker.dir.path(), &template));

    worker.health = Health::of_adopted(place(&worker.id, worker.dir.path(), &template));
    let pid = worker.speaker.as_ref().unwrap().0.id();
    worker.health.on_resumed(pid);
    worker.say("STATUS=still");

    assert_eq!(worker.next().await, READY);
    assert_eq!(worker.health.status(), "still");
}

#[tokio::test]
async fn a_worker_that_is_about_to_end_is_not_ready_for_the_next_agent() {
    let mut worker = Worker::new(notifying(0));
    worker.run();
    worker.say("READY=1");
    assert_eq!(worker.next().await, READY);

    worker.say("STOPPING=1");

    let event = worker.next().await;
    assert_eq!(event, HealthEvent::Phase(WorkerPhase::Stopping));
    assert!(!was_ready(worker.dir.path(), &notifying(0)));
}

#[tokio::test]
async fn a_file_of_an_earlier_incarnation_does_not_count_and_the_death_says_what_was_waited_for() {
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("digits-0");
    fs::write(&file, "").unwrap();
    // The clock of the file system is coarse: another file has to be younger for sure.
    let changed = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let probe = elsewhere.path().join("probe");
    while !probe.exists() || changed(&probe) <= changed(&file) {
        fs::write(&probe, "").unwrap();
    }
    let what = elsewhere.path().join("{pool}-{slot}").display().to_string();
    let mut worker = Worker::new(template(ReadinessKind::File, &what, None));
    worker.run();
    worker.say("STATUS=asked");
    assert_eq!(
        worker.next().await,
        HealthEvent::Phase(WorkerPhase::Starting)
    );
    assert!(
        timeout(Duration::from_millis(300), worker.health.next())
            .await
            .is_err()
    );
    worker.health.on_ending(Cause::NeverReady);
    let why = worker.explained(Why::NeverReady);
    assert!(
        why.contains("digits-0") && why.contains("before this worker started"),
        "{why}"
    );

    let mut worker = Worker::new(template(ReadinessKind::File, &what, None));
    fs::write(&file, "new").unwrap();
    worker.run();
    assert_eq!(worker.next().await, READY);
}

#[tokio::test]
async fn a_line_is_found_where_it_was_written_before_rotated_away_or_came_in_pieces() {
    let logs: [&[(&str, &str)]; 3] = [
        &[("stderr.log", "a\nlistening on 7\nb")],
        &[("stdout.log.1", "x\nlistening"), ("stdout.log", " on 8\n")],
        &[("stdout.log", "\n"), ("stderr.log.1", "listening on\n")],
    ];
    for written in logs {
        let mut worker = Worker::new(template(ReadinessKind::LogLine, "listening on", None));
        fs::write(worker.dir.path().join("stdout.log"), "listening to\n").unwrap();
        worker.health.on_running(0);
        assert!(
            timeout(Duration::from_millis(100), worker.health.next())
                .await
                .is_err()
        );
        worker.health.on_running(0);
        for (name, text) in written {
            fs::write(worker.dir.path().join(name), text).unwrap();
        }
        assert_eq!(worker.next().await, READY);
    }
}

#[tokio::test]
async fn a_ready_worker_that_no_longer_answers_is_found_out_by_the_question_of_its_readiness() {
    let liveness = Watched {
        interval_ms: 50,
        timeout_ms: 50,
        failures: 2,
        ..Watched::default()
    };
    let mut template = template(ReadinessKind::Connect, "", None);
    template.liveness = Some(liveness);
    let (id, dir): (WorkerId, _) = ("digits/0.1".parse().unwrap(), tempfile::tempdir().unwrap());
    let address = Address::Unix(dir.path().join("worker.sock"));
    let mut health = Health::of_new(Place {
        address: &address,
        ..place(&id, dir.path(), &template)
    });
    let listener = UnixListener::bind(dir.path().join("worker.sock")).unwrap();
    health.on_running(0);
    assert_eq!(timeout(DEADLINE, health.next()).await.unwrap(), READY);

    drop(listener);

    // Before it is judged.
    let unwell = HealthEvent::Well(false);
    assert_eq!(timeout(DEADLINE, health.next()).await.unwrap(), unwell);
    assert_eq!(timeout(DEADLINE, health.next()).await.unwrap(), ENDED);
    assert!(
        health
            .detail
            .starts_with("a connection: Connection refused")
            && health.detail.ends_with("2 times in a row"),
        "{}",
        health.detail
    );
}
