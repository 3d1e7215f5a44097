//! Rules of RFC 9113, one by one. What a server owes malformed frames is in the gateway's conformance suite.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Uri};
use tether_http2::{Config, Error, Event, Key, Reason, Role};

use super::wire::*;

fn opened(end: &mut End, stream: u32, flags: u8) -> Key {
    let events = end.read(&frame(HEADERS, flags | END_HEADERS, stream, block(CALL)));
    match &events.expect("it is as it should be")[..] {
        [Event::Request { stream, .. }] => *stream,
        other => panic!("{other:?}"),
    }
}

fn asked(end: &mut End) -> Key {
    let uri = Uri::from_static("http://site/a.B/Echo");
    let asked = end
        .connection
        .open(&Method::POST, &uri, &HeaderMap::new(), false);
    asked.expect("it is as it should be")
}

fn ends_with(end: &mut End, bytes: &[u8], reason: Reason) {
    let remote = false;
    assert_eq!(
        end.read(bytes).expect_err("it ends"),
        Error::GoAway { reason, remote }
    );
    let last = end.written().pop().expect("something was said");
    assert_eq!((last.kind, last.number(4)), (GOAWAY, reason.0));
}

#[test]
fn a_request_and_its_answer_pass() {
    let mut end = End::server();
    let stream = opened(&mut end, 1, 0);
    let events = end
        .read(&frame(DATA, END_STREAM, 1, b"word"))
        .expect("it is as it should be");
    assert!(matches!(&events[..], [Event::Data { data, ends: true, .. }] if data == "word"));

    let connection = &mut end.connection;
    connection
        .respond(stream, StatusCode::OK, &HeaderMap::new(), false)
        .expect("it is as it should be");
    connection
        .send_data(stream, &Bytes::from_static(b"answer"), false)
        .expect("it is as it should be");
    connection
        .send_trailers(stream, &HeaderMap::new())
        .expect("it is as it should be");
    let kinds: Vec<_> = end
        .written()
        .iter()
        .map(|one| (one.kind, one.flags, one.stream))
        .collect();

    assert_eq!(
        kinds,
        [(HEADERS, END_HEADERS, 1), (DATA, 0, 1), (HEADERS, WHOLE, 1)]
    );
    end.connection.forget(stream);
    assert_eq!(end.written(), []);
}

#[test]
fn nothing_is_sent_beyond_either_window_and_what_is_given_later_counts() {
    let mut end = End::client();
    let stream = asked(&mut end);
    assert_eq!(end.connection.capacity(stream), 65_535);
    end.connection
        .send_data(stream, &Bytes::from(vec![0; 65_535]), false)
        .expect("it is as it should be");
    assert_eq!(end.connection.capacity(stream), 0);
    assert!(
        end.connection
            .send_data(stream, &Bytes::from_static(b"a"), false)
            .is_err()
    );
    end.written();

    // The stream's window alone is of no use, nor is the connection's.
    end.read(&frame(WINDOW_UPDATE, 0, 1, 10_u32.to_be_bytes()))
        .expect("it is as it should be");
    assert_eq!(end.connection.capacity(stream), 0);
    end.read(&frame(WINDOW_UPDATE, 0, 0, 4_u32.to_be_bytes()))
        .expect("it is as it should be");
    assert_eq!(end.connection.capacity(stream), 4);
    // Settings may take back what a stream had, and more.
    end.read(&frame(SETTINGS, 0, 0, [0, 4, 0, 0, 0, 0]))
        .expect("it is as it should be");
    assert_eq!(end.connection.capacity(stream), 0);
    end.read(&frame(WINDOW_UPDATE, 0, 1, 65_530_u32.to_be_bytes()))
        .expect("it is as it should be");
    assert_eq!(end.connection.capacity(stream), 4);
}

#[test]
fn frames_are_no_larger_than_the_other_side_takes() {
    let mut end = End::client();
    let stream = asked(&mut end);
    let mut fields = HeaderMap::new();
    fields.insert(
        "x-large",
        "v".repeat(40_000).parse().expect("it is as it should be"),
    );
    end.connection
        .send_data(stream, &Bytes::from(vec![7; 40_000]), false)
        .expect("it is as it should be");
    end.connection
        .send_trailers(stream, &fields)
        .expect("it is as it should be");

    let written = end.written();
    assert!(
        written.iter().all(|one| one.payload.len() <= 16_384),
        "{written:?}"
    );
    let kinds: Vec<_> = written
        .iter()
        .skip(1)
        .map(|one| (one.kind, one.flags))
        .collect();
    let data = [(DATA, 0); 3];
    let trailers = [
        (HEADERS, END_STREAM),
        (CONTINUATION, 0),
        (CONTINUATION, END_HEADERS),
    ];
    assert_eq!(kinds, [&data[..], &trailers].concat());
}

