//! Questions on a stream, each with a number: what its answer tells was so when it was asked, and may be over by now.

use std::collections::BTreeMap;

use tether_clock::{BootClock, Clock as _, Tick};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// Questions on their way.
const OUTBOX: usize = 4;

/// Those that one stream asks.
#[derive(Debug)]
pub(crate) struct Questions<T> {
    outbox: mpsc::Sender<T>,
    last: u64,
    asked: BTreeMap<u64, Tick>,
}

impl<T> Questions<T> {
    pub(crate) fn new() -> (Self, ReceiverStream<T>) {
        let (outbox, questions) = mpsc::channel(OUTBOX);
        let asks = Self {
            outbox,
            last: 0,
            asked: BTreeMap::new(),
        };
        (asks, ReceiverStream::new(questions))
    }

    /// Asks the next one, unless the last ones were not even taken.
    pub(crate) fn ask(&mut self, question: impl FnOnce(u64) -> T) {
        if let Ok(slot) = self.outbox.try_reserve() {
            self.last += 1;
            self.asked.insert(self.last, BootClock.now());
            slot.send(question(self.last));
        }
    }

    /// As of when this answer is true; none where it is the first to none of them.
    pub(crate) fn answered(&mut self, number: u64) -> Option<Tick> {
        let as_of = self.asked.remove(&number);
        self.asked.retain(|asked, _| *asked > number);
        as_of
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_as_old_as_its_question_and_a_word_without_one_is_of_no_time() {
        let (mut questions, _taken) = Questions::new();
        let before = BootClock.now();
        (0..3).for_each(|_| questions.ask(|number| number));

        assert_eq!(questions.answered(0), None);
        assert!(questions.answered(2).is_some_and(|as_of| as_of >= before));
        assert_eq!(questions.answered(2), None, "it was answered");
        assert_eq!(questions.answered(1), None, "a later one was");
        assert!(questions.answered(3).is_some());
    }

    #[test]
    fn what_nobody_takes_is_not_counted_on() {
        let (mut questions, _taken) = Questions::new();
        (0..=OUTBOX).for_each(|_| questions.ask(|number| number));

        assert_eq!(questions.last, OUTBOX as u64);
    }
}
