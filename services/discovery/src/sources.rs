//! Feeds the answers of a pool's sources into the table.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_discovery_backends::{Answer as Backend, Watch};
use tether_proto::discovery::LeftOut;
use tether_types::{Address, PoolName};

use crate::{
    board::Board,
    checker::{Answer, Checker},
    config::PoolSource,
    health::{Verdicts, Word},
    numbering::number,
    sourced::{Change, Sourced},
};

/// Whoever has not answered so long after a source has is told of unasked, and of sources those that have answered count:
/// a pool waits no longer for its first word.
const FIRST_WORD: Duration = Duration::from_secs(3);

/// Never ends: a source that fails is asked again by its backend, and what it said last stays true.
pub(crate) async fn feed(
    board: Arc<Board>,
    pool: PoolName,
    terms: PoolSource,
    watches: Vec<Watch>,
) {
    let names: Vec<_> = terms.all().map(str::to_owned).collect();
    let mut fails = vec![false; names.len()];
    let words = watches.into_iter().enumerate();
    let words = words.map(|(index, watch)| watch.map(move |word| (index, word)));
    let mut words = stream::select_all(words);
    let mut feeding = Feeding::new(board, pool, terms);
    loop {
        tokio::select! {
            word = words.next() => {
                let Some((index, word)) = word else {
                    // A watch never ends (B3), and without any there is nothing to feed.
                    return std::future::pending().await;
                };
                note(&feeding, (index, &names[index]), &mut fails[index], &word);
                feeding.on_word(index, word);
            }
            answers = next_answers(&mut feeding.checks) => feeding.on_answers(answers),
            () = due(feeding.sourced.next_deadline()) => {
                if feeding.sourced.check(BootClock.now()) {
                    feeding.on_members();
                }
            }
            () = due(feeding.patience), if !feeding.is_told => feeding.tell(false),
        }
    }
}

async fn due(at: Option<Tick>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(BootClock.now())).await,
        None => std::future::pending().await,
    }
}

async fn next_answers(checks: &mut Option<Checks>) -> Vec<Answer> {
    match checks {
        Some(checks) => checks.checker.next().await,
        None => std::future::pending().await,
    }
}

/// Who asks a pool's endpoints, and what came of it.
struct Checks {
    checker: Checker,
    verdicts: Verdicts,
    /// How many it cannot ask, as was said.
    left_out: usize,
}

/// One pool on its way into the table.
struct Feeding {
    board: Arc<Board>,
    pool: PoolName,
    terms: PoolSource,
    sourced: Sourced,
    checks: Option<Checks>,
    /// Whether the table knows of it who serves, and when its first word has been waited for long enough.
    is_told: bool,
    patience: Option<Tick>,
}

impl Feeding {
    fn new(board: Arc<Board>, pool: PoolName, terms: PoolSource) -> Self {
        let checks = terms.health.as_ref().map(|health| Checks {
            checker: Checker::new(health.clone()),
            verdicts: Verdicts::new(health),
            left_out: 0,
        });
        Self {
            sourced: Sourced::new(&terms),
            board,
            pool,
            terms,
            checks,
            is_told: false,
            patience: None,
        }
    }

    fn on_word(&mut self, source: usize, word: Result<Backend, String>) {
        let change = self.sourced.on_word(source, word, BootClock.now());
        if let Change::Held(count) = change {
            let hold = self.terms.hold;
            tracing::warn!(pool = %self.pool, source, count, ?hold, "A source lost most of its endpoints at once, they are held: until then, or until it names them again, or nobody; `believed_loss` and `hold` say how many and how long");
        }
        if self.sourced.is_heard() {
            self.patience
                .get_or_insert_with(|| BootClock.now() + FIRST_WORD);
        }
        self.board.failing(&self.pool, self.sourced.failing());
        match change {
            Change::None => self.tell(false),
            Change::Members | Change::Held(_) => self.on_members(),
        }
    }

    /// Others serve than before: those are asked, and no others.
    fn on_members(&mut self) {
        if let Some(checks) = &mut self.checks {
            let members = self.sourced.members();
            for another in checks.verdicts.on_members(&members) {
                checks.checker.ask_no_more(&another);
            }
            let asked: Vec<_> = checks.checker.askable(&members).collect();
            let left_out = members.len() - asked.len();
            if left_out > 0 && left_out != checks.left_out {
                tracing::warn!(pool = %self.pool, count = left_out, "Endpoints are not checked, as no TLS is spoken to them: check `tcp`");
            }
            checks.left_out = left_out;
            checks.checker.ask(asked.into_iter());
        }
        self.tell(true);
    }

    /// All that are there are told together: to look at a pool of thousands costs more than an answer.
    fn on_answers(&mut self, answers: Vec<Answer>) {
        let mut changed = false;
        for (address, word) in answers {
            changed |= self.on_answer(&address, &word);
        }
        self.tell(changed);
    }

    fn on_answer(&mut self, address: &Address, word: &Word) -> bool {
        let Some(checks) = &mut self.checks else {
            return false;
        };
        // Of one that is asked no more it comes too late.
        if !checks.checker.asks(address) {
            return false;
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
        changed
    }

    /// Tells who serves, where that has changed. The first time only when it is known: a pool of which half is told
    /// looks like one that has lost the other half.
    fn tell(&mut self, changed: bool) {
        if self.is_told && !changed {
            return;
        }
        let members = self.sourced.members();
        let checks = self.checks.as_ref();
        let all_asked = checks.is_none_or(|checks| {
            let mut asked = checks.checker.askable(&members);
            checks.verdicts.all_known(&mut asked)
        });
        let verdicts = checks.map(|checks| &checks.verdicts);
        let has_waited = self.patience.is_some_and(|end| end <= BootClock.now());
        let is_known = has_waited || (self.sourced.is_settled() && all_asked);
        if !self.is_told && !is_known {
            return;
        }
        self.is_told = true;
        let members = match verdicts {
            Some(verdicts) => verdicts.judge(members, self.terms.believed_loss),
            None => members,
        };
        let endpoints = number(&self.pool, &members);
        self.board
            .change(|table| table.source(&self.pool, endpoints));
    }
}

/// Says what is new about a source: that it fails or answers, and what of its answer is left out.
fn note(
    feeding: &Feeding,
    (index, source): (usize, &str),
    fails: &mut bool,
    word: &Result<Backend, String>,
) {
    let pool = &feeding.pool;
    match word {
        Ok(answer) => {
            if std::mem::take(fails) {
                tracing::info!(%pool, source, "A source answers again");
            }
            let left_out = feeding.board.left_out();
            match left_out.on_answer(pool, (index, source), answer) {
                Some(LeftOut { count: 0, .. }) => {
                    tracing::info!(%pool, source, "Nothing of a source is left out any more");
                }
                Some(LeftOut { count, reasons, .. }) => {
                    tracing::warn!(%pool, source, count, ?reasons, "Entries of a source are left out, the others serve: mend or delete them there");
                }
                None => {}
            }
        }
        Err(error) => {
            if !std::mem::replace(fails, true) {
                tracing::warn!(%pool, source, error, "A source does not answer, its last answer is kept");
            }
        }
    }
}
