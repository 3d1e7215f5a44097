//! What one side can make the other keep, and do, by not reading or by saying much.

use std::time::{Duration, Instant};

use http::{HeaderMap, Method, StatusCode, Uri};
use tether_http2::{Config, Event, Key, Reason, Role};

use super::wire::*;

fn server(config: Config) -> End {
    let mut end = End::new(Role::Server, config);
    end.read(&[PREFACE, &frame(SETTINGS, 0, 0, [])].concat())
        .expect("it is as it should be");
    end.written();
    end
}

fn open(end: &mut End) -> Key {
    let uri = Uri::from_static("http://site/");
    let opened = end
        .connection
        .open(&Method::POST, &uri, &HeaderMap::new(), false);
    opened.expect("there is room")
}

/// Answers whatever is asked, until the connection ends; with why, and the most that was held.
fn ask_without_reading(end: &mut End, calls: u32) -> (Option<Reason>, usize) {
    let mut most = 0;
    for at in 0..calls {
        let call = frame(HEADERS, WHOLE, 2 * at + 1, block(CALL));
        let events = match end.read(&call) {
            Ok(events) => events,
            Err(error) => return (error.reason(), most),
        };
        for event in events {
            if let Event::Request { stream, .. } = event {
                let fields = HeaderMap::new();
                let answered = end
                    .connection
                    .respond(stream, StatusCode::NOT_FOUND, &fields, true);
                answered.expect("it is open");
                end.connection.forget(stream);
            }
        }
        most = most.max(end.connection.held());
    }
    (None, most)
}

#[test]
fn one_that_asks_and_does_not_read_is_refused_and_then_left() {
    let config = Config {
        send_buffer: 1_000,
        ..Config::default()
    };
    let (why, most) = ask_without_reading(&mut server(config), 30_000);

    assert_eq!(why, Some(Reason::ENHANCE_YOUR_CALM));
    assert!(most < 150_000, "{most} bytes");
}

#[test]
fn one_that_reads_late_is_served_when_it_has() {
    let config = Config {
        send_buffer: 1_000,
        ..Config::default()
    };
    let mut end = server(config);
    assert_eq!(ask_without_reading(&mut end, 1_000).0, None);
    let refused = |one: &Frame| one.kind == RST_STREAM && one.number(0) == 7;
    assert!(end.written().iter().any(refused));

    let events = end.read(&frame(HEADERS, WHOLE, 2_001, block(CALL)));
    let events = events.expect("it is as it should be");
    assert!(matches!(events[..], [Event::Request { .. }]), "{events:?}");
}

#[test]
fn answers_to_too_much_metadata_are_counted() {
    let config = Config {
        header_list: 50,
        ..Config::default()
    };
    let (why, _) = ask_without_reading(&mut server(config), 10_001);
    assert_eq!(why, Some(Reason::ENHANCE_YOUR_CALM));
}

#[test]
fn no_stream_is_opened_while_the_other_side_does_not_read() {
    let mut end = End::client();
    let buffer = Config::default().send_buffer;
    while end.connection.free() > 0 {
        let stream = open(&mut end);
        end.connection.forget(stream);
        assert!(end.connection.held() < 2 * buffer, "without an end");
    }
    end.written();
    assert!(end.connection.free() > 0);
}

#[test]
fn what_is_under_way_when_many_streams_are_given_up_is_no_offence() {
    let config = Config {
        max_streams: 20_000,
        send_buffer: 1 << 20,
        ..Config::default()
    };
    let mut end = server(config);
    for at in 0..20_000 {
        let events = end.read(&frame(HEADERS, END_HEADERS, 2 * at + 1, block(CALL)));
        let [Event::Request { stream, .. }] = events.expect("it is as it should be")[..] else {
            panic!("it is no request");
        };
        end.connection.accept(stream);
        end.connection.forget(stream);
    }
    assert_eq!(end.written().len(), 20_000);
    for at in 0..20_000 {
        let late = [
            frame(WINDOW_UPDATE, 0, 2 * at + 1, 1_u32.to_be_bytes()),
            frame(DATA, END_STREAM, 2 * at + 1, b"late"),
            frame(RST_STREAM, 0, 2 * at + 1, 8_u32.to_be_bytes()),
        ];
        end.read(&late.concat()).expect("it is no offence");
    }
    assert_eq!(end.written(), []);
}

