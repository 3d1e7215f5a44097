//! Losses at once and in steps, several sources, and what an error changes.

use std::time::Duration;

use tether_proto::common::EndpointHealth;

use super::*;
use crate::config::Empty;

fn sourced(sources: usize, change: impl FnOnce(&mut PoolSource)) -> Sourced {
    let mut terms = PoolSource {
        sources: vec!["static://10.0.0.1:1".to_owned(); sources],
        ..PoolSource::default()
    };
    change(&mut terms);
    Sourced::new(&terms)
}

fn at(seconds: u64) -> Tick {
    Tick::ZERO + Duration::from_secs(seconds)
}

fn says(hosts: std::ops::Range<u8>) -> Result<Answer, String> {
    let addresses = hosts.map(|host| format!("10.0.0.{host}:1").parse().unwrap());
    Answer::of(addresses)
}

fn count(sourced: &Sourced) -> (usize, usize) {
    let members = sourced.members();
    let held = members
        .values()
        .filter(|member| member.health == EndpointHealth::Held);
    (members.len(), held.count())
}

#[test]
fn an_error_keeps_what_was_said_and_tells_since_when_and_nobody_is_an_answer() {
    let mut sourced = sourced(1, |_| {});
    assert_eq!(sourced.on_word(0, says(1..9), at(1)), Change::Members);
    assert_eq!(
        sourced.on_word(0, Err("away".to_owned()), at(2)),
        Change::None
    );
    sourced.on_word(0, Err("still away".to_owned()), at(7));
    assert_eq!(sourced.failing(), Some((at(2), "still away")));
    assert_eq!(count(&sourced), (8, 0));

    assert_eq!(sourced.on_word(0, says(1..1), at(8)), Change::Members);
    assert_eq!((count(&sourced), sourced.failing()), ((0, 0), None));
}

#[test]
fn what_a_polled_source_said_is_as_old_as_its_last_answer() {
    let mut sourced = sourced(2, |terms| {
        terms.combine = Combine::Union;
        terms.sources[0] = "dns://rank.internal:1".to_owned();
    });
    for source in [0, 1] {
        sourced.on_word(source, says(1..9), at(1));
        sourced.on_word(source, says(1..9), at(31));
    }
    sourced.on_word(1, Err("away".to_owned()), at(60));
    assert_eq!(sourced.failing(), Some((at(60), "away")));
    sourced.on_word(0, Err("no answer".to_owned()), at(61));
    sourced.on_word(0, Err("still none".to_owned()), at(66));
    assert_eq!(sourced.failing(), Some((at(31), "still none")));
}

#[test]
fn of_a_loss_of_most_all_are_held_for_a_while_and_come_back_as_they_were() {
    let mut sourced = sourced(1, |_| {});
    sourced.on_word(0, says(1..11), at(1));
    assert_eq!(
        sourced.on_word(0, says(1..6), at(2)),
        Change::Members,
        "half of them"
    );
    assert_eq!(sourced.on_word(0, says(1..2), at(3)), Change::Held(4));
    assert_eq!(count(&sourced), (5, 4));
    // One of the lost is back, and another answer says the same as before.
    sourced.on_word(0, says(1..3), at(10));
    assert_eq!(count(&sourced), (5, 3));
    assert_eq!(sourced.on_word(0, says(1..3), at(11)), Change::None);

    assert_eq!(sourced.next_deadline(), Some(at(63)));
    assert!(!sourced.check(at(62)) && sourced.check(at(63)));
    assert_eq!((count(&sourced), sourced.next_deadline()), ((2, 0), None));
}

#[test]
fn a_loss_in_small_steps_is_held_from_where_it_is_too_much_and_a_replacement_in_steps_is_none() {
    let mut steps = sourced(1, |_| {});
    steps.on_word(0, says(1..11), at(1));
    for (left, change) in [
        (9, Change::Members),
        (5, Change::Members),
        (4, Change::Held(1)),
        (1, Change::Held(3)),
    ] {
        let now = at(12 - u64::from(left));
        assert_eq!(steps.on_word(0, says(1..left + 1), now), change, "{left}");
    }
    assert_eq!(count(&steps), (5, 4), "half of them");
    // One more is no loss, and after a while few are all there are.
    assert_eq!(steps.on_word(0, says(1..3), at(12)), Change::Members);
    assert!(steps.check(at(71)));
    assert_eq!(steps.on_word(0, says(1..2), at(72)), Change::Members);
    assert_eq!(count(&steps), (1, 0));

    let mut rolling = sourced(1, |_| {});
    rolling.on_word(0, says(1..11), at(1));
    for first in 2..30 {
        let change = rolling.on_word(0, says(first..first + 10), at(2));
        assert_eq!(change, Change::Members, "{first}");
    }

    let mut nothing = sourced(1, |_| {});
    for count in (0..11).rev() {
        nothing.on_word(0, says(1..count + 1), at(1));
    }
    assert_eq!(count(&nothing), (0, 0), "that nobody serves is believed");
}