#[test]
fn the_connections_window_is_given_back_as_it_is_used_and_a_streams_as_it_is_taken() {
    let config = Config {
        stream_window: 100_000,
        connection_window: 100_000,
        ..Config::default()
    };
    let mut end = End::new(Role::Server, config);
    end.read(&[PREFACE, &frame(SETTINGS, 0, 0, [])].concat())
        .expect("it is as it should be");
    let stream = opened(&mut end, 1, 0);
    end.connection.output().take();
    for _ in 0..5 {
        end.read(&frame(DATA, 0, 1, [0; 12_000]))
            .expect("it is as it should be");
    }
    let given: Vec<_> = end
        .written()
        .iter()
        .map(|one| (one.kind, one.stream))
        .collect();
    assert_eq!(given, [(WINDOW_UPDATE, 0)]);

    end.connection.release(stream, 60_000);
    let given: Vec<_> = end
        .written()
        .iter()
        .map(|one| (one.stream, one.number(0)))
        .collect();
    assert_eq!(given, [(1, 60_000)]);
    // Whoever sends more than that has not kept to it.
    for _ in 0..8 {
        end.read(&frame(DATA, 0, 1, [0; 12_000]))
            .expect("it is as it should be");
    }
    let events = end
        .read(&frame(DATA, 0, 1, [0; 12_000]))
        .expect("it is as it should be");
    let reason = Reason::FLOW_CONTROL_ERROR;
    assert!(
        matches!(&events[..], [Event::Reset { error, .. }] if error.reason() == Some(reason)),
        "{events:?}"
    );
}

#[test]
fn no_more_streams_are_opened_or_taken_than_was_said() {
    let mut client = End::client();
    client
        .read(&frame(SETTINGS, 0, 0, [0, 3, 0, 0, 0, 1]))
        .expect("it is as it should be");
    let first = asked(&mut client);
    assert!(!client.connection.can_open());
    let uri = Uri::from_static("http://site/");
    let another = client
        .connection
        .open(&Method::POST, &uri, &HeaderMap::new(), true);
    assert!(another.is_err());
    client.connection.forget(first);
    assert!(client.connection.can_open());

    let config = Config {
        max_streams: 1,
        ..Config::default()
    };
    let mut server = End::new(Role::Server, config);
    server
        .read(&[PREFACE, &frame(SETTINGS, 0, 0, [])].concat())
        .expect("it is as it should be");
    opened(&mut server, 1, 0);
    server.connection.output().take();
    let events = server
        .read(&frame(HEADERS, WHOLE, 3, block(CALL)))
        .expect("it is as it should be");
    assert!(events.is_empty());
    let said = server.written().pop().expect("something was said");
    let refused = Reason::REFUSED_STREAM.0;
    assert_eq!(
        (said.kind, said.stream, said.number(0)),
        (RST_STREAM, 3, refused)
    );
}

#[test]
fn a_farewell_lets_what_is_under_way_end_and_takes_what_was_sent_before_it_came() {
    let mut end = End::server();
    let first = opened(&mut end, 1, END_STREAM);
    end.connection.say_farewell();
    let said = end.written();
    assert_eq!((said[0].kind, said[0].number(0)), (GOAWAY, u32::MAX >> 1));
    assert_eq!(said[1].kind, PING);
    let second = opened(&mut end, 3, END_STREAM);

    end.read(&frame(PING, ACK, 0, &said[1].payload))
        .expect("it is as it should be");
    let said = end.written();
    assert_eq!((said[0].kind, said[0].number(0)), (GOAWAY, 3));
    assert!(
        end.read(&frame(HEADERS, WHOLE, 5, block(CALL)))
            .expect("it is as it should be")
            .is_empty()
    );
    assert!(!end.connection.is_over());
    for stream in [first, second] {
        let fields = HeaderMap::new();
        end.connection
            .respond(stream, StatusCode::OK, &fields, true)
            .expect("it is as it should be");
    }
    assert!(end.connection.is_over());
}

