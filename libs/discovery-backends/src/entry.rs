//! An address as people and programs write it in a list or under a key: alone, or as JSON with what is known of it.
//!
//! ```json
//! ["10.0.0.4:50051", {"address": "10.0.0.5:50051", "zone": "eu-west-1a", "weight": 2}]
//! ```

use std::fmt;

use serde::{
    Deserialize, Deserializer as _,
    de::{SeqAccess, Visitor},
};
use serde_json::Value;
use tether_types::Address;

use super::{Answer, Traits};

/// What may be known of an address. What else an object says is somebody else's, and is passed over.
#[derive(Debug, Deserialize)]
struct Described {
    address: String,
    #[serde(default)]
    zone: String,
    weight: Option<u32>,
    #[serde(default)]
    capacity: u32,
    #[serde(default)]
    draining: bool,
    protocol: Option<String>,
    #[serde(default)]
    identity: String,
}

/// Reads one value: a bare address, or an object of JSON, or a string of JSON.
pub(super) fn read(text: &str) -> Result<(Address, Traits), String> {
    let text = text.trim();
    if text.starts_with(['{', '"']) {
        of_json(serde_json::from_str(text).map_err(|error| no_json(text, &error))?)
    } else {
        Ok((address(text)?, Traits::default()))
    }
}

/// Reads an array of JSON.
///
/// # Errors
/// Where it is no array, or no JSON at all: a file that is half written, most likely.
pub(super) fn json_list(bytes: &[u8]) -> Result<Answer, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        format!(
            "its byte {} is not UTF-8, as JSON has to be",
            error.valid_up_to() + 1
        )
    })?;
    let mut json = serde_json::Deserializer::from_str(text);
    let answer = json.deserialize_seq(Entries);
    let answer = answer.and_then(|answer| json.end().map(|()| answer));
    answer
        .map_err(|error| format!("{}; it has to be an array", no_json(text, &error)))?
        .and_then(Answer::settled)
}

/// The entries of an array, of which one at a time is in memory: as values of JSON, they take twenty times as much as
/// their text.
struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = Result<Answer, String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut answer = Ok(Answer::default());
        while let Some(value) = list.next_element()? {
            answer = answer.and_then(|mut answer: Answer| {
                answer.take_or_leave(of_json(value))?;
                Ok(answer)
            });
        }
        Ok(answer)
    }
}

/// Reads text with one address a line. What follows `#` is a comment. A line that is no UTF-8 is none of an address.
///
/// # Errors
/// Where it does not end with a line feed: it is half written, most likely, and an address that is cut off is another
/// address.
pub(super) fn text_list(bytes: &[u8]) -> Result<Answer, String> {
    let text = String::from_utf8_lossy(bytes);
    if !text.ends_with('\n') {
        return Err(
            "it does not end with a line feed, which is taken for half written; a list of nobody is a line with a comment"
                .to_owned(),
        );
    }
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or(""));
    let lines = lines.map(str::trim).filter(|line| !line.is_empty());
    gather(lines.map(|line| Ok((address(line)?, Traits::default()))))
}

fn gather(
    entries: impl Iterator<Item = Result<(Address, Traits), String>>,
) -> Result<Answer, String> {
    let mut answer = Answer::default();
    for entry in entries {
        answer.take_or_leave(entry)?;
    }
    answer.settled()
}

fn of_json(value: Value) -> Result<(Address, Traits), String> {
    let described = match value {
        Value::String(text) => return Ok((address(&text)?, Traits::default())),
        Value::Object(_) => {
            Described::deserialize(&value).map_err(|error| no_json(&value.to_string(), &error))?
        }
        other => {
            return Err(format!(
                "`{}` is neither an address nor an object with one",
                shown(&other.to_string())
            ));
        }
    };
    let known = Traits::default();
    let traits = Traits {
        zone: described.zone,
        weight: described.weight.unwrap_or(known.weight),
        capacity: described.capacity,
        draining: described.draining,
        protocol: described.protocol.unwrap_or(known.protocol),
        identity: described.identity,
    };
    Ok((address(&described.address)?, traits))
}

fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|_| {
        format!(
            "`{}` is not an address such as `10.0.0.4:50051` or `unix:/run/worker.sock`",
            shown(text)
        )
    })
}

fn no_json(text: &str, error: &serde_json::Error) -> String {
    format!("`{}` cannot be read: {error}", shown(text))
}

/// Its beginning, for messages.
pub(super) fn shown(text: &str) -> String {
    let mut letters = text.trim().chars();
    let mut shown: String = letters.by_ref().take(60).collect();
    if letters.next().is_some() {
        shown.push('…');
    }
    shown.escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(answer: &Answer) -> Vec<String> {
        answer.targets.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn an_entry_says_as_much_as_is_known() {
        let text = r#"{"address":"[fd00::1]:5","zone":"b","weight":7,"capacity":3,"draining":true,"protocol":"grpcs","identity":"i","other":1}"#;
        let (address, traits) = read(text).unwrap();
        assert_eq!(address.to_string(), "[fd00::1]:5");
        let expected = Traits {
            zone: "b".to_owned(),
            weight: 7,
            capacity: 3,
            draining: true,
            protocol: "grpcs".to_owned(),
            identity: "i".to_owned(),
        };
        assert_eq!(traits, expected);

        for text in ["a:1\n", "\"a:1\"", r#"{"address":"a:1"}"#] {
            let read = read(text).unwrap();
            assert_eq!(read, ("a:1".parse().unwrap(), Traits::default()), "{text}");
        }
        for wrong in [
            "",
            "a",
            "{",
            "{}",
            r#"{"address":1}"#,
            r#"{"address":"a:1","weight":-1}"#,
            "a:1,b:1",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_entry_of_a_list_is_left_out_and_what_is_no_list_is_an_error() {
        let answer = json_list(br#"["a:1", 5, {"zone":"b"}, {"address":"b:1"}, "c"]"#).unwrap();
        assert_eq!(
            (named(&answer), answer.left_out),
            (vec!["a:1".to_owned(), "b:1".to_owned()], 3)
        );
        assert!(json_list(b" [ ] \n").unwrap().targets.is_empty());
        for wrong in ["", "[\"a:1\"", "{}", "\"a:1\"", "[\"a:1\"]]", "[5, 6]"] {
            assert!(json_list(wrong.as_bytes()).is_err(), "{wrong}");
        }
        let error = json_list(b"[\"a:1\", \"\xff:1\"]").unwrap_err();
        assert!(error.contains("byte 10 is not UTF-8"), "{error}");
    }

    #[test]
    fn text_has_an_address_a_line_and_ends_with_a_line_feed() {
        let answer = text_list(b"# all\na:1 # caf\xe9\n\n  [::2]:1\r\nnonsense\n\xff:1\n").unwrap();
        assert_eq!(
            (named(&answer).concat().as_str(), answer.left_out),
            ("[::2]:1a:1", 2)
        );
        assert!(text_list(b"# nobody\n").unwrap().targets.is_empty());
        for wrong in ["", "a:1\nb:12", "<html>\n"] {
            assert!(text_list(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
