//! The key in a message's field, compared with a reader that has all of the message at once.

use proptest::prelude::*;
use tether_endpoints::{FAR, Peek, Peeked};

const WANTED: u32 = 3;

#[derive(Debug, Clone)]
enum Value {
    Number(u64),
    Eight(u64),
    Bytes(Vec<u8>),
    Four(u32),
}

fn varint(mut value: u64, into: &mut Vec<u8>) {
    loop {
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            return into.push(low);
        }
        into.push(low | 0x80);
    }
}

fn encode(fields: &[(u32, Value)]) -> Vec<u8> {
    let mut message = Vec::new();
    for (number, value) in fields {
        let tag = u64::from(*number) << 3;
        match value {
            Value::Number(value) => {
                varint(tag, &mut message);
                varint(*value, &mut message);
            }
            Value::Eight(value) => {
                varint(tag | 1, &mut message);
                message.extend(value.to_le_bytes());
            }
            Value::Bytes(value) => {
                varint(tag | 2, &mut message);
                varint(value.len() as u64, &mut message);
                message.extend(value);
            }
            Value::Four(value) => {
                varint(tag | 5, &mut message);
                message.extend(value.to_le_bytes());
            }
        }
    }
    message
}

fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut framed = vec![flag];
    framed.extend(
        u32::try_from(message.len())
            .expect("it is short")
            .to_be_bytes(),
    );
    framed.extend(message);
    framed
}

/// What a reader finds that has the fields in its hand: the first of this number, where it ends soon enough.
fn expected(fields: &[(u32, Value)]) -> Peeked {
    let at = fields.iter().position(|(number, _)| *number == WANTED);
    let Some(at) = at else { return Peeked::Nothing };
    if encode(&fields[..=at]).len() > FAR {
        return Peeked::Nothing;
    }
    match &fields[at].1 {
        Value::Bytes(bytes) if !bytes.is_empty() => Peeked::Key(bytes.clone()),
        Value::Number(number) if *number > 0 => Peeked::Key(number.to_string().into()),
        Value::Number(_) | Value::Eight(_) | Value::Bytes(_) | Value::Four(_) => Peeked::Nothing,
    }
}

/// Feeds it in pieces of these sizes, in turn, until it wants no more.
fn peek(stream: &[u8], sizes: &[usize]) -> Peeked {
    let mut peek = Peek::new(WANTED);
    let (mut rest, mut sizes) = (stream, sizes.iter().cycle());
    while !rest.is_empty() {
        let (piece, more) =
            rest.split_at(rest.len().min(*sizes.next().expect("it goes on for ever")));
        rest = more;
        match peek.feed(piece) {
            Peeked::Wants => {}
            found => {
                assert_eq!(peek.feed(b"more"), Peeked::Nothing, "it wants no more");
                return found;
            }
        }
    }
    Peeked::Wants
}

fn fields() -> impl Strategy<Value = Vec<(u32, Value)>> {
    let long = prop_oneof![8 => 0usize..40, 1 => FAR - 60..FAR + 60];
    let value = prop_oneof![
        2 => prop_oneof![Just(0), any::<u64>(), 1u64..300].prop_map(Value::Number),
        1 => any::<u64>().prop_map(Value::Eight),
        1 => any::<u32>().prop_map(Value::Four),
        3 => long.prop_map(|length| Value::Bytes(vec![7; length])),
    ];
    let number = prop_oneof![4 => 1u32..5, 1 => 1u32..1 << 29];
    prop::collection::vec((number, value), 0..8)
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1usize..9, 1_000usize..20_000], 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_key_is_found_however_the_bytes_are_cut(fields in fields(), sizes in sizes()) {
        let stream = framed(0, &encode(&fields));
        prop_assert_eq!(peek(&stream, &sizes), expected(&fields));
    }

    #[test]
    fn of_a_message_that_is_long_no_more_is_wanted_than_is_looked_at(fields in fields(), sizes in sizes()) {
        let message = encode(&fields);
        let mut stream = framed(0, &message);
        stream.truncate(5 + FAR.min(message.len()));
        prop_assert_eq!(peek(&stream, &sizes), expected(&fields));
    }

    #[test]
    fn any_bytes_are_told_the_same_however_they_are_cut(
        bytes in prop::collection::vec(any::<u8>(), 0..200), length in 0u8..200, sizes in sizes()
    ) {
        let mut stream = vec![0, 0, 0, 0, length];
        stream.extend(bytes);
        prop_assert_eq!(peek(&stream, &sizes), peek(&stream, &[usize::MAX]));
    }
}

#[test]
fn a_compressed_message_has_no_key() {
    let message = encode(&[(WANTED, Value::Bytes(b"session-42".to_vec()))]);
    let key = Peeked::Key(b"session-42".to_vec());
    assert_eq!(peek(&framed(0, &message), &[usize::MAX]), key);
    assert_eq!(peek(&framed(1, &message), &[usize::MAX]), Peeked::Nothing);
}
