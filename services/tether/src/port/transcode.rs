//! Between terms and the messages of our services, as their descriptors say: keys are names of fields, enums are words
//! without their prefix, and a worker is `{pool, slot, incarnation}`.

use bytes::Bytes;
use prost_reflect::{
    DynamicMessage, EnumDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage as _, Value,
};
use tether_port::{Fields, FromTerm, Meaningless, NIL, Term, Worker};

const WORKER: &str = "tether.common.v1.WorkerRef";

/// A message as a term.
pub(crate) fn to_term(message: &DynamicMessage) -> Term {
    let descriptor = message.descriptor();
    if descriptor.full_name() == WORKER {
        return worker(message);
    }
    let fields = descriptor.fields();
    Term::Map(
        fields
            .map(|field| (field.name().into(), field_to_term(message, &field)))
            .collect(),
    )
}

/// One field of a message as a term.
pub(crate) fn field(message: &DynamicMessage, name: &str) -> Term {
    let field = message.descriptor().get_field_by_name(name);
    field.map_or(NIL, |field| field_to_term(message, &field))
}

fn field_to_term(message: &DynamicMessage, field: &FieldDescriptor) -> Term {
    match field.supports_presence() && !message.has_field(field) {
        true => NIL,
        false => value_to_term(&message.get_field(field), field),
    }
}

fn worker(message: &DynamicMessage) -> Term {
    let field = |name| message.get_field_by_name(name);
    let pool = field("pool").and_then(|pool| pool.as_str().map(str::to_owned));
    let slot = field("slot").and_then(|slot| slot.as_u32());
    let incarnation = field("incarnation").and_then(|incarnation| incarnation.as_u64());
    Worker {
        pool: pool.unwrap_or_default(),
        slot: slot.unwrap_or_default(),
        incarnation: incarnation.unwrap_or_default(),
    }
    .into()
}

fn value_to_term(value: &Value, field: &FieldDescriptor) -> Term {
    match value {
        Value::Bool(value) => (*value).into(),
        Value::I32(value) => (*value).into(),
        Value::I64(value) => (*value).into(),
        Value::U32(value) => (*value).into(),
        Value::U64(value) => (*value).into(),
        Value::F32(value) => Term::Float((*value).into()),
        Value::F64(value) => Term::Float(*value),
        Value::String(text) => text.as_str().into(),
        Value::Bytes(bytes) => Term::Binary(bytes.clone()),
        Value::EnumNumber(number) => match field.kind() {
            Kind::Enum(words) => word(&words, *number),
            _ => (*number).into(),
        },
        Value::Message(message) => to_term(message),
        Value::List(values) => Term::List(
            values
                .iter()
                .map(|value| value_to_term(value, field))
                .collect(),
        ),
        Value::Map(entries) => map_to_term(entries, field),
    }
}

fn map_to_term(
    entries: &std::collections::HashMap<MapKey, Value>,
    field: &FieldDescriptor,
) -> Term {
    let of = match field.kind() {
        Kind::Message(entry) => entry.map_entry_value_field(),
        _ => field.clone(),
    };
    let mut entries: Vec<_> = entries
        .iter()
        .map(|(key, value)| {
            let key = key
                .as_str()
                .map_or_else(|| format!("{key:?}"), str::to_owned);
            (key, value_to_term(value, &of))
        })
        .collect();
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    let entries = entries.into_iter().map(|(key, value)| (key.into(), value));
    Term::Map(entries.collect())
}

/// The word of an enum's value, without what all its values begin with.
fn word(words: &EnumDescriptor, number: i32) -> Term {
    let Some(value) = words.get_value(number) else {
        return number.into();
    };
    let prefix = prefix(words);
    value
        .name()
        .strip_prefix(&prefix)
        .unwrap_or_else(|| value.name())
        .into()
}

/// What all values of an enum begin with: its own name, as `WORKER_PHASE_` of `WorkerPhase`.
fn prefix(words: &EnumDescriptor) -> String {
    let mut prefix = String::new();
    for letter in words.name().chars() {
        if letter.is_ascii_uppercase() && !prefix.is_empty() {
            prefix.push('_');
        }
        prefix.push(letter.to_ascii_uppercase());
    }
    prefix.push('_');
    prefix
}

/// A message out of the entries of a map.
pub(crate) fn to_message(
    descriptor: &MessageDescriptor,
    entries: Vec<(String, Term)>,
) -> Result<DynamicMessage, Meaningless> {
    let mut message = DynamicMessage::new(descriptor.clone());
    for (key, term) in entries {
        let field = descriptor.get_field_by_name(&key).ok_or_else(|| {
            let known: Vec<_> = descriptor
                .fields()
                .map(|field| field.name().to_owned())
                .collect();
            Meaningless(format!(
                "there is no use for `{key}`: expected some of {}",
                known.join(", ")
            ))
        })?;
        if !term.is_nil() {
            message.set_field(&field, value(&field, term)?);
        }
    }
    Ok(message)
}

fn value(field: &FieldDescriptor, term: Term) -> Result<Value, Meaningless> {
    if field.is_list()
        && let Term::List(items) = term
    {
        let values = items.into_iter().map(|item| one(field, item));
        return Ok(Value::List(values.collect::<Result<_, _>>()?));
    }
    one(field, term)
}

fn one(field: &FieldDescriptor, term: Term) -> Result<Value, Meaningless> {
    Ok(match field.kind() {
        Kind::Bool => Value::Bool(read(field, term)?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(read(field, term)?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(read(field, term)?),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => match term {
            Term::Int(number) => Value::I32(
                number
                    .try_into()
                    .map_err(|_| wrong(field, "a number of 32 bits", "a larger one"))?,
            ),
            other => return Err(wrong(field, "a whole number", other.kind())),
        },
        Kind::String => Value::String(read(field, term)?),
        Kind::Bytes => Value::Bytes(read::<Bytes>(field, term)?),
        Kind::Enum(words) => {
            let text: String = read(field, term)?;
            let name = format!("{}{}", prefix(&words), text.to_ascii_uppercase());
            let value = words.get_value_by_name(&name);
            let known = || wrong(field, "one of its words", &format!("`{text}`"));
            Value::EnumNumber(value.ok_or_else(known)?.number())
        }
        Kind::Message(of) if of.full_name() == WORKER => {
            let worker: Worker = read(field, term)?;
            let entries = vec![
                ("pool".to_owned(), worker.pool.into()),
                ("slot".to_owned(), worker.slot.into()),
                ("incarnation".to_owned(), worker.incarnation.into()),
            ];
            Value::Message(to_message(&of, entries)?)
        }
        Kind::Message(of) => {
            let fields = Fields::new("a message", term)?;
            Value::Message(to_message(&of, fields.rest())?)
        }
        Kind::Double | Kind::Float | Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
            return Err(wrong(field, "nothing that is asked for", term.kind()));
        }
    })
}

fn read<T: FromTerm>(field: &FieldDescriptor, term: Term) -> Result<T, Meaningless> {
    let kind = term.kind();
    T::from_term(term).ok_or_else(|| wrong(field, T::KIND, kind))
}

fn wrong(field: &FieldDescriptor, expected: &str, given: &str) -> Meaningless {
    Meaningless(format!(
        "`{}` is {given}, where {expected} is expected",
        field.name()
    ))
}
