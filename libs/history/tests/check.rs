//! Each rule on small histories, kept and broken; and what a file may look like.

#![allow(clippy::unwrap_used, reason = "helpers outside of test functions")]

use std::{fs, io::Write as _, time::Duration};

use tether_clock::{ManualClock, Tick};
use tether_history::{
    Checker, Error, Freed, Lines, Record, Recorder, Report, Rule, Scope, What, Worker, files_in,
};

const SECOND: u64 = 1_000_000_000;

fn opened(service: &str) -> (u64, What) {
    opened_on(service, "one")
}

fn opened_on(service: &str, boot: &str) -> (u64, What) {
    let what = What::Opened {
        service: service.to_owned(),
        boot: boot.to_owned(),
    };
    (0, what)
}

fn worker(name: &str) -> Worker {
    Worker(name.parse().unwrap())
}

fn granted(epoch: u64, left: u64) -> What {
    What::Granted {
        lease: "node/n1".to_owned(),
        epoch,
        left: left * SECOND,
    }
}

fn freed(epoch: u64, why: Freed) -> What {
    What::Freed {
        lease: "node/n1".to_owned(),
        epoch,
        why,
    }
}

fn held(epoch: u64, left: u64) -> What {
    What::Held {
        lease: "node/n1".to_owned(),
        epoch,
        left: left * SECOND,
    }
}

fn permitted(left: u64) -> What {
    What::Permitted {
        scope: Scope::Node("n1".to_owned()),
        enabled: left * SECOND,
        alive: Some(left * SECOND),
    }
}

fn started(name: &str) -> What {
    started_on("n1", name)
}

fn started_on(node: &str, name: &str) -> What {
    What::Started {
        worker: worker(name),
        node: node.to_owned(),
        grace_ms: 1_000,
    }
}

fn died(name: &str, at_ms: u64, cause: &str) -> What {
    What::Died {
        worker: worker(name),
        died: Some(at_ms * 1_000_000),
        cause: cause.to_owned(),
    }
}

fn admitted(fence: u64) -> What {
    What::Admitted {
        gate: "gateway".to_owned(),
        resource: "session/o".to_owned(),
        fence,
    }
}

/// Judges files, each a list of seconds and what happened then.
fn judge(files: &[&[(u64, What)]]) -> Report {
    let mut checker = Checker::new();
    for file in files {
        checker.next_file();
        for (secs, what) in *file {
            checker.read(&Record {
                at: secs * SECOND,
                what: what.clone(),
            });
        }
    }
    checker.finish()
}

fn broken(files: &[&[(u64, What)]]) -> Vec<Rule> {
    let report = judge(files);
    report.violations.iter().map(|broken| broken.rule).collect()
}

#[test]
fn a_worker_that_is_gone_with_its_permission_is_no_orphan_and_one_that_is_not_is_one() {
    let agent = |died_ms| {
        vec![
            opened("agent"),
            (0, permitted(20)),
            (2, started("p/0.1")),
            (30, died("p/0.1", died_ms, "LEASE_EXPIRED")),
        ]
    };

    assert_eq!(broken(&[&agent(20_400)]), []);
    assert_eq!(broken(&[&agent(20_600)]), [Rule::H1]);
}

#[test]
fn a_worker_nobody_saw_end_is_an_orphan_only_where_its_agent_was_there_to_see() {
    let mut agent = vec![
        opened("agent"),
        (0, permitted(20)),
        (2, started("p/0.1")),
        (20, permitted(0)),
    ];
    let report = judge(&[&agent]);
    assert_eq!(
        (
            report.violations.len(),
            report.unjudged.get(&Rule::H1).copied()
        ),
        (0, Some(1))
    );

    agent.push((21, permitted(0)));

    assert_eq!(broken(&[&agent]), [Rule::H1]);
}

#[test]
fn the_permission_of_a_pool_counts_where_it_is_over_before_that_of_the_node() {
    let of_pool = What::Permitted {
        scope: Scope::Pool {
            node: "n1".to_owned(),
            pool: "p".to_owned(),
        },
        enabled: 5 * SECOND,
        alive: Some(5 * SECOND),
    };
    let agent = [
        opened("agent"),
        (0, permitted(20)),
        (0, of_pool),
        (2, started("p/0.1")),
        (2, started("q/0.2")),
        (9, died("p/0.1", 8_000, "OWNER_GONE")),
        (9, died("q/0.2", 8_000, "EXITED")),
    ];

    assert_eq!(broken(&[&agent]), [Rule::H1]);
}

