//! Whatever comes out of the pipe does no harm, and what is said is heard.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use bytes::{BufMut as _, Bytes, BytesMut};
use proptest::{collection::vec, prelude::*};
use tether_port::{
    ATOMS, Asked, DEPTH_MAX, DecodeError, Frames, NIL, TERMS_MAX, Term, decode, frame, id_of,
};

/// Terms as deep as three, of all kinds.
fn terms() -> impl Strategy<Value = Term> {
    let leaf = prop_oneof![
        (0..ATOMS.len()).prop_map(|at| Term::Atom(ATOMS[at])),
        "[a-z]{0,9}".prop_map(Term::Name),
        any::<i64>().prop_map(|value| Term::Int(value.into())),
        any::<u64>().prop_map(|value| Term::Int(value.into())),
        (-300_i128..300).prop_map(Term::Int),
        (-1e9..1e9).prop_map(Term::Float),
        vec(any::<u8>(), 0..40).prop_map(|bytes| Term::Binary(bytes.into())),
    ];
    leaf.prop_recursive(3, 300, 12, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..12).prop_map(Term::List),
            vec(inner.clone(), 0..12).prop_map(Term::Tuple),
            vec((inner.clone(), inner), 0..6).prop_map(Term::Map),
        ]
    })
}

/// As it comes back: atoms are names here, and names go out as binaries.
fn heard(term: &Term) -> Term {
    match term {
        Term::Atom(atom) => Term::Name((*atom).to_owned()),
        Term::Name(name) => Term::text(name.as_str()),
        Term::List(items) => Term::List(items.iter().map(heard).collect()),
        Term::Tuple(items) => Term::Tuple(items.iter().map(heard).collect()),
        Term::Map(entries) => {
            let entries = entries.iter();
            Term::Map(
                entries
                    .map(|(key, value)| (heard(key), heard(value)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

/// Bytes that begin as terms do, and go on as they like.
fn almost_terms() -> impl Strategy<Value = Vec<u8>> {
    let tag = prop_oneof![
        Just(70_u8),
        Just(97),
        Just(98),
        Just(100),
        Just(104),
        Just(105),
        Just(106),
        Just(107),
        Just(108),
        Just(109),
        Just(110),
        Just(116),
        Just(119),
        any::<u8>(),
    ];
    let size = prop_oneof![Just(0_u32), 0_u32..5, any::<u32>()];
    let part = (tag, size).prop_map(|(tag, size)| {
        let mut bytes = vec![tag];
        bytes.extend(size.to_be_bytes());
        bytes
    });
    vec(part, 0..60).prop_map(|parts| [vec![131], parts.concat()].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn what_is_said_is_heard(said in terms()) {
        let mut bytes = frame(&said).unwrap();
        let body = bytes.split_off(4);
        prop_assert_eq!(u32::from_be_bytes(bytes[..].try_into().unwrap()) as usize, body.len());
        prop_assert_eq!(decode(body).unwrap(), heard(&said));
    }

    #[test]
    fn any_bytes_are_a_term_or_refused(bytes in prop_oneof![vec(any::<u8>(), 0..300), almost_terms()]) {
        if let Ok(term) = decode(bytes.into()) {
            // What it was made of says something, or nothing that is known.
            let _ = Asked::read(term);
        }
    }

    #[test]
    fn any_terms_are_something_asked_or_refused(tag in "hello|beat|call|stream|send|credit|control|bye|x", rest in vec(terms(), 0..4)) {
        let all = std::iter::once(Term::text(tag)).chain(rest).collect();
        let _ = Asked::read(Term::Tuple(all));
    }

    #[test]
    fn frames_are_found_however_they_come(said in vec(terms(), 0..8), cuts in vec(1_usize..200, 1..40)) {
        let all = said.iter().map(|term| frame(term).unwrap()).collect::<Vec<_>>().concat();
        let mut frames = Frames::default();
        let mut found = Vec::new();
        let (mut rest, mut cuts) = (&all[..], cuts.into_iter().cycle());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts.next().unwrap().min(rest.len()));
            frames.space().put_slice(now);
            rest = later;
            while let Some(frame) = frames.next_frame().unwrap() {
                found.push(decode(frame).unwrap());
            }
        }
        prop_assert_eq!(found, said.iter().map(heard).collect::<Vec<_>>());
    }
}

fn refusal(bytes: &[u8]) -> DecodeError {
    decode(Bytes::copy_from_slice(bytes)).unwrap_err()
}

#[test]
fn the_id_of_what_is_asked_for_is_found_though_the_rest_is_not_taken() {
    // `{control, 9, REFERENCE}` and the like, of which one has no id.
    let asked = |tag: &str, id: &[u8]| {
        let size = u8::try_from(tag.len()).unwrap();
        let head = [&[131, 104, 3, 119, size][..], tag.as_bytes()].concat();
        Bytes::from([&head, id, &[90, 0, 1]].concat())
    };
    let control = asked("control", &[97, 9]);

    assert!(decode(control.clone()).is_err());
    assert_eq!(id_of(&control), Some(9));
    assert_eq!(id_of(&asked("beat", &[97, 9])), None);
    assert_eq!(id_of(&asked("call", &[97, 0])), None);
    assert_eq!(id_of(&asked("call", &[106])), None);
    for size in 0..control.len() - 3 {
        assert_eq!(id_of(&control.slice(..size)), None);
    }
}

#[test]
fn a_size_that_is_claimed_takes_no_memory() {
    let four_billion = [255_u8; 4];
    for tag in [105_u8, 108, 109, 116] {
        let bytes = [&[131, tag][..], &four_billion].concat();
        assert!(
            matches!(refusal(&bytes), DecodeError::Short | DecodeError::Many),
            "{tag}"
        );
    }
    let mut frames = Frames::default();
    frames.space().put_slice(&four_billion);
    assert!(frames.next_frame().is_err());
}

#[test]
fn terms_are_no_deeper_and_no_more_than_may_be() {
    let deep = |depth: usize| {
        let lists = std::iter::repeat_n([104_u8, 1], depth).flatten();
        let bytes: Vec<u8> = std::iter::once(131).chain(lists).chain([97, 7]).collect();
        decode(bytes.into())
    };
    assert!(deep(DEPTH_MAX - 1).is_ok());
    assert_eq!(deep(DEPTH_MAX), Err(DecodeError::Deep));
    assert_eq!(deep(1_000_000), Err(DecodeError::Deep));

    let wide = |size: usize| {
        let mut bytes = BytesMut::from(&[131_u8, 108][..]);
        bytes.put_u32(u32::try_from(size).unwrap());
        bytes.put_bytes(106, size + 1);
        decode(bytes.freeze())
    };
    assert!(wide(TERMS_MAX - 2).is_ok());
    assert_eq!(wide(TERMS_MAX), Err(DecodeError::Many));
}

#[test]
fn what_erlang_writes_is_read() {
    // `term_to_binary({beat, -1, 1 bsl 40, "ab", 1.5, nil, #{a => <<"b">>}})` of OTP 25.
    let bytes: &[u8] = &[
        131, 104, 7, 100, 0, 4, 98, 101, 97, 116, 98, 255, 255, 255, 255, 110, 6, 0, 0, 0, 0, 0, 0,
        1, 107, 0, 2, 97, 98, 70, 63, 248, 0, 0, 0, 0, 0, 0, 100, 0, 3, 110, 105, 108, 116, 0, 0,
        0, 1, 100, 0, 1, 97, 109, 0, 0, 0, 1, 98,
    ];
    let read = decode(Bytes::from_static(bytes)).unwrap();

    let Term::Tuple(items) = read else {
        panic!("{read:?} is no tuple");
    };
    assert_eq!(
        items[1..5],
        [
            Term::Int(-1),
            Term::Int(1 << 40),
            Term::List(vec![Term::Int(97), Term::Int(98)]),
            Term::Float(1.5),
        ]
    );
    assert!(items[5].is_nil() && NIL.is_nil() && !Term::text("nil").is_nil());
    assert_eq!(
        items[6],
        Term::Map(vec![(Term::Name("a".to_owned()), Term::text("b"))])
    );
}
