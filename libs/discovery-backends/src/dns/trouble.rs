//! Why a question has no answer.

/// What is wrong decides who is asked next, and when.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// The server is at fault, and another one may know.
    Server(String),
    /// There is no such name, which holds for so many seconds.
    Missing(Option<u32>),
    /// What servers say cannot be used.
    Nonsense(String),
}