#[test]
fn a_worker_ended_for_want_of_a_permission_it_had_died_innocent() {
    let agent = |died_ms| {
        vec![
            opened("agent"),
            (0, permitted(20)),
            (2, started("p/0.1")),
            (19, died("p/0.1", died_ms, "LEASE_EXPIRED")),
        ]
    };

    assert_eq!(broken(&[&agent(19_000)]), []);
    assert_eq!(broken(&[&agent(18_900)]), [Rule::H4]);
}

#[test]
fn a_lease_is_not_freed_before_its_end_nor_while_its_holder_goes_on() {
    let arbiter = |freed_at| {
        vec![
            opened("arbiter"),
            (0, granted(7, 21)),
            (freed_at, freed(7, Freed::Expired)),
        ]
    };
    let holder = |until| vec![opened("agent"), (0, held(7, until))];

    assert_eq!(broken(&[&arbiter(21), &holder(20)]), []);
    assert_eq!(broken(&[&arbiter(20), &holder(20)]), [Rule::H4]);
    assert_eq!(broken(&[&arbiter(21), &holder(22)]), [Rule::H2]);
    let mut stopped = holder(22);
    stopped.push((
        20,
        What::Stopped {
            lease: "node/n1".to_owned(),
            epoch: 7,
        },
    ));
    assert_eq!(broken(&[&arbiter(21), &stopped]), []);
}

#[test]
fn a_lease_is_granted_again_only_after_it_was_freed() {
    let arbiter = |second_at| {
        vec![
            opened("arbiter"),
            (0, granted(7, 21)),
            (21, freed(7, Freed::Expired)),
            (second_at, granted(8, 50)),
        ]
    };
    let holder = [opened("agent"), (0, held(7, 20))];

    assert_eq!(broken(&[&arbiter(21), &holder]), []);
    assert_eq!(broken(&[&arbiter(20), &holder]), [Rule::H2]);
    let forgetful = [opened("arbiter"), (0, granted(7, 21)), (15, granted(8, 50))];
    assert_eq!(broken(&[&forgetful, &holder]), [Rule::H2]);
    let taken_over = [
        opened("arbiter"),
        (0, granted(7, 21)),
        (15, freed(7, Freed::TakenOver)),
        (15, granted(8, 50)),
    ];
    assert_eq!(broken(&[&taken_over, &holder]), []);
}

#[test]
fn an_epoch_that_was_followed_by_another_is_extended_no_more() {
    let arbiter = |late| {
        vec![
            opened("arbiter"),
            (0, granted(7, 21)),
            (15, freed(7, Freed::TakenOver)),
            (15, granted(8, 21)),
            (late, granted(7, 21)),
        ]
    };

    assert_eq!(broken(&[&arbiter(14)]), []);
    assert_eq!(broken(&[&arbiter(16)]), [Rule::H2]);
    // So it is where another arbiter does: one that was deposed and does not know.
    let (first, second) = (arbiter(16), [opened("arbiter"), (17, granted(7, 21))]);
    assert_eq!(broken(&[&first[..4], &second]), [Rule::H2]);
}

#[test]
fn who_gave_a_lease_back_or_is_said_to_be_dead_goes_on_with_it_no_more() {
    let arbiter = |why| [opened("arbiter"), (0, granted(7, 21)), (10, freed(7, why))];
    let holder = |last| [opened("agent"), (0, held(7, 20)), (last, held(7, 20))];

    for why in [Freed::Returned, Freed::Proof] {
        assert_eq!(broken(&[&arbiter(why), &holder(10)]), []);
        assert_eq!(broken(&[&arbiter(why), &holder(11)]), [Rule::H2], "{why:?}");
    }
    // A witness of elsewhere cannot be compared.
    let elsewhere = [
        opened_on("agent", "two"),
        (0, held(7, 20)),
        (11, held(7, 20)),
    ];
    let report = judge(&[&arbiter(Freed::Proof), &elsewhere]);
    assert_eq!(report.unjudged.get(&Rule::H2), Some(&1));
}

