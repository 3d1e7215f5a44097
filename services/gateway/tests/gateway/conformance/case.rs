//! One case: a call that a client makes, written as data, and what of its ends must be equal.

use serde::Serialize;

/// Which of the four kinds of calls it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Kind {
    Unary,
    ClientStream,
    ServerStream,
    Bidi,
}

/// One message of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Message {
    /// That many bytes of the pattern that clients and workers know.
    Size(usize),
    /// These bytes, in hexadecimal.
    Hex(&'static str),
}

/// What is compared between the direct call and the one through the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    /// Everything.
    All,
    /// All but the words of the status: whoever notices first says why a call broke.
    AllButDetails,
    /// The code alone: how much of the answer is told before depends on when it arrives.
    Code,
    /// That it fails: with which code depends on when its parts arrive.
    Failing,
    /// Nothing but that it ends: whether the client minds depends on when its parts arrive.
    Ending,
    /// A client may be unable to read it, and never is through the gateway.
    Readable,
    /// Both ends count as the deadline's, whoever keeps it: tonic says CANCELLED for one that has passed.
    Deadline,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Case {
    pub(super) name: String,
    #[serde(skip)]
    pub(super) group: &'static str,
    pub(super) kind: Kind,
    /// A method of the contract, or a whole path.
    pub(super) method: &'static str,
    /// Values of keys that end in `-bin` are in hexadecimal.
    pub(super) metadata: Vec<(String, String)>,
    pub(super) messages: Vec<Message>,
    /// Whether each message waits for the answer to the one before.
    pub(super) lockstep: bool,
    /// Whether the client never says that it has sent all.
    pub(super) open: bool,
    pub(super) timeout_ms: Option<u64>,
    pub(super) gzip: bool,
    /// Cancelled after that many answers; with none, once the worker has the request.
    pub(super) cancel_after: Option<usize>,
    /// Whether the worker is asked afterwards how the call ended for it.
    pub(super) fate: bool,
    /// The code both must end with.
    #[serde(skip)]
    pub(super) ends: i32,
    /// How many messages both must get.
    #[serde(skip)]
    pub(super) answers: usize,
    /// Whether it is for the client to say how it ends.
    #[serde(skip)]
    pub(super) ends_somehow: bool,
    #[serde(skip)]
    pub(super) compare: Compare,
}

impl Case {
    pub(super) fn new(kind: Kind, method: &'static str, name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            group: "",
            kind,
            method,
            // The same in both ways, so that the worker sees the same.
            metadata: vec![("tether-pool".to_owned(), "digits".to_owned())],
            messages: match kind {
                Kind::Unary | Kind::ServerStream => vec![Message::Size(10)],
                Kind::ClientStream | Kind::Bidi => Vec::new(),
            },
            lockstep: false,
            open: false,
            timeout_ms: None,
            gzip: false,
            cancel_after: None,
            fate: false,
            ends: 0,
            answers: 1,
            ends_somehow: false,
            compare: Compare::All,
        }
    }

    pub(super) fn unary(method: &'static str, name: impl Into<String>) -> Self {
        Self::new(Kind::Unary, method, name)
    }

    /// A server stream that answers with messages of these sizes.
    pub(super) fn sizes(sizes: &[usize], name: impl Into<String>) -> Self {
        Self::new(Kind::ServerStream, "Sizes", name).answered(sizes)
    }

    pub(super) fn digest(sizes: &[usize], name: impl Into<String>) -> Self {
        Self::new(Kind::ClientStream, "Digest", name).sends(sizes)
    }

    pub(super) fn bidi(method: &'static str, sizes: &[usize], name: impl Into<String>) -> Self {
        let mut case = Self::new(Kind::Bidi, method, name).sends(sizes);
        case.answers = sizes.len();
        case
    }

    /// With metadata; a key may be there more than once.
    pub(super) fn say(mut self, key: &str, value: &str) -> Self {
        self.metadata.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn sends(mut self, sizes: &[usize]) -> Self {
        self.messages = sizes.iter().copied().map(Message::Size).collect();
        self
    }

    pub(super) fn sends_bytes(mut self, hex: &'static str) -> Self {
        self.messages = vec![Message::Hex(hex)];
        self
    }

    /// Answered with messages of these sizes.
    pub(super) fn answered(mut self, sizes: &[usize]) -> Self {
        let words: Vec<String> = sizes.iter().map(usize::to_string).collect();
        self.answers = sizes.len();
        self.say("do-sizes", &words.join(" "))
    }

    /// Fails with this code, after all answers.
    pub(super) fn fails(mut self, code: i32, words: &str) -> Self {
        self.ends = code;
        if matches!(self.kind, Kind::Unary | Kind::ClientStream) {
            self.answers = 0;
        }
        self.say("do-code", &code.to_string())
            .say("do-message", words)
    }

    /// Ends with this code, without having asked for it.
    pub(super) fn ends(mut self, code: i32, answers: usize) -> Self {
        (self.ends, self.answers) = (code, answers);
        self
    }

    pub(super) fn after(mut self, answers: usize) -> Self {
        self.answers = answers;
        self.say("do-after", &answers.to_string())
    }

    pub(super) fn in_lockstep(mut self) -> Self {
        self.lockstep = true;
        self
    }

    pub(super) fn left_open(mut self) -> Self {
        self.open = true;
        self
    }

    pub(super) fn within(mut self, timeout_ms: u64) -> Self {
        self.timeout_ms = Some(timeout_ms);
        self
    }

    /// Misses a deadline of a second, which is long enough for that many answers.
    pub(super) fn misses_deadline(mut self, answers: usize) -> Self {
        self.compare = Compare::Deadline;
        self.fate = true;
        self.within(1_000).ends(4, answers)
    }

    pub(super) fn compressed(mut self) -> Self {
        self.gzip = true;
        self
    }

    pub(super) fn cancelled_after(mut self, answers: usize) -> Self {
        self.cancel_after = Some(answers);
        self.fate = true;
        self.ends(1, answers)
    }

    /// The service that is called keeps no fates.
    pub(super) fn without_fate(mut self) -> Self {
        self.fate = false;
        self
    }

    /// Ends as the client makes of it.
    pub(super) fn ends_somehow(mut self, compare: Compare) -> Self {
        self.ends_somehow = true;
        self.compare = compare;
        self
    }
}
