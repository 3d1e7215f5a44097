//! The list of cases that grpcio and tonic play, in groups.

use super::case::{Case, Kind};

/// Lengths around what buffers, frames and windows hold. HAProxy 2.6 loses the trailers after 16,389 bytes.
pub(super) fn lengths() -> Vec<usize> {
    const FRAME: usize = 16_384;
    const WINDOW: usize = 65_535;
    const LARGE: usize = 1 << 20;

    let around = |middle: usize, by: usize| middle - by..=middle + by;
    around(FRAME - 5, 8)
        .chain([FRAME + 5])
        .chain(around(WINDOW, 8))
        .chain(around(LARGE, 3))
        .collect()
}

/// Every case, in the order the documentation lists the groups.
pub(super) fn all() -> Vec<Case> {
    let groups = [
        ("kinds", kinds()),
        ("metadata", metadata()),
        ("statuses", statuses()),
        ("deadlines", deadlines()),
        ("cancellation", cancellation()),
        ("compression", compression()),
        ("health and reflection", services()),
        ("bodies", bodies()),
    ];
    groups
        .into_iter()
        .flat_map(|(group, cases)| cases.into_iter().map(move |case| Case { group, ..case }))
        .collect()
}

fn kinds() -> Vec<Case> {
    vec![
        Case::unary("Echo", "a unary call"),
        Case::unary("Echo", "an empty message").sends(&[0]),
        Case::unary("Size", "an empty answer to a message").answered(&[0]),
        Case::unary("Echo", "headers sent before the answer").say("do-flush", "1"),
        Case::sizes(&[], "a server stream without messages"),
        Case::sizes(&[], "a server stream of headers and trailers").say("do-flush", "1"),
        Case::sizes(&[7], "a server stream of one message"),
        Case::sizes(&[0, 0, 0], "a server stream of empty messages"),
        Case::sizes(
            &[5, 0, 70_000, 1, 16_384, 0],
            "a server stream of mixed sizes",
        ),
        Case::sizes(&[13; 500], "a server stream of many small messages"),
        Case::digest(&[], "a client stream without messages"),
        Case::digest(&[0], "a client stream of one empty message"),
        Case::digest(&[3, 0, 70_000, 16_384, 1], "a client stream of mixed sizes"),
        Case::digest(&[13; 500], "a client stream of many small messages"),
        Case::bidi("PingPong", &[], "a bidirectional stream without messages"),
        Case::bidi(
            "PingPong",
            &[1, 0, 70_000, 16_384],
            "a bidirectional stream",
        ),
        Case::bidi("PingPong", &[10; 100], "ping and pong").in_lockstep(),
        Case::bidi(
            "Reverse",
            &[1, 2, 3, 40_000],
            "all sent before any is answered",
        ),
        Case::bidi("Early", &[10], "all answered and none read").answered(&[3, 4]),
        Case::bidi("Early", &[10], "answered before the client has sent all")
            .left_open()
            .answered(&[3, 4]),
        Case::bidi("Early", &[], "answered before the client has sent anything")
            .left_open()
            .answered(&[3]),
        Case::new(
            Kind::ClientStream,
            "Deaf",
            "a client stream that is not read",
        )
        .sends(&[100, 100]),
        Case::new(
            Kind::ClientStream,
            "Deaf",
            "a client stream answered while it is open",
        )
        .left_open(),
    ]
}

