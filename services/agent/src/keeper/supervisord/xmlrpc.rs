//! XML-RPC as supervisord speaks it: calls with words, numbers and truths, answers that are values or faults.

use std::collections::BTreeMap;

use quick_xml::{
    Reader,
    escape::escape,
    events::{BytesRef, Event},
};

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Int(i64),
    Bool(bool),
    Text(String),
    Struct(BTreeMap<String, Value>),
}

impl Value {
    /// A member that is a number.
    pub(super) fn int(&self, name: &str) -> Option<i64> {
        match self.member(name)? {
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// A member that is a text; empty where there is none.
    pub(super) fn text(&self, name: &str) -> &str {
        match self.member(name) {
            Some(Self::Text(text)) => text,
            _ => "",
        }
    }

    fn member(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Struct(members) => members.get(name),
            _ => None,
        }
    }
}

/// Why there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// It was refused, with this code and text.
    Fault(i64, String),
    /// It is no such answer.
    Garbled,
}

/// A call.
pub(super) fn call(method: &str, arguments: &[Value]) -> String {
    let arguments = arguments.iter().map(|argument| {
        let value = match argument {
            Value::Int(value) => format!("<int>{value}</int>"),
            Value::Bool(value) => format!("<boolean>{}</boolean>", u8::from(*value)),
            Value::Text(text) => format!("<string>{}</string>", escape(text.as_str())),
            Value::Struct(_) => String::new(),
        };
        format!("<param><value>{value}</value></param>")
    });
    let arguments: String = arguments.collect();
    format!(
        "<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>{arguments}</params></methodCall>"
    )
}

/// The value of an answer.
///
/// # Errors
/// When it is a fault, or none.
pub(super) fn answer(text: &str) -> Result<Value, Failure> {
    let mut reader = Reader::from_str(text);
    let mut is_fault = false;
    loop {
        match reader.read_event() {
            Ok(Event::Start(tag)) if tag.name().as_ref() == b"fault" => is_fault = true,
            Ok(Event::Start(tag)) if tag.name().as_ref() == b"value" => break,
            Ok(Event::Eof) | Err(_) => return Err(Failure::Garbled),
            Ok(_) => {}
        }
    }
    let value = value(&mut reader, 0).ok_or(Failure::Garbled)?;
    match is_fault {
        false => Ok(value),
        true => {
            let code = value.int("faultCode").unwrap_or_default();
            Err(Failure::Fault(code, value.text("faultString").to_owned()))
        }
    }
}

/// As deep as answers are nested, and no deeper.
const DEPTH: u32 = 4;

/// What follows `<value>`, up to its end.
fn value(reader: &mut Reader<&[u8]>, depth: u32) -> Option<Value> {
    if depth > DEPTH {
        return None;
    }
    let mut text = String::new();
    let mut found = None;
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) => match tag.name().as_ref() {
                b"struct" => found = Some(Value::Struct(members(reader, depth)?)),
                kind => {
                    let kind = kind.to_owned();
                    let text = inner(reader)?;
                    found = Some(match kind.as_slice() {
                        b"int" | b"i4" | b"i8" => Value::Int(text.trim().parse().ok()?),
                        b"boolean" => Value::Bool(text.trim() == "1"),
                        b"string" => Value::Text(text),
                        _ => return None,
                    });
                }
            },
            Event::Empty(tag) if tag.name().as_ref() == b"string" => {
                found = Some(Value::Text(String::new()));
            }
            Event::Text(more) => text.push_str(&more.decode().ok()?),
            Event::GeneralRef(reference) => text.push(character(&reference)?),
            Event::End(tag) if tag.name().as_ref() == b"value" => {
                // One without a kind is a text.
                return Some(found.unwrap_or(Value::Text(text)));
            }
            Event::Eof => return None,
            _ => {}
        }
    }
}

/// What follows `<struct>`, up to its end.
fn members(reader: &mut Reader<&[u8]>, depth: u32) -> Option<BTreeMap<String, Value>> {
    let mut members = BTreeMap::new();
    let mut name = String::new();
    loop {
        match reader.read_event().ok()? {
            Event::Start(tag) if tag.name().as_ref() == b"name" => name = inner(reader)?,
            Event::Start(tag) if tag.name().as_ref() == b"value" => {
                members.insert(std::mem::take(&mut name), value(reader, depth + 1)?);
            }
            Event::End(tag) if tag.name().as_ref() == b"struct" => return Some(members),
            Event::Eof => return None,
            _ => {}
        }
    }
}

/// The text up to the next end of something.
fn inner(reader: &mut Reader<&[u8]>) -> Option<String> {
    let mut text = String::new();
    loop {
        match reader.read_event().ok()? {
            Event::Text(more) => text.push_str(&more.decode().ok()?),
            Event::GeneralRef(reference) => text.push(character(&reference)?),
            Event::End(_) => return Some(text),
            _ => return None,
        }
    }
}

/// The character that `&amp;` and the like stand for.
fn character(reference: &BytesRef<'_>) -> Option<char> {
    if let Some(character) = reference.resolve_char_ref().ok()? {
        return Some(character);
    }
    Some(match reference.decode().ok()?.as_ref() {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As supervisord 4.2.5 answers `getProcessInfo`.
    const INFO: &str = "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n<value><struct>\n\
        <member>\n<name>name</name>\n<value><string>a &lt;b&gt; &#65;</string></value>\n</member>\n\
        <member>\n<name>spawnerr</name>\n<value><string></string></value>\n</member>\n\
        <member>\n<name>exitstatus</name>\n<value><int>-1</int></value>\n</member>\n\
        </struct></value>\n</param>\n</params>\n</methodResponse>\n";

    #[test]
    fn an_answer_is_a_value_or_a_fault() {
        let info = answer(INFO).unwrap();
        assert_eq!(
            (info.text("name"), info.int("exitstatus")),
            ("a <b> A", Some(-1))
        );
        assert_eq!((info.text("spawnerr"), info.int("none")), ("", None));

        let truth = "<methodResponse><params><param><value><boolean>1</boolean></value></param></params></methodResponse>";
        assert_eq!(answer(truth), Ok(Value::Bool(true)));
        let fault = "<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>10</int></value></member>\
            <member><name>faultString</name><value><string>BAD_NAME: x</string></value></member></struct></value></fault></methodResponse>";
        assert_eq!(
            answer(fault),
            Err(Failure::Fault(10, "BAD_NAME: x".to_owned()))
        );
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for text in [
            "",
            "<html>",
            &INFO[..200],
            "<value><int>x</int></value>",
            &"<value><struct><member><name>a</name>".repeat(9),
        ] {
            assert_eq!(answer(text), Err(Failure::Garbled), "{text}");
        }
    }

    #[test]
    fn what_is_asked_for_is_escaped() {
        let text = call(
            "supervisor.startProcess",
            &[Value::Text("a<b&c".to_owned()), Value::Bool(false)],
        );
        assert!(text.contains("<string>a&lt;b&amp;c</string>"), "{text}");
        assert!(text.contains("<boolean>0</boolean>"), "{text}");
    }
}