#[test]
fn streams_that_a_farewell_leaves_out_are_refused_and_the_others_go_on() {
    let mut end = End::client();
    let (first, second) = (asked(&mut end), asked(&mut end));
    let word = [&1_u32.to_be_bytes()[..], &[0; 4]].concat();
    let events = end
        .read(&frame(GOAWAY, 0, 0, word))
        .expect("it is as it should be");
    assert!(matches!(events[..], [Event::GoAway]));
    assert_eq!(end.connection.refused(), [second]);
    assert!(
        end.connection
            .is_closed()
            .expect("it is as it should be")
            .is_go_away()
    );

    let answer = frame(HEADERS, WHOLE, 1, block(&[(":status", "200")]));
    let events = end.read(&answer).expect("it is as it should be");
    assert!(matches!(events[..], [Event::Response { stream, ends: true, .. }] if stream == first));
}

#[test]
fn what_comes_late_for_a_stream_that_was_reset_is_no_offence() {
    for mut end in [End::server(), End::client()] {
        let is_client = end.connection.can_open() && end.read(&[]).is_ok() && {
            let uri = Uri::from_static("http://site/");
            let opened = end
                .connection
                .open(&Method::POST, &uri, &HeaderMap::new(), false);
            opened.is_ok_and(|stream| {
                end.connection.reset(stream, Reason::CANCEL);
                end.connection.forget(stream);
                true
            })
        };
        let head = match is_client {
            true => block(&[(":status", "200")]),
            false => block(CALL),
        };
        let late = [
            frame(HEADERS, END_HEADERS, 1, &head),
            frame(DATA, 0, 1, b"late"),
            frame(WINDOW_UPDATE, 0, 1, 1_u32.to_be_bytes()),
            frame(RST_STREAM, 0, 1, 8_u32.to_be_bytes()),
        ];
        end.written_if(is_client);
        let events = end.read(&late.concat()).expect("it is as it should be");
        assert!(!is_client || events.is_empty(), "{events:?}");
    }
}

impl End {
    fn written_if(&mut self, take: bool) {
        if take {
            self.connection.output().take();
        }
    }
}

#[test]
fn one_that_begins_anew_on_a_stream_after_its_end_is_told_so() {
    let mut end = End::server();
    let stream = opened(&mut end, 1, END_STREAM);
    let fields = HeaderMap::new();
    end.connection
        .respond(stream, StatusCode::OK, &fields, true)
        .expect("it is as it should be");
    end.connection.forget(stream);
    end.written();

    assert!(
        end.read(&frame(HEADERS, WHOLE, 1, block(CALL)))
            .expect("it is as it should be")
            .is_empty()
    );
    let said = end.written().pop().expect("something was said");
    let closed = Reason::STREAM_CLOSED.0;
    assert_eq!(
        (said.kind, said.stream, said.number(0)),
        (RST_STREAM, 1, closed)
    );
}

#[test]
fn a_stream_that_is_given_up_is_told_so_unless_its_answer_is_whole() {
    let mut end = End::server();
    let (given_up, answered) = (opened(&mut end, 1, 0), opened(&mut end, 3, 0));
    end.connection.forget(given_up);
    let fields = HeaderMap::new();
    end.connection
        .respond(answered, StatusCode::OK, &fields, true)
        .expect("it is as it should be");
    end.connection.forget(answered);

    let resets = end
        .written()
        .into_iter()
        .filter(|one| one.kind == RST_STREAM);
    let resets: Vec<_> = resets.map(|one| (one.stream, one.number(0))).collect();
    assert_eq!(resets, [(1, Reason::CANCEL.0), (3, Reason::NO_ERROR.0)]);
}

#[test]
fn informational_heads_are_passed_over() {
    let mut end = End::client();
    asked(&mut end);
    let heads = [
        frame(HEADERS, END_HEADERS, 1, block(&[(":status", "103")])),
        frame(HEADERS, END_HEADERS, 1, block(&[(":status", "204")])),
    ];
    let events = end.read(&heads.concat()).expect("it is as it should be");
    assert!(
        matches!(&events[..], [Event::Response { head, .. }] if head.status == 204),
        "{events:?}"
    );
}

