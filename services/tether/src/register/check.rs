//! Whether the worker serves: asked again and again, and believed after a few answers.

use std::time::Duration;

use tether_probe::Question;
use tether_types::Address;
use tokio::time::sleep;

use crate::cli;

/// Asks a worker.
#[derive(Debug)]
pub(super) struct Checked {
    /// Nothing where it is believed unasked.
    question: Option<Question>,
    interval: Duration,
}

impl Checked {
    pub(super) fn new(check: cli::Check, address: &Address, interval: Duration) -> Self {
        let question = match check {
            cli::Check::Grpc => Some(Question::grpc(address, "")),
            cli::Check::Tcp => Some(Question::connect(address)),
            cli::Check::None => None,
        };
        Self { question, interval }
    }

    /// Asks once.
    pub(super) async fn ask(&self) -> Result<(), String> {
        let Some(question) = &self.question else {
            return Ok(());
        };
        let asked = question.ask(self.interval).await;
        asked.map_err(|why| format!("`{}`: {why}", question.address()))
    }

    /// The answer to the next question, an interval from here; never where nothing is asked.
    pub(super) async fn next(&self) -> Result<(), String> {
        if self.question.is_none() {
            return std::future::pending().await;
        }
        sleep(self.interval).await;
        self.ask().await
    }
}

/// What is believed of a worker by the answers so far. Pure.
#[derive(Debug)]
pub(super) struct Pulse {
    /// So many failures in a row are believed.
    limit: u32,
    failed: u32,
    serves: bool,
}

impl Pulse {
    /// Of one that serves.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit,
            failed: 0,
            serves: true,
        }
    }

    /// Whether it serves, where that is news.
    pub(super) fn on_answer(&mut self, good: bool) -> Option<bool> {
        self.failed = match good {
            true => 0,
            false => self.failed.saturating_add(1),
        };
        let serves = good || (self.serves && self.failed < self.limit);
        let before = std::mem::replace(&mut self.serves, serves);
        (before != serves).then_some(serves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_answer_is_forgiven_and_one_good_answer_is_believed() {
        let mut pulse = Pulse::new(2);
        let answers = [true, false, true, false, false, false, true, false];
        let news: Vec<_> = answers.map(|good| pulse.on_answer(good)).to_vec();

        let expected = [None, None, None, None, Some(false), None, Some(true), None];
        assert_eq!(news, expected);
    }
}
