//! Bytes that nobody vouches for.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Uri};
use proptest::{collection::vec, prelude::*, sample::select};
use tether_http2::{Config, Connection, Event, Role};

use super::{cases, wire::*};

/// What an engine may hold after whatever it was sent: its output, remembered streams, and one header block.
const BOUND: usize = 2 << 20;

fn config() -> Config {
    Config {
        max_streams: 100,
        header_list: 4_096,
        ..Config::default()
    }
}

/// A frame that is more or less one.
fn odd_frame() -> impl Strategy<Value = Vec<u8>> {
    let stream = prop_oneof![8 => 0..8_u32, 1 => any::<u32>()];
    let fields = prop_oneof![
        3 => Just(block(CALL)),
        2 => Just(block(&[(":status", "200"), ("grpc-status", "0")])),
        1 => Just(block(&[("grpc-status", "0")])),
        1 => Just(block(&[("content-length", "5")])),
        1 => Just(block(&[CALL, &[("content-length", "5"), ("x-a", "b")]].concat())),
        3 => vec(any::<u8>(), 0..60),
    ];
    let payload = prop_oneof![
        4 => fields,
        1 => vec(any::<u8>(), 4..=4),
        1 => vec(any::<u8>(), 8..=8),
        1 => (0..7_u16, any::<u32>()).prop_map(|(key, value)| {
            [&key.to_be_bytes()[..], &value.to_be_bytes()].concat()
        }),
        1 => (0..20_000_usize).prop_map(|size| vec![b'x'; size]),
    ];
    let kind = prop_oneof![3 => Just(HEADERS), 2 => Just(DATA), 5 => 0..11_u8];
    let flags = prop_oneof![4 => select(vec![0, WHOLE, END_HEADERS, END_STREAM]), 1 => any::<u8>()];
    (kind, flags, stream, payload)
        .prop_map(|(kind, flags, stream, payload)| frame(kind, flags, stream, payload))
}

/// What becomes of bytes that come in these pieces.
fn told(role: Role, bytes: &[u8], cuts: &[usize], acts: bool) -> Vec<String> {
    let mut connection = Connection::new(role, config());
    let mut told = Vec::new();
    if role == Role::Client {
        let uri = Uri::from_static("http://site/a");
        for _ in 0..3 {
            let opened = connection.open(&Method::POST, &uri, &HeaderMap::new(), false);
            opened.expect("there is room");
        }
    }
    let mut input = BytesMut::new();
    let mut rest = bytes;
    let mut cuts = cuts.iter().cycle();
    while !rest.is_empty() {
        let cut = cuts
            .next()
            .map_or(rest.len(), |cut| (*cut).clamp(1, rest.len()));
        let (piece, more) = rest.split_at(cut);
        input.extend_from_slice(piece);
        rest = more;
        loop {
            match connection.next(&mut input) {
                Ok(None) => break,
                Ok(Some(event)) => {
                    if acts {
                        act(&mut connection, &event);
                    }
                    told.push(format!("{event:?}"));
                }
                Err(error) => {
                    told.push(format!("{error:?}"));
                    rest = &[];
                    break;
                }
            }
        }
        assert!(connection.held() < BOUND, "{} bytes", connection.held());
    }
    told.push(format!("{:?}", connection.output().take()));
    told
}

/// What somebody would do.
fn act(connection: &mut Connection, event: &Event) {
    let fields = HeaderMap::new();
    match event {
        Event::Request { stream, .. } => {
            connection.accept(*stream);
            let _ = connection.respond(*stream, StatusCode::OK, &fields, false);
        }
        Event::Data { stream, data, ends } => {
            connection.release(*stream, data.len());
            let part = data.len().min(connection.capacity(*stream));
            let _ = connection.send_data(*stream, &data.slice(..part), false);
            if *ends {
                let _ = connection.send_trailers(*stream, &fields);
                connection.forget(*stream);
            }
        }
        Event::Trailers { stream, .. } | Event::Reset { stream, .. } => {
            let _ = connection.send_data(*stream, &Bytes::new(), true);
            connection.forget(*stream);
        }
        Event::GoAway => drop(connection.refused()),
        _ => {}
    }
}

fn roles() -> impl Strategy<Value = Role> {
    select(vec![Role::Client, Role::Server])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(512), failure_persistence: None, ..ProptestConfig::default() })]

    /// B1, and that how bytes are cut does not matter.
    #[test]
    fn frames_of_any_kind_do_no_harm_and_mean_the_same_however_they_are_cut(
        role in roles(),
        frames in vec(odd_frame(), 0..60),
        cuts in vec(1..300_usize, 1..20),
        acts in any::<bool>(),
    ) {
        let mut bytes = frames.concat();
        if role == Role::Server {
            bytes.splice(..0, PREFACE.iter().copied());
        }
        let whole = told(role, &bytes, &[], acts);
        prop_assert_eq!(&told(role, &bytes, &cuts, acts), &whole);
        prop_assert_eq!(&told(role, &bytes, &[1], acts), &whole);
    }

    #[test]
    fn bytes_of_any_kind_do_no_harm(
        role in roles(),
        has_preface in any::<bool>(),
        bytes in vec(any::<u8>(), 0..2_000),
        cuts in vec(1..300_usize, 1..20),
    ) {
        let first = if has_preface { PREFACE } else { &[] };
        told(role, &[first, &bytes].concat(), &cuts, true);
    }
}
