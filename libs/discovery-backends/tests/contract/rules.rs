//! What every backend has to do, on any ground.

use std::{collections::BTreeSet, time::Duration};

use futures::StreamExt as _;
use tether_discovery_backends::{ALL, Answer, Error, TARGETS_MAX, Watch, open};
use tether_types::Address;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout},
};

use crate::ground::{Ground, PORT};

/// Longer than any source takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// B1
pub(crate) fn nonsense_is_refused_before_any_io<G: Ground>() {
    let usage = ALL
        .iter()
        .find(|backend| backend.scheme() == G::SCHEME)
        .unwrap()
        .usage();
    let good = usage.split_once("://").unwrap().1;
    let odd = [
        format!("{good}?nonsense=1"),
        format!("{good}?a=1&a=2"),
        format!("{good}?nonsense"),
    ];
    let common = ["", "a b:1", "::1:50051", ",", "/"].map(str::to_owned);
    let own = G::NONSENSE.iter().copied().map(str::to_owned);
    for rest in common.into_iter().chain(own).chain(odd) {
        let source = format!("{}://{rest}", G::SCHEME);
        match open(&source).err() {
            Some(Error::Target {
                given,
                usage: said,
                why,
            }) => {
                assert_eq!((given, said), (source, usage));
                assert!(!why.is_empty());
            }
            other => panic!("{source}: {other:?}"),
        }
    }
}

pub(crate) async fn the_first_answer_says_who_serves<G: Ground>() {
    let ground = G::start(&["10.0.0.1", "10.0.0.2"]).await;
    let mut watch = open(&ground.url()).unwrap();
    let first = timeout(PATIENCE, watch.next()).await.unwrap().unwrap();
    assert_eq!(hosts(&first.unwrap()), set(&["10.0.0.1", "10.0.0.2"]));
}

/// B3
pub(crate) async fn a_quiet_source_says_little_and_the_watch_goes_on<G: Ground>() {
    let ground = G::start(&["10.0.0.1"]).await;
    let mut watch = open(&ground.url()).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    let until = Instant::now() + Duration::from_secs(2);
    let mut words = 0;
    while let Ok(word) = tokio::time::timeout_at(until, watch.next()).await {
        assert_eq!(hosts(&word.unwrap().unwrap()), set(&["10.0.0.1"]));
        words += 1;
    }
    assert!(words <= 5, "{words} words in two seconds");
}

pub(crate) async fn changes_are_told<G: Ground>() {
    let mut ground = G::start(&["10.0.0.1"]).await;
    let mut watch = open(&ground.url()).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    for now in [
        &["10.0.0.1", "10.0.0.2"][..],
        &["10.0.0.3", "10.0.0.2"],
        &["10.0.0.3"],
    ] {
        ground.serve(now).await;
        says(&mut watch, now).await;
    }
}

/// B2
pub(crate) async fn nobody_is_an_answer<G: Ground>() {
    let mut ground = G::start(&[]).await;
    let mut watch = open(&ground.url()).unwrap();
    says(&mut watch, &[]).await;
    ground.serve(&["10.0.0.1"]).await;
    says(&mut watch, &["10.0.0.1"]).await;
    ground.serve(&[]).await;
    says(&mut watch, &[]).await;
    ground.serve(&["10.0.0.2"]).await;
    says(&mut watch, &["10.0.0.2"]).await;
}

/// B2, B3
pub(crate) async fn away_is_an_error_and_its_return_is_followed<G: Ground>() {
    let mut ground = G::start(&["10.0.0.1"]).await;
    let mut watch = open(&ground.url()).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    for (before, after) in [("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.3")] {
        ground.away().await;
        let error = fails(&mut watch, &set(&[before])).await;
        assert!(error.contains(&ground.name()), "{error}");
        ground.back().await;
        ground.serve(&[after]).await;
        says(&mut watch, &[after]).await;
    }
}

/// B3
pub(crate) async fn what_is_away_at_first_is_found_later<G: Ground>() {
    let mut ground = G::start(&["10.0.0.1"]).await;
    ground.away().await;
    let mut watch = open(&ground.url()).unwrap();
    let error = fails(&mut watch, &set(&[])).await;
    assert!(error.contains(&ground.name()), "{error}");
    ground.back().await;
    says(&mut watch, &["10.0.0.1"]).await;
}

/// B5
pub(crate) async fn entries_that_cannot_be_called_are_left_out_with_a_word<G: Ground>() {
    let mut ground = G::start(&["10.0.0.2"]).await;
    let mut watch = open(&ground.url()).unwrap();
    says(&mut watch, &["10.0.0.2"]).await;
    let bad = ground.spoil().await;
    let answer = until(&mut watch, |answer| answer.left_out == bad).await;
    assert_eq!(hosts(&answer), set(&["10.0.0.1"]));
    assert!(bad > 0 && answer.reasons.len() == bad.min(8));
    assert!(
        answer
            .reasons
            .iter()
            .all(|why| !why.is_empty() && why.len() < 500),
        "{:?}",
        answer.reasons
    );
}

