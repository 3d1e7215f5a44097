//! Feeds the answers of a pool's sources into the table.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_discovery_backends::{Answer as Backend, Watch};
use tether_types::{Address, PoolName};
use tokio::sync::mpsc;

use crate::{
    board::Board,
    checker::{Answer, Checker},
    config::PoolSource,
    health::{Verdicts, Word},
    numbering::number,
    sourced::{Change, Sourced},
};

/// Watchers wait no longer than this for the first word of a pool's sources: it would keep them from all other pools.
const FIRST_WORD: Duration = Duration::from_secs(3);

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
    let names: Vec<_> = terms.all().map(str::to_owned).collect();
    let mut known = vec![Known::default(); names.len()];
    let words = watches.into_iter().enumerate();
    let words = words.map(|(index, watch)| watch.map(move |word| (index, word)));
    let mut words = stream::select_all(words);
    let mut feeding = Feeding::new(board, pool, terms, empty);
    let patience = tokio::time::sleep(FIRST_WORD);
    tokio::pin!(patience);
    loop {
        tokio::select! {
            word = words.next() => {
                let Some((index, word)) = word else {
                    // A watch never ends (B3), and without any there is nothing to feed.
                    return std::future::pending().await;
                };
                known[index].note(&feeding.pool, &names[index], &word);
                feeding.on_word(index, word);
            }
            (address, word) = next_answer(&mut feeding.checks) => feeding.on_answer(&address, &word),
            () = due(feeding.sourced.next_deadline()) => {
                if feeding.sourced.check(BootClock.now()) {
                    feeding.publish();
                }
            }
            () = &mut patience, if !feeding.spoke => feeding.speak(),
        }
    }
}

async fn due(at: Option<Tick>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(BootClock.now())).await,
        None => std::future::pending().await,
    }
}

async fn next_answer(checks: &mut Option<Checks>) -> Answer {
    match checks {
        Some(checks) => checks.checker.next().await,
        None => std::future::pending().await,
    }
}

/// Who asks a pool's endpoints, and what came of it.
struct Checks {
    checker: Checker,
    verdicts: Verdicts,
}

/// One pool on its way into the table.
struct Feeding {
    board: Arc<Board>,
    pool: PoolName,
    terms: PoolSource,
    sourced: Sourced,
    checks: Option<Checks>,
    /// Whether watchers wait for it no more.
    spoke: bool,
    /// Hears once that nobody serves by the word of its sources.
    empty: Option<mpsc::UnboundedSender<PoolName>>,
}

impl Feeding {
    fn new(
        board: Arc<Board>,
        pool: PoolName,
        terms: PoolSource,
        empty: mpsc::UnboundedSender<PoolName>,
    ) -> Self {
        let checks = terms.health.as_ref().map(|health| Checks {
            checker: Checker::new(health.clone()),
            verdicts: Verdicts::new(health),
        });
        Self {
            sourced: Sourced::new(&terms),
            board,
            pool,
            terms,
            checks,
            spoke: false,
            empty: Some(empty),
        }
    }

    fn on_word(&mut self, source: usize, word: Result<Backend, String>) {
        let failed = word.is_err();
        let change = self.sourced.on_word(source, word, BootClock.now());
        if let Change::Held(count) = change {
            let hold = self.terms.hold;
            tracing::warn!(pool = %self.pool, source, count, ?hold, "A source lost most of its endpoints at once, they are held");
        }
        self.board.failing(&self.pool, self.sourced.failing());
        if change != Change::None {
            let members = self.sourced.members();
            if let Some(checks) = &mut self.checks {
                checks.checker.ask(members.keys());
                checks
                    .verdicts
                    .retain(|address| members.contains_key(address));
            }
            self.publish();
        } else if failed || self.sourced.is_heard() {
            // Nobody, or nothing to be known for now: that is what there is to say.
            self.speak();
        }
        let is_empty = !failed && self.sourced.members().is_empty();
        if let Some(empty) = self.empty.take_if(|_| is_empty) {
            // Nobody has to listen.
            let _ = empty.send(self.pool.clone());
        }
    }

    fn on_answer(&mut self, address: &Address, word: &Word) {
        let Some(checks) = &mut self.checks else {
            return;
        };
        // Of one that is asked no more it comes too late.
        if !checks.checker.asks(address) {
            return;
        }
        let changed = checks.verdicts.on_word(address, word);
        if changed {
            match word {
                Word::Serves(_) => {
                    tracing::info!(pool = %self.pool, %address, "An endpoint serves")
                }
                Word::Refuses(why) | Word::Nothing(why) => {
                    tracing::warn!(pool = %self.pool, %address, why, "An endpoint does not serve");
                }
            }
        }
        if changed || !self.spoke {
            self.publish();
        }
    }

    /// Tells who serves. The first time only once each endpoint has answered, or had its time to.
    fn publish(&mut self) {
        let members = self.sourced.members();
        let members = match &self.checks {
            None => members,
            Some(checks) => {
                if !self.spoke && !checks.verdicts.all_known(members.keys()) {
                    return;
                }
                checks.verdicts.judge(members, self.terms.believed_loss)
            }
        };
        let endpoints = number(&self.pool, &members);
        self.board
            .change(|table| table.source(&self.pool, endpoints));
        if !self.spoke {
            self.spoke = true;
            self.board.spoke();
        }
    }

    /// Watchers wait for it no more, whatever is known of it.
    fn speak(&mut self) {
        if !self.spoke {
            self.spoke = true;
            self.publish();
            self.board.spoke();
        }
    }
}

/// What was logged of a source, which is not said again.
#[derive(Debug, Clone, Default)]
struct Known {
    fails: bool,
    left_out: usize,
}

impl Known {
    fn note(&mut self, pool: &PoolName, source: &str, word: &Result<Backend, String>) {
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