#[test]
fn a_source_that_names_others_each_time_has_no_more_of_them_held_than_it_names() {
    let mut sourced = sourced(1, |_| {});
    for first in 0..20 {
        sourced.on_word(0, says(first * 10..first * 10 + 10), at(first.into()));
    }
    assert_eq!(count(&sourced), (20, 10));
    let last = "10.0.0.189:1".parse().unwrap();
    assert!(
        sourced.members().contains_key(&last),
        "those that served last"
    );
}

#[test]
fn an_answer_of_nobody_is_held_too_where_that_is_asked_for() {
    let mut sourced = sourced(1, |terms| terms.empty = Empty::Hold);
    sourced.on_word(0, says(1..5), at(1));
    assert_eq!(sourced.on_word(0, says(1..1), at(2)), Change::Held(4));
    assert_eq!(count(&sourced), (4, 4));
}

#[test]
fn the_first_source_that_answers_counts() {
    let mut sourced = sourced(3, |_| {});
    sourced.on_word(0, Err("away".to_owned()), at(1));
    assert_eq!(sourced.failing(), Some((at(1), "away")));
    assert_eq!(sourced.on_word(2, says(20..22), at(2)), Change::Members);
    assert_eq!(sourced.failing(), None, "what counts is in order");
    assert_eq!(sourced.on_word(1, says(10..14), at(3)), Change::Members);
    assert_eq!(sourced.on_word(2, says(20..29), at(4)), Change::None);
    assert_eq!(count(&sourced), (4, 0));

    // Where all fail, the last one chosen goes on to count.
    sourced.on_word(2, Err("away".to_owned()), at(5));
    sourced.on_word(1, Err("gone".to_owned()), at(6));
    assert_eq!(sourced.failing(), Some((at(6), "gone")));
    assert_eq!(count(&sourced), (4, 0));
}

#[test]
fn that_another_source_counts_is_no_loss_and_what_one_loses_itself_is() {
    let mut sourced = sourced(2, |_| {});
    let away = || Err("away".to_owned());
    sourced.on_word(0, says(1..9), at(1));
    assert_eq!(sourced.on_word(1, says(100..102), at(1)), Change::None);
    assert_eq!(sourced.on_word(0, away(), at(2)), Change::Members);
    assert_eq!(count(&sourced), (2, 0));
    assert_eq!(sourced.on_word(0, says(1..9), at(4)), Change::Members);
    assert_eq!(count(&sourced), (8, 0));

    // It comes back with less than it had, as a registry does that was restored from an old copy.
    sourced.on_word(0, away(), at(5));
    assert_eq!(sourced.on_word(0, says(1..3), at(6)), Change::Held(6));
    assert_eq!(count(&sourced), (8, 6));
    // While another one counts that is over without a word.
    sourced.on_word(0, away(), at(7));
    assert_eq!(count(&sourced), (2, 0));
    assert_eq!(sourced.next_deadline(), Some(at(66)));
    assert!(!sourced.check(at(66)));
    sourced.on_word(0, says(1..3), at(67));
    assert_eq!(count(&sourced), (2, 0));
}

#[test]
fn what_is_said_first_is_settled_once_no_preferred_source_may_say_something_else() {
    let mut first = sourced(3, |_| {});
    first.on_word(1, says(10..14), at(1));
    assert!(
        first.is_heard() && !first.is_settled(),
        "the first one is awaited"
    );
    first.on_word(0, Err("away".to_owned()), at(2));
    assert!(first.is_settled());

    let mut failing = sourced(2, |_| {});
    failing.on_word(0, Err("away".to_owned()), at(1));
    assert!(!failing.is_heard() && !failing.is_settled());
    failing.on_word(1, Err("away".to_owned()), at(2));
    assert!(!failing.is_settled(), "nobody has said anything");
    failing.on_word(1, says(1..1), at(3));
    assert!(failing.is_settled(), "that nobody serves is something");

    let mut union = sourced(2, |terms| terms.combine = Combine::Union);
    union.on_word(0, says(1..4), at(1));
    assert!(!union.is_settled());
    union.on_word(1, Err("away".to_owned()), at(2));
    assert!(union.is_settled());
}

#[test]
fn a_union_waits_for_all_and_of_one_that_fails_the_last_answer_counts() {
    let mut sourced = sourced(2, |terms| terms.combine = Combine::Union);
    assert_eq!(sourced.on_word(0, says(1..4), at(1)), Change::None);
    assert_eq!(sourced.on_word(1, says(3..6), at(2)), Change::Members);
    assert_eq!(count(&sourced), (5, 0));
    sourced.on_word(0, Err("away".to_owned()), at(3));
    sourced.on_word(1, says(4..8), at(4));
    assert_eq!(count(&sourced), (7, 0));
    assert_eq!(sourced.failing(), Some((at(3), "away")));
}
