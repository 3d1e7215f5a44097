//! Turns of everybody who is measured, one after the other before anybody has a second one, and rows of what they gave.

use std::time::Instant;

use futures::future::BoxFuture;

use crate::{
    figure::{Figure, Target, median},
    proxies::Proxy,
    scene::progress,
};

/// What came of somebody's turns, or why they could not be had.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    name: &'static str,
    all: Result<Vec<T>, String>,
}

/// Has everybody take turns, so many rounds. A peer that fails in one takes no more.
pub(crate) async fn take<'a, T>(
    who: &[(Proxy, &'static str)],
    rounds: usize,
    turn: impl Fn(Proxy) -> BoxFuture<'a, anyhow::Result<T>>,
) -> anyhow::Result<Vec<Turns<T>>> {
    let start = |(_, name): &(_, &'static str)| Turns {
        name,
        all: Ok(Vec::new()),
    };
    let mut turns: Vec<_> = who.iter().map(start).collect();
    for round in 1..=rounds {
        for ((proxy, name), taken) in who.iter().zip(&mut turns) {
            let Ok(all) = &mut taken.all else { continue };
            let began = Instant::now();
            let came = turn(*proxy).await;
            let took = began.elapsed();
            progress(&format!("{name}, turn {round} of {rounds}: {took:.1?}"));
            match came {
                Ok(one) => all.push(one),
                Err(why) if !matches!(proxy, Proxy::Peer(_)) => return Err(why),
                Err(why) => taken.all = Err(format!("{why:#}")),
            }
        }
    }
    Ok(turns)
}

/// The middle of what all turns of each read. Who has no such figure has no place in the row.
pub(crate) fn row<T>(
    name: String,
    unit: &'static str,
    turns: &[Turns<T>],
    read: impl Fn(&T) -> Option<f64>,
) -> Figure {
    let row = Figure::new(name, unit);
    turns.iter().fold(row, |row, turns| match &turns.all {
        Err(why) => row.peer(turns.name, Err(why.clone())),
        Ok(all) => match median(all.iter().filter_map(&read).collect()) {
            Some(value) => put(row, turns.name, value),
            None => row,
        },
    })
}

/// The sum of what went wrong in all turns, which has to be nothing, and what the first one said.
pub(crate) fn failures<T>(
    name: String,
    unit: &'static str,
    turns: &[Turns<T>],
    read: impl Fn(&T) -> (f64, Option<&str>),
) -> Figure {
    let mut row = Figure::new(name, unit);
    for turns in turns {
        row = match &turns.all {
            Err(why) => row.peer(turns.name, Err(why.clone())),
            Ok(all) => {
                let sum = all.iter().map(|turn| read(turn).0).sum();
                let row = put(row, turns.name, sum);
                match all.iter().find_map(|turn| read(turn).1) {
                    Some(why) => row.note(turns.name, why),
                    None => row,
                }
            }
        };
    }
    row.target(Target::AtMost(0.0))
}

fn put(row: Figure, name: &'static str, value: f64) -> Figure {
    match name {
        "ours" => row.ours(value),
        name => row.peer(name, Ok(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_middle_of_each_and_why_there_is_none() {
        let turns = [
            Turns {
                name: "ours",
                all: Ok(vec![Some(1.0), Some(9.0), Some(2.0)]),
            },
            Turns {
                name: "direct",
                all: Ok(vec![None]),
            },
            Turns {
                name: "haproxy",
                all: Err("it is not here".to_owned()),
            },
        ];

        let line = row("calls".to_owned(), "s", &turns, |one| *one).line();

        assert!(line.contains("ours 2.00 s"), "{line}");
        assert!(!line.contains("direct"), "{line}");
        assert!(
            line.contains("haproxy: not measured: it is not here"),
            "{line}"
        );
    }

    #[test]
    fn failures_of_all_turns_are_added_and_the_first_one_says_why() {
        let turns = [Turns {
            name: "ours",
            all: Ok(vec![0, 2, 1]),
        }];
        let line = failures("failed".to_owned(), "calls", &turns, |one| {
            (f64::from(*one), (*one > 0).then_some("no trailers"))
        })
        .line();

        assert!(line.contains("ours 3.00 calls"), "{line}");
        assert!(line.contains("MISSED"), "{line}");
        assert!(line.contains("ours: no trailers"), "{line}");
    }
}