#[test]
fn answers_count_as_read_when_what_waited_before_them_is_written_and_no_sooner() {
    let pings = frame(PING, 0, 0, [0; 8]).repeat(6_000);
    // There is always something left to write, and it always moves.
    let mut end = End::server();
    for _ in 0..10 {
        end.read(&pings).expect("it is read");
        let length = end.connection.output().len();
        end.connection.output().advance(length - 1);
        end.connection.on_written();
    }
    // It moves by a byte each time.
    let mut end = End::server();
    let read = (0..10).try_for_each(|_| {
        let read = end.read(&pings).map(drop);
        end.connection.output().advance(1);
        end.connection.on_written();
        read
    });
    let why = read.expect_err("nobody reads it").reason();
    assert_eq!(why, Some(Reason::ENHANCE_YOUR_CALM));
}

#[test]
fn a_word_on_windows_counts_for_streams_from_before_and_may_not_make_one_too_large() {
    let window = |size: u32| {
        let payload = [&4_u16.to_be_bytes()[..], &size.to_be_bytes()].concat();
        frame(SETTINGS, 0, 0, payload)
    };
    let large = (1_u32 << 31) - 1 - 65_535;
    let mut end = End::client();
    let (over, stays) = (open(&mut end), open(&mut end));
    let given = [
        frame(WINDOW_UPDATE, 0, 0, large.to_be_bytes()),
        frame(WINDOW_UPDATE, 0, 1, large.to_be_bytes()),
    ];
    end.read(&given.concat()).expect("they are windows");
    // The one that has so much is over, and the other has not.
    end.connection.forget(over);
    end.read(&window(100_000)).expect("it is a window");
    assert_eq!(end.connection.capacity(stays), 100_000);

    end.read(&frame(WINDOW_UPDATE, 0, 3, large.to_be_bytes()))
        .map(drop)
        .expect("the stream alone is reset");
    let last = end.written().pop().expect("something was said");
    assert_eq!((last.kind, last.stream), (RST_STREAM, 3));
    let widest = (large - 100_000).to_be_bytes();
    open(&mut end);
    let both = [frame(WINDOW_UPDATE, 0, 5, widest), window(200_000)];
    let why = end.read(&both.concat()).expect_err("it is too large");
    assert_eq!(why.reason(), Some(Reason::FLOW_CONTROL_ERROR));
}

/// How long words on windows take.
fn time_of_settings(end: &mut End) -> Duration {
    let words = [
        frame(SETTINGS, 0, 0, [0, 4, 0, 0, 0, 0]),
        frame(SETTINGS, 0, 0, [0, 4, 0, 0, 0, 1]),
        frame(SETTINGS, ACK, 0, []),
    ];
    let words = words.concat().repeat(300);
    let began = Instant::now();
    end.read(&words).expect("they are settings");
    let took = began.elapsed();
    end.written();
    took
}

#[test]
fn settings_cost_no_more_where_there_were_many_streams() {
    let (mut few, mut many) = (End::client(), End::client());
    open(&mut few);
    for _ in 0..20_000 {
        open(&mut many);
        many.connection.output().take();
    }
    // The shortest of a few: others may have the processor meanwhile.
    let times = (0..5).map(|_| (time_of_settings(&mut few), time_of_settings(&mut many)));
    let times: Vec<_> = times.collect();
    let least = |of: fn(&(Duration, Duration)) -> Duration| times.iter().map(of).min();
    let (few, many) = (least(|pair| pair.0), least(|pair| pair.1));

    // Each of the 900 words would look at 20,000 streams.
    assert!(many < few.map(|few| few * 20), "{many:?} and {few:?}");
}

#[test]
fn a_small_piece_of_a_body_does_not_keep_all_that_was_read_with_it() {
    let mut end = End::server();
    let call = frame(HEADERS, END_HEADERS, 1, block(CALL));
    let bodies = [
        frame(DATA, 0, 1, [7; 4_000]),
        frame(DATA, 0, 1, [7; 16_000]),
    ];
    let rest = frame(PING, 0, 0, [0; 8]).repeat(2_000);
    let events = end.read(&[call, bodies.concat(), rest].concat());
    let alone: Vec<bool> = events
        .expect("it is as it should be")
        .into_iter()
        .filter_map(|event| match event {
            Event::Data { data, .. } => Some(data.try_into_mut().is_ok()),
            _ => None,
        })
        .collect();
    assert_eq!(alone, [true, false]);
}
