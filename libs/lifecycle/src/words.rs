//! Enums that people write down: one list of variants makes the words, their order and the parser.

/// A word that is none of those a setting knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no {kind} is called `{word}`, expected one of: {expected}")]
pub struct UnknownWord {
    /// What was asked for.
    pub kind: &'static str,
    /// What was written, with unprintable characters escaped.
    pub word: String,
    /// Every word that would do.
    pub expected: String,
}

impl UnknownWord {
    pub(crate) fn new<'a>(
        kind: &'static str,
        word: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        Self {
            kind,
            word: word.escape_default().to_string(),
            expected: known.into_iter().collect::<Vec<_>>().join(", "),
        }
    }
}

/// Declares an enum with its `ALL` list, a word and one sentence for each variant.
macro_rules! words {
    (
        $(#[$doc:meta])*
        $type:ident, $kind:literal {
            $($(#[doc = $summary:literal])+ $variant:ident = $word:literal,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $type {
            $($(#[doc = $summary])+ $variant,)+
        }

        impl $type {
            /// All of them, in the order the documentation lists them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word in configuration, tables and documentation.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// One sentence for help texts and tables.
            pub const fn summary(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($summary),+).trim_ascii(),)+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = $crate::UnknownWord;

            fn from_str(word: &str) -> Result<Self, $crate::UnknownWord> {
                let known = || Self::ALL.iter().map(|one| one.name());
                Self::ALL
                    .iter()
                    .copied()
                    .find(|one| one.name() == word)
                    .ok_or_else(|| $crate::UnknownWord::new($kind, word, known()))
            }
        }
    };
}

pub(crate) use words;