#[test]
fn floods_end_the_connection_and_what_is_read_in_time_does_not() {
    let calm = Reason::ENHANCE_YOUR_CALM;
    let mut end = End::server();
    opened(&mut end, 1, 0);
    ends_with(&mut end, &frame(DATA, 0, 1, []).repeat(1_001), calm);
    for flood in [frame(PING, 0, 0, [0; 8]), frame(SETTINGS, 0, 0, [])] {
        let mut end = End::server();
        for _ in 0..20 {
            end.read(&flood.repeat(1_000))
                .expect("it is as it should be");
            assert_eq!(end.written().len(), 1_000);
        }
        ends_with(&mut end, &flood.repeat(10_001), calm);
    }
    let mut end = End::server();
    let begin = frame(HEADERS, 0, 1, block(CALL));
    let pieces = frame(CONTINUATION, 0, 1, []).repeat(257);
    ends_with(&mut end, &[begin.clone(), pieces].concat(), calm);
    let mut end = End::server();
    let pieces = frame(CONTINUATION, 0, 1, [0x80; 16_384]).repeat(17);
    ends_with(&mut end, &[begin, pieces].concat(), calm);
}

#[test]
fn streams_that_are_given_up_before_anybody_took_them_on_are_few() {
    let pair = |stream| {
        let call = frame(HEADERS, WHOLE, stream, block(CALL));
        [call, frame(RST_STREAM, 0, stream, 8_u32.to_be_bytes())].concat()
    };
    let mut end = End::server();
    for at in 0..5_000 {
        let events = end.read(&pair(2 * at + 1)).expect("it is as it should be");
        let [Event::Request { stream, .. }, Event::Reset { .. }] = events[..] else {
            panic!("{events:?}");
        };
        end.connection.forget(stream);
    }
    let mut end = End::server();
    let rapid: Vec<u8> = (0..1_001).flat_map(|at| pair(2 * at + 1)).collect();
    ends_with(&mut end, &rapid, Reason::ENHANCE_YOUR_CALM);
}

#[test]
fn too_much_metadata_is_answered_and_the_next_request_is_read() {
    let mut end = End::server();
    let large = "v".repeat(8_000);
    let fields = [CALL, &[("x-large", &large[..]); 9]].concat();
    let block = block(&fields);
    let mut pieces = block.chunks(16_000);
    let mut bytes = frame(
        HEADERS,
        END_STREAM,
        1,
        pieces.next().expect("it is as it should be"),
    );
    let rest: Vec<_> = pieces.collect();
    for (at, piece) in rest.iter().enumerate() {
        let flags = if at + 1 == rest.len() { END_HEADERS } else { 0 };
        bytes.extend(frame(CONTINUATION, flags, 1, piece));
    }
    assert!(end.read(&bytes).expect("it is as it should be").is_empty());
    let said = end.written();
    assert_eq!((said[0].kind, said[0].flags), (HEADERS, WHOLE));
    opened(&mut end, 3, END_STREAM);
}

#[test]
fn a_request_with_more_metadata_than_the_other_side_takes_is_not_sent_and_the_next_is() {
    let mut end = End::client();
    end.read(&frame(SETTINGS, 0, 0, [0, 6, 0, 0, 4, 0]))
        .expect("it is as it should be");
    end.written();
    let uri = Uri::from_static("http://site/a.B/Echo");
    let mut fields = HeaderMap::new();
    // Beside it there is its head, and 32 bytes count for each of the five.
    let room = 1_024 - (7 + 4) - (7 + 4) - (5 + 9) - (10 + 4) - 5 * 32;
    fields.insert(
        "x",
        "v".repeat(room).parse().expect("it is as it should be"),
    );
    let mut ask = |fields: &HeaderMap| end.connection.open(&Method::POST, &uri, fields, true);
    let refused = ask(&fields).expect_err("it is one byte too large");
    assert_eq!(
        refused,
        Error::TooLarge {
            size: 1_025,
            limit: 1_024
        }
    );
    fields.insert(
        "x",
        "v".repeat(room - 1).parse().expect("it is as it should be"),
    );
    ask(&fields).expect("it is as large as it may be");

    let written = end.written();
    assert_eq!(
        written.iter().map(|one| one.stream).collect::<Vec<_>>(),
        [1]
    );
}