#[test]
fn two_incarnations_of_one_place_do_not_overlap() {
    let agent = |second_at| {
        vec![
            opened("agent"),
            (0, permitted(60)),
            (2, started("p/0.1")),
            (30, died("p/0.1", 30_000, "EXITED")),
            (second_at, started("p/0.2")),
        ]
    };
    assert_eq!(broken(&[&agent(30)]), []);
    assert_eq!(broken(&[&agent(29)]), [Rule::H2]);

    // Unseen, it was gone when its permission was over, or when there was proof.
    let unseen = |second_at, more: Option<(u64, What)>| {
        let mut first = vec![
            opened("agent@n1"),
            (0, permitted(20)),
            (2, started("p/0.1")),
        ];
        first.extend(more);
        let second = started_on("n2", "p/0.2");
        judge(&[&first, &[opened("agent@n2"), (second_at, second)]])
    };
    let rules = |report: Report| -> Vec<_> {
        let broken = report.violations.iter();
        broken.map(|broken| broken.rule).collect()
    };
    assert_eq!(rules(unseen(21, None)), []);
    assert_eq!(rules(unseen(19, None)), [Rule::H2]);
    let buried = What::Buried {
        worker: worker("p/0.1"),
        cause: "UNKNOWN".to_owned(),
    };
    assert_eq!(rules(unseen(19, Some((18, buried)))), []);
}

#[test]
fn a_gate_that_has_let_a_token_through_lets_no_lower_one_through() {
    let gate = |last| {
        vec![
            opened("gateway"),
            (1, admitted(7)),
            (2, admitted(8)),
            (3, admitted(last)),
        ]
    };

    assert_eq!(broken(&[&gate(8)]), []);
    assert_eq!(broken(&[&gate(7)]), [Rule::H3]);
}

#[test]
fn a_death_is_recorded_once() {
    let buried = || What::Buried {
        worker: worker("p/0.1"),
        cause: "EXITED".to_owned(),
    };

    assert_eq!(broken(&[&[opened("arbiter"), (1, buried())]]), []);
    let twice = [opened("arbiter"), (1, buried()), (9, buried())];
    assert_eq!(broken(&[&twice]), [Rule::H5]);
}

#[test]
fn ticks_of_two_machines_are_not_compared_but_counted() {
    let arbiter = [
        opened_on("arbiter", "one"),
        (0, granted(7, 21)),
        (21, freed(7, Freed::Expired)),
    ];
    let holder = [opened_on("agent", "two"), (0, held(7, 1_000))];

    let report = judge(&[&arbiter, &holder]);

    assert_eq!(report.violations, []);
    assert_eq!(report.unjudged.get(&Rule::H2), Some(&1));
}

#[test]
fn what_was_recorded_is_read_again_but_for_a_line_that_was_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::at(Tick::from_nanos(5));
    let open = || Recorder::open(dir.path(), "agent@n1", "boot", clock.clone()).unwrap();
    let (recorder, path) = open();
    clock.advance(Duration::from_nanos(2));
    recorder.record(started("p/0.1"));
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(br#"{"at":9,"what":"sta"#).unwrap();
    let (_, second) = open();

    let read: Result<Vec<_>, _> = Lines::open(&path).unwrap().collect();

    let read = read.unwrap();
    assert_eq!(
        (read.len(), read[1].at, &read[1].what),
        (2, 7, &started("p/0.1"))
    );
    assert_eq!(files_in(dir.path()).unwrap(), [path, second]);
}

#[test]
fn what_is_no_history_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(files_in(dir.path()), Err(Error::Empty(_))));
    let path = dir.path().join("h.jsonl");
    fs::write(&path, "{\"at\":1,\"what\":\"opened\",\"service\":\"a\",\"boot\":\"b\"}\n{\"at\":1,\"what\":\"sung\"}\n").unwrap();

    let error = Lines::open(&path).unwrap().find_map(Result::err).unwrap();

    let text = error.to_string();
    assert!(
        text.contains("line 2") && text.contains("h.jsonl"),
        "{text}"
    );
    assert!(matches!(
        files_in(&dir.path().join("nowhere")),
        Err(Error::Io { .. })
    ));
}