fn metadata() -> Vec<Case> {
    let long = "v".repeat(4_000);
    let key = format!("h-{}", "k".repeat(200));
    let every_byte: String = (0..=255).map(|byte| format!("{byte:02x}")).collect();
    let visible: String = (' '..='~').collect();
    let mirrored = |name: &str, items: &[(&str, &str)]| -> [Case; 3] {
        let all = |case: Case| {
            items.iter().fold(case, |case, (key, value)| {
                case.say(&format!("h-{key}"), value)
                    .say(&format!("t-{key}"), value)
            })
        };
        [
            all(Case::unary("Inspect", format!("{name}, to the worker"))),
            all(Case::unary("Echo", format!("{name}, and back"))),
            all(Case::bidi(
                "PingPong",
                &[5],
                format!("{name}, and back on a stream"),
            )),
        ]
    };
    let mut cases: Vec<Case> = [
        mirrored("a word", &[("word", "w")]),
        mirrored("an empty value", &[("empty", "")]),
        mirrored("every visible character", &[("all", visible.trim())]),
        mirrored(
            "spaces and commas",
            &[("list", "a, b ,c,, d"), ("list", "e  f")],
        ),
        mirrored(
            "keys there more than once",
            &[("a", "1"), ("b", "2"), ("a", "3"), ("a", "1")],
        ),
        mirrored("percent signs", &[("percent", "100%25 %zz %")]),
        mirrored("binary values of every byte", &[("every-bin", &every_byte)]),
        mirrored("an empty binary value", &[("none-bin", "")]),
        mirrored(
            "binary values of one to three bytes",
            &[("a-bin", "00"), ("b-bin", "00ff"), ("c-bin", "2c2c2c")],
        ),
        mirrored(
            "binary keys there more than once",
            &[("two-bin", "0001"), ("two-bin", "02")],
        ),
        mirrored("a long value", &[("long", &long)]),
        mirrored("punctuation in keys", &[("k_e.y-1", "w")]),
    ]
    .into_iter()
    .flatten()
    .collect();
    cases.extend([
        Case::unary("Inspect", "a long key").say(&key, "w"),
        Case::unary("Inspect", "keys of the gateway's own").say("tether-affinity", "session-42"),
        Case::unary("Inspect", "keys that only look like the gateway's").say("tether-unknown", "w"),
        Case::unary("Inspect", "a trace").say(
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        Case::unary("Inspect", "an authorization").say("authorization", "Bearer a.b.c"),
        Case::unary("Echo", "trailers of 40,000 bytes").say("do-big", "40000"),
        Case::unary("Echo", "300 trailers").say("do-many", "300"),
        Case::sizes(&[5, 5], "trailers of 40,000 bytes after messages").say("do-big", "40000"),
    ]);
    cases
}

fn statuses() -> Vec<Case> {
    let mut cases: Vec<Case> = (1..=16)
        .map(|code| Case::unary("Echo", format!("code {code}, nothing else")).fails(code, "asked"))
        .collect();
    cases.extend((1..=16).map(|code| {
        Case::sizes(&[3, 4], format!("code {code} after two messages")).fails(code, "asked to")
    }));
    let worded = |name: &str, hex: &str| {
        Case::unary("Echo", name)
            .fails(9, "")
            .say("do-message-bin", hex)
    };
    // A google.rpc.Status of code 9 with a message, as grpc-status-details-bin carries it.
    let details = "0809120461736b65";
    cases.extend([
        Case::unary("Echo", "a status without words").fails(9, ""),
        worded("words in German and Japanese", "c3a4c3b620e697a5e69cac"),
        worded("words on two lines", "6f6e650d0a74776f"),
        worded("words with percent signs", "31303025203025323025"),
        worded("words with a control character", "61015f7f62"),
        Case::unary("Echo", "2,000 letters of words").fails(9, &"w".repeat(2_000)),
        Case::unary("Echo", "details of an error")
            .fails(9, "d")
            .say("do-details-bin", details),
        Case::unary("Echo", "trailers beside a status")
            .fails(9, "d")
            .say("t-word", "w"),
        Case::unary("Echo", "headers before a status")
            .fails(9, "d")
            .say("h-word", "w"),
        Case::sizes(&[5, 5, 5], "a failure before the first message")
            .fails(8, "none")
            .after(0),
        Case::sizes(&[5, 5, 5], "a failure after the second message")
            .fails(8, "two")
            .after(2),
        Case::sizes(&[70_000, 5], "a failure after a large message")
            .fails(8, "one")
            .after(1),
        Case::sizes(&[5], "details after a message")
            .fails(9, "d")
            .say("do-details-bin", details),
        Case::bidi("PingPong", &[1, 2, 3], "a failure between pings")
            .in_lockstep()
            .fails(10, "between")
            .after(2),
        Case::digest(&[5, 5], "a failure after an upload").fails(11, "too much"),
        Case::new(Kind::ClientStream, "Deaf", "a failure during an upload")
            .left_open()
            .fails(7, "not you"),
        Case::unary("Nothing", "a method that is not there").ends(12, 0),
        Case::unary("/no.such.Service/Do", "a service that is not there").ends(12, 0),
        Case::new(Kind::Bidi, "Nothing", "a stream that is not there")
            .sends(&[5])
            .ends(12, 0),
    ]);
    cases
}

fn deadlines() -> Vec<Case> {
    vec![
        Case::unary("Inspect", "a deadline that is not reached").within(60_000),
        Case::unary("Inspect", "a deadline of days").within(400_000_000),
        Case::unary("Echo", "an answer within the deadline")
            .within(5_000)
            .say("do-wait", "20"),
        Case::sizes(&[5; 20], "a stream within the deadline").within(5_000),
        Case::unary("Hang", "a deadline missed by a unary call").misses_deadline(0),
        Case::digest(&[5], "a deadline missed by an upload")
            .left_open()
            .misses_deadline(0),
        Case::new(
            Kind::ServerStream,
            "OneThenHang",
            "a deadline missed after a message",
        )
        .misses_deadline(1),
        Case::bidi("PingPong", &[5, 5], "a deadline missed between pings")
            .left_open()
            .misses_deadline(2),
    ]
}

fn cancellation() -> Vec<Case> {
    vec![
        Case::unary("Hang", "a unary call cancelled").cancelled_after(0),
        Case::digest(&[5, 70_000], "an upload cancelled")
            .left_open()
            .cancelled_after(0),
        Case::new(
            Kind::ServerStream,
            "OneThenHang",
            "a stream cancelled after a message",
        )
        .cancelled_after(1),
        Case::bidi("PingPong", &[5; 10], "a stream cancelled between pings")
            .in_lockstep()
            .left_open()
            .cancelled_after(10),
    ]
}

fn compression() -> Vec<Case> {
    vec![
        Case::unary("Echo", "a compressed request")
            .compressed()
            .sends(&[5_000]),
        Case::unary("Echo", "a compressed answer")
            .say("do-gzip", "1")
            .sends(&[5_000]),
        Case::unary("Echo", "both compressed")
            .compressed()
            .say("do-gzip", "1")
            .sends(&[70_000]),
        Case::unary("Inspect", "compression as the worker sees it").compressed(),
        Case::digest(&[3, 5_000, 0], "a compressed upload").compressed(),
        Case::sizes(&[3, 5_000, 0], "a compressed stream").say("do-gzip", "1"),
        Case::bidi("PingPong", &[5_000; 5], "compressed pings and pongs")
            .compressed()
            .say("do-gzip", "1")
            .in_lockstep(),
        Case::unary("Echo", "a failure instead of a compressed answer")
            .say("do-gzip", "1")
            .fails(9, "asked"),
    ]
}

/// The gateway has services of these names itself; with the pool named, the worker's are asked.
fn services() -> Vec<Case> {
    // Lists services; asks for the file that has the symbol `grpc.health.v1.Health`.
    let (list, file) = ("3a00", "2215677270632e6865616c74682e76312e4865616c7468");
    let reflection = |name: &str, hex| {
        Case::bidi(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            &[],
            name,
        )
        .sends_bytes(hex)
        .ends(0, 1)
    };
    vec![
        Case::unary("/grpc.health.v1.Health/Check", "health of a worker").sends(&[0]),
        Case::unary(
            "/grpc.health.v1.Health/Check",
            "health of a service that is not there",
        )
        .sends_bytes("0a046e6f6e65")
        .ends(5, 0),
        Case::new(
            Kind::ServerStream,
            "/grpc.health.v1.Health/Watch",
            "health watched",
        )
        .sends(&[0])
        .cancelled_after(1)
        .without_fate(),
        reflection("services that a worker has", list),
        reflection("a schema that a worker has", file),
    ]
}

fn bodies() -> Vec<Case> {
    lengths()
        .into_iter()
        .flat_map(|length| {
            [
                Case::unary("Echo", format!("{length} bytes both ways")).sends(&[length]),
                Case::digest(&[length, 1, length], format!("{length} bytes streamed up")),
                Case::sizes(
                    &[length, 1, length],
                    format!("{length} bytes streamed down"),
                ),
            ]
        })
        .collect()
}

/// As much as a message may have, each way.
pub(super) fn large() -> Vec<Case> {
    const LARGEST: usize = 100 << 20;
    vec![
        Case::digest(&[LARGEST], "100 MiB up"),
        Case::unary("Size", "100 MiB down").answered(&[LARGEST]),
    ]
}
