//! Names people give to things, checked once at the border.

use std::{fmt, str::FromStr, sync::Arc};

/// Longest name accepted, in bytes: it has to fit a cgroup directory and a socket path.
pub(crate) const MAX_LEN: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The text is empty.
    #[error("a {kind} name cannot be empty")]
    Empty {
        /// What the name was for.
        kind: &'static str,
    },
    /// The text is longer than 63 bytes.
    #[error("{kind} name `{start}...` has {len} bytes, at most {MAX_LEN} are allowed")]
    TooLong {
        /// What the name was for.
        kind: &'static str,
        /// Its beginning.
        start: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A character that cannot stand in a path, a key and a metadata value alike.
    #[error(
        "{kind} name `{name}` has the character {found:?}, allowed are a-z A-Z 0-9 . _ -{extra} and the first must be a letter or a digit"
    )]
    Character {
        /// What the name was for.
        kind: &'static str,
        /// The name as given, with unprintable characters escaped.
        name: String,
        /// The first character that is not allowed.
        found: char,
        /// Further characters this kind of name allows.
        extra: &'static str,
    },
    /// Not a pool, a slash and a slot.
    #[error(
        "`{given}` is not a worker: write `pool/slot` or `pool/slot.incarnation`, as in `digits/0`"
    )]
    Worker {
        /// The text as given, with unprintable characters escaped.
        given: String,
    },
}

fn check(kind: &'static str, text: &str, extra: &'static str) -> Result<(), InvalidName> {
    if text.is_empty() {
        return Err(InvalidName::Empty { kind });
    }
    if text.len() > MAX_LEN {
        return Err(InvalidName::TooLong {
            kind,
            start: text
                .chars()
                .take(16)
                .flat_map(char::escape_default)
                .collect(),
            len: text.len(),
        });
    }
    let wrong = text.chars().enumerate().find(|&(at, c)| {
        let inner = at > 0 && (matches!(c, '.' | '_' | '-') || extra.contains(c));
        !(c.is_ascii_alphanumeric() || inner)
    });
    match wrong {
        None => Ok(()),
        Some((_, found)) => Err(InvalidName::Character {
            kind,
            name: text.chars().flat_map(char::escape_default).collect(),
            found,
            extra,
        }),
    }
}

/// The text of a name, with its length beside it rather than beside each pointer to it. What is left is zero, which
/// is in no name, so that these compare as their texts do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Text {
    bytes: [u8; MAX_LEN],
    length: u8,
}

impl Text {
    /// Of a text that was checked.
    fn of(text: &str) -> Self {
        let mut bytes = [0; MAX_LEN];
        let length = text.len().min(MAX_LEN);
        bytes[..length].copy_from_slice(&text.as_bytes()[..length]);
        Self {
            bytes,
            length: u8::try_from(length).unwrap_or_default(),
        }
    }

    fn as_str(&self) -> &str {
        // It was a text before.
        str::from_utf8(&self.bytes[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $extra:literal) => {
        $(#[$doc])*
        ///
        /// A copy shares the text, and is as small as a pointer: a million workers name one pool.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<Text>);

        impl $type {
            /// Checks `text` and makes it a name.
            ///
            /// # Errors
            /// Says which rule it breaks.
            pub fn new(text: impl Into<String>) -> Result<Self, InvalidName> {
                let text = text.into();
                check($kind, &text, $extra)?;
                Ok(Self(Arc::new(Text::of(&text))))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }
    };
}

name!(
    /// Names a pool of workers.
    PoolName, "pool", ""
);
name!(
    /// Names a template: what to run.
    TemplateName, "template", ""
);
name!(
    /// Names a node, one machine or pod with an agent.
    NodeName, "node", ""
);
name!(
    /// Names an owner: a BEAM application instance, such as `checkout@host-1`.
    OwnerName, "owner", "@"
);
name!(
    /// Names one of those that register themselves in a pool, such as `host-1-4711`.
    InstanceName, "registration", ""
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_escape_a_directory_is_refused() {
        for bad in ["", "..", "a/b", "-rf", "a b", "a\n", "ä", &"x".repeat(64)] {
            assert!(PoolName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_in_the_order_of_their_texts_and_read_back() {
        let longest = "x".repeat(MAX_LEN);
        let texts = ["0", "a", "a-b", "a.b", "aa", "b", &longest];
        let names = texts.map(|text| PoolName::new(text).unwrap());

        assert!(names.is_sorted());
        assert!(names.iter().map(PoolName::as_str).eq(texts));
        assert_eq!(names[1], PoolName::new("a").unwrap());
        assert_ne!(names[1], names[4]);
        assert_eq!(size_of::<PoolName>(), size_of::<usize>());
    }

    #[test]
    fn an_owner_may_have_a_host_part_and_a_pool_may_not() {
        assert!(OwnerName::new("checkout@host-1").is_ok());
        assert!(PoolName::new("checkout@host-1").is_err());
    }
}
