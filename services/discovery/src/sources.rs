//! Feeds the answers of a pool's sources into the table.

use std::sync::Arc;

use futures::{StreamExt as _, stream};
use tether_clock::{BootClock, Clock as _};
use tether_discovery_backends::{Answer, Watch};
use tether_types::PoolName;
use tokio::sync::mpsc;

use crate::{
    board::Board,
    config::PoolSource,
    numbering::number,
    sourced::{Change, Sourced},
};

/// Never ends: a source that fails is asked again by its backend, and what it said last stays true. Whether a pool is
/// empty because nobody was heard yet or by the word of its sources cannot be seen in the table: `empty` hears of the
/// second.
pub(crate) async fn feed(
    board: Arc<Board>,
    pool: PoolName,
    terms: PoolSource,
    watches: Vec<Watch>,
    empty: mpsc::UnboundedSender<PoolName>,
) {
    let mut sourced = Sourced::new(&terms);
    let names: Vec<_> = terms.all().map(str::to_owned).collect();
    let mut known = vec![Known::default(); names.len()];
    let words = watches.into_iter().enumerate();
    let words = words.map(|(index, watch)| watch.map(move |word| (index, word)));
    let mut words = stream::select_all(words);
    let mut empty = Some(empty);
    loop {
        let due = async {
            match sourced.next_deadline() {
                Some(at) => tokio::time::sleep(at.since(BootClock.now())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            word = words.next() => {
                let Some((index, word)) = word else {
                    // A watch never ends (B3), and without any there is nothing to feed.
                    return std::future::pending().await;
                };
                known[index].note(&pool, &names[index], &word);
                let answers = word.is_ok();
                let change = sourced.on_word(index, word, BootClock.now());
                if let Change::Held(count) = change {
                    tracing::warn!(%pool, source = names[index], count, hold = ?terms.hold, "A source lost most of its endpoints at once, they are held");
                }
                board.failing(&pool, sourced.failing());
                if change != Change::None {
                    publish(&board, &pool, &sourced);
                }
                if answers && let Some(empty) = empty.take_if(|_| sourced.members().is_empty()) {
                    // Nobody has to listen.
                    let _ = empty.send(pool.clone());
                }
            }
            () = due => {
                if sourced.check(BootClock.now()) {
                    publish(&board, &pool, &sourced);
                }
            }
        }
    }
}

fn publish(board: &Board, pool: &PoolName, sourced: &Sourced) {
    let endpoints = number(pool, &sourced.members());
    board.change(|table| table.source(pool, endpoints));
}

/// What was logged of a source, which is not said again.
#[derive(Debug, Clone, Default)]
struct Known {
    fails: bool,
    left_out: usize,
}

impl Known {
    fn note(&mut self, pool: &PoolName, source: &str, word: &Result<Answer, String>) {
        match word {
            Ok(answer) => {
                if std::mem::take(&mut self.fails) {
                    tracing::info!(%pool, source, "A source answers again");
                }
                if answer.left_out != std::mem::replace(&mut self.left_out, answer.left_out) {
                    tracing::warn!(%pool, source, count = answer.left_out, reasons = ?answer.reasons, "Entries of a source are left out");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.fails, true) {
                    tracing::warn!(%pool, source, error, "A source does not answer, its last answer is kept");
                }
            }
        }
    }
}
