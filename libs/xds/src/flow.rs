//! Responses and their answers: one of a kind is under way at a time (X3).

use crate::wire::google::rpc::Status;

/// What is kept of a text that a client may make as long as it likes (X6).
pub(crate) fn short(text: &str) -> String {
    text.chars().take(512).collect()
}

/// What a request says of the response it answers.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answers none.
    None,
    /// It was taken.
    Taken,
    /// It was refused.
    Refused(String),
    /// It answers one before the last: what it wants is out of date too, and is said again with its next answer.
    Late,
}

/// Which response of a kind is under way.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    last: Option<String>,
    under_way: bool,
}

impl Flow {
    pub(crate) fn is_free(&self) -> bool {
        !self.under_way
    }

    /// A response goes out; the name it has.
    pub(crate) fn send(&mut self, nonce: u64) -> String {
        let nonce = nonce.to_string();
        self.last = Some(nonce.clone());
        self.under_way = true;
        nonce
    }

    pub(crate) fn on_answer(&mut self, nonce: &str, error: Option<&Status>) -> Answer {
        if nonce.is_empty() {
            return Answer::None;
        }
        if self.last.as_deref() != Some(nonce) {
            return Answer::Late;
        }
        self.under_way = false;
        match error {
            Some(error) => Answer::Refused(short(&error.message)),
            None => Answer::Taken,
        }
    }
}