/// B5
pub(crate) async fn more_than_can_be_believed_is_an_error<G: Ground>() {
    let mut ground = G::start(&["10.0.0.1"]).await;
    let mut watch = open(&ground.url()).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    ground.flood().await;
    let error = timeout(PATIENCE, async {
        loop {
            // Where it comes one by one, it is told one by one, up to the limit.
            match watch.next().await.unwrap() {
                Ok(answer) => assert!(answer.targets.len() <= TARGETS_MAX),
                Err(error) => return error,
            }
        }
    });
    let error = error.await.unwrap();
    assert!(
        error.contains("more than 10000") && error.contains(&ground.name()),
        "{error}"
    );
    ground.serve(&["10.0.0.2"]).await;
    says(&mut watch, &["10.0.0.2"]).await;
}

/// B4
pub(crate) async fn a_thousand_flaps_end_in_the_last_state<G: Ground>() {
    let mut ground = G::start(&["10.0.0.1"]).await;
    let mut watch = open(&ground.url()).unwrap();
    says(&mut watch, &["10.0.0.1"]).await;
    let flaps = async {
        for flap in 0..1_000 {
            let now: &[&str] = if flap % 2 == 0 {
                &["10.0.0.1", "10.0.0.2"]
            } else {
                &["10.0.0.2"]
            };
            ground.serve(now).await;
        }
        ground.serve(&["10.0.0.3", "10.0.0.4"]).await;
    };
    let reads = says(&mut watch, &["10.0.0.3", "10.0.0.4"]);
    tokio::join!(flaps, reads);
}

pub(crate) async fn a_watch_that_is_dropped_leaves_nothing<G: Ground>() {
    let ground = G::start(&["10.0.0.1"]).await;
    leaves_nothing(&ground, async |watch| says(watch, &["10.0.0.1"]).await).await;
}

pub(crate) async fn a_watch_of_what_is_away_leaves_nothing<G: Ground>() {
    let mut ground = G::start(&["10.0.0.1"]).await;
    ground.away().await;
    leaves_nothing(&ground, async |watch| drop(fails(watch, &set(&[])).await)).await;
}

/// Watches come, and are dropped in the middle; then there are no more tasks and connections than before.
async fn leaves_nothing<G: Ground>(ground: &G, some: impl AsyncFn(&mut Watch)) {
    let before = Handle::current().metrics().num_alive_tasks();
    for _ in 0..3 {
        let mut watch = open(&ground.url()).unwrap();
        some(&mut watch).await;
        // In the middle of a question.
        let _ = timeout(Duration::from_millis(100), watch.next()).await;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let tasks = Handle::current().metrics().num_alive_tasks();
        let held = ground.held();
        if tasks <= before && held == 0 {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{tasks} tasks, {before} before; {held} held"
        );
        sleep(Duration::from_millis(20)).await;
    }
}

pub(crate) fn set(hosts: &[&str]) -> BTreeSet<Address> {
    let address = |host: &&str| format!("{host}:{PORT}").parse().unwrap();
    hosts.iter().map(address).collect()
}

pub(crate) fn hosts(answer: &Answer) -> BTreeSet<Address> {
    answer.targets.keys().cloned().collect()
}

/// Waits until the source says exactly this; answers and errors on the way there are passed over.
pub(crate) async fn says(watch: &mut Watch, expected: &[&str]) {
    let wanted = set(expected);
    until(watch, |answer| hosts(answer) == wanted).await;
}

/// Waits for an answer; others and errors on the way there are passed over.
pub(crate) async fn until(watch: &mut Watch, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let mut last = None;
    let waiting = async {
        loop {
            let word = watch.next().await.expect("a watch never ends (B3)");
            match word {
                Ok(answer) if wanted(&answer) => return answer,
                other => last = Some(other),
            }
        }
    };
    match timeout(PATIENCE, waiting).await {
        Ok(answer) => answer,
        Err(_) => panic!("not within {PATIENCE:?}; the last word was {last:?}"),
    }
}

/// Waits for an error. Answers before it may say what was before, and nothing else.
pub(crate) async fn fails(watch: &mut Watch, before: &BTreeSet<Address>) -> String {
    let waiting = async {
        loop {
            match watch.next().await.expect("a watch never ends (B3)") {
                Ok(answer) => assert!(before.is_empty() || hosts(&answer) == *before, "{answer:?}"),
                Err(error) => return error,
            }
        }
    };
    timeout(PATIENCE, waiting).await.expect("an error comes")
}
