//! Which calls belong to one worker where their metadata does not say so: the rules of their methods.

use std::sync::Arc;

use http::HeaderMap;
use serde::{Deserialize, Serialize};
use tether_endpoints::{Affinity, Session, Target};

use crate::{budget::Budget, pump::Source, route::AFFINITIES};

/// Where the affinity of a call is read, and how closely it then is tied to its worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct AffinityRule {
    /// Where its key is.
    pub from: AffinityFrom,
    /// What if that worker is not free, unless the call says so itself.
    pub mode: Affinity,
}

/// What a rule says of one call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// This is its key.
    Key(Vec<u8>),
    /// It has none.
    Nothing,
    /// That is in this field of a message that is not there.
    InField(u32),
}

/// Where the key of a call is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AffinityFrom {
    /// The value of this key of its metadata.
    Metadata(String),
    /// This field of its first message: a text, bytes or a whole number.
    Field(u32),
}

/// A rule as the configuration has it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<String>,
}

/// The largest number that a field may have in protocol buffers.
const LAST_FIELD: u32 = (1 << 29) - 1;

impl AffinityRule {
    /// Looks for the key of a call. Where that is in the first message, it is waited for, if there is to be one.
    pub(crate) async fn find(
        &self,
        headers: &HeaderMap,
        message: Option<(&mut Source, &Budget)>,
    ) -> Found {
        let key = match (&self.from, message) {
            (AffinityFrom::Metadata(name), _) => {
                headers.get(name).map(|key| key.as_bytes().to_vec())
            }
            (AffinityFrom::Field(number), Some((source, budget))) => {
                source.peek(*number, budget).await
            }
            (AffinityFrom::Field(number), None) => return Found::InField(*number),
        };
        let key = key.filter(|key| !key.is_empty());
        key.map_or(Found::Nothing, Found::Key)
    }

    /// The worker of this key, to which the call is tied as closely as it says itself.
    pub(crate) fn target(
        &self,
        key: Vec<u8>,
        session: Option<Arc<Session>>,
        said: Option<Affinity>,
    ) -> Target {
        Target::Affinity {
            key,
            session,
            affinity: said.unwrap_or(self.mode),
        }
    }
}

impl TryFrom<Written> for AffinityRule {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let from = match (written.metadata, written.field) {
            (Some(name), None) => {
                let name = http::HeaderName::try_from(name.as_str())
                    .map_err(|_| format!("`{}` is no key of metadata", name.escape_debug()))?;
                AffinityFrom::Metadata(name.as_str().to_owned())
            }
            (None, Some(number @ 1..=LAST_FIELD)) => AffinityFrom::Field(number),
            (None, Some(number)) => return Err(format!("no field has the number {number}")),
            (None, None) | (Some(_), Some(_)) => {
                return Err("an affinity is in `metadata` or in a `field`: name one".to_owned());
            }
        };
        let mode = match written.mode {
            None => Affinity::default(),
            Some(word) => {
                let known = AFFINITIES.iter().find(|(known, _)| *known == word);
                known.map(|(_, mode)| *mode).ok_or_else(|| {
                    let words = AFFINITIES.map(|(word, _)| word).join(", ");
                    format!("`{}` is none of {words}", word.escape_debug())
                })?
            }
        };
        Ok(Self { from, mode })
    }
}

impl From<AffinityRule> for Written {
    fn from(rule: AffinityRule) -> Self {
        let (metadata, field) = match rule.from {
            AffinityFrom::Metadata(name) => (Some(name), None),
            AffinityFrom::Field(number) => (None, Some(number)),
        };
        let word = AFFINITIES.iter().find(|(_, mode)| *mode == rule.mode);
        Self {
            metadata,
            field,
            mode: word.map(|(word, _)| (*word).to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AffinityRule, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_rule_names_one_place_and_a_mode_that_there_is() {
        assert_eq!(
            read("field = 1\nmode = 'strict_fail_fast'"),
            Ok(AffinityRule {
                from: AffinityFrom::Field(1),
                mode: Affinity::StrictFailFast,
            })
        );
        assert_eq!(
            read("metadata = 'X-Session'"),
            Ok(AffinityRule {
                from: AffinityFrom::Metadata("x-session".to_owned()),
                mode: Affinity::Hint,
            })
        );
        for (text, why) in [
            ("", "name one"),
            ("field = 1\nmetadata = 'x'", "name one"),
            ("field = 0", "no field has the number 0"),
            ("field = 536870912", "no field has the number"),
            ("metadata = 'a b'", "`a b` is no key"),
            ("field = 1\nmode = 'strict'", "strict_queue"),
            ("number = 1", "unknown field `number`"),
        ] {
            let refused = read(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
