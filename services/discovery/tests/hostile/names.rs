//! Names with odd characters, in the configuration, in what sources say and in what DNS is asked for.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{net::UdpSocket, time::timeout};

use crate::{
    PATIENCE,
    named::Named,
    service::{Service, refused, write},
};

#[test]
fn a_configuration_with_an_odd_name_is_refused_with_the_key_and_the_character() {
    let (label, name) = ("a".repeat(64), "a.".repeat(127));
    let pool = |name: &str| {
        (
            format!("[discovery.pools.{name}]"),
            "static://10.0.0.1:1".to_owned(),
        )
    };
    let source = |source: String| ("[discovery.pools.odd]".to_owned(), source);
    for ((table, source), key, why) in [
        (
            pool("\"a b\""),
            "discovery.pools.\"a b\"",
            "the character ' '",
        ),
        (pool("\"bücher\""), "bücher", "the character 'ü'"),
        (pool("\"a/b\""), "a/b", "the character '/'"),
        (pool("\"-a\""), "-a", "the character '-'"),
        (pool("\"\""), "discovery.pools.", "cannot be empty"),
        (
            pool("\"a\\u001b[2J\""),
            "discovery.pools",
            "the character '\\u{1b}'",
        ),
        (pool(&label), "discovery.pools", "64 bytes, at most 63"),
        (
            source("dns://bücher.test:1".into()),
            "discovery.pools.odd.source",
            "the character 'ü'",
        ),
        (source("dns://a b.test:1".into()), "odd.source", "is not"),
        (
            source("dns://a..test:1".into()),
            "odd.source",
            "`a..test` is no name",
        ),
        (
            source("dns://.test:1".into()),
            "odd.source",
            "`.test` is no name",
        ),
        (
            source("dns://a\\032b.test:1".into()),
            "odd.source",
            "the character '\\\\'",
        ),
        (
            source("dns://*.test:1".into()),
            "odd.source",
            "the character '*'",
        ),
        (
            source(format!("dns://{label}.test:1")),
            "odd.source",
            "is no name",
        ),
        (
            source(format!("dns://{name}test:1")),
            "odd.source",
            "is no name",
        ),
        (source("dns://.:1".into()), "odd.source", "it is empty"),
        (
            source("dns://web.test:1?search=a,ü".into()),
            "odd.source",
            "the character 'ü'",
        ),
        (
            source("static://bücher.test:1".into()),
            "odd.source",
            "the character 'ü'",
        ),
        (
            source("static://a..b:1".into()),
            "odd.source",
            "a part of it is empty",
        ),
        (
            source("static://224.0.0.1:1".into()),
            "odd.source",
            "for many",
        ),
        (
            source("file://relative".into()),
            "odd.source",
            "start with `/`",
        ),
    ] {
        let output = refused(&format!(
            "store = \"etcd://127.0.0.1:1\"\n{table}\nsource = {source:?}\n"
        ));
        // It is laid out in lines for people.
        let said = String::from_utf8(output.stderr).unwrap();
        let said = said.replace('│', "");
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(output.status.code(), Some(78), "{source}: {said}");
        assert!(
            said.contains(key) && said.contains(why),
            "{table} {source}: {said}"
        );
        assert!(!said.contains('\u{1b}'), "{said:?}");
    }
}

#[tokio::test]
async fn names_that_dns_allows_are_asked_for_whatever_they_look_like() {
    let label = "a".repeat(63);
    let long = [label.as_str(); 3].join(".");
    let named = Named::start(&format!(
        "_web_ A 10.0.0.1\nxn--bcher-kva A 10.0.0.2\n{long} A 10.0.0.3\n7 A 10.0.0.4\nUPPER A 10.0.0.5\n_s._tcp SRV 0 1 1 _odd_\\.name\n_s._tcp SRV 0 1 2 caf\\233\n_odd_\\.name A 10.0.0.6\ncaf\\233 A 10.0.0.7"
    ));
    let at = named.at;
    let names = ["_web_", "xn--bcher-kva", &long, "7", "upper"];
    let service = Service::start(|_, _| {
        let pools = (1..).zip(names).map(|(number, name)| {
            format!("[discovery.pools.p{number}]\nsource = \"dns://{at}/{name}.test.:1\"\n")
        });
        let services =
            format!("[discovery.pools.s]\nsource = \"dns://_s._tcp.test.?srv=1&servers={at}\"\n");
        pools.collect::<String>() + &services
    })
    .await;
    for number in 1..=names.len() {
        let address = format!("10.0.0.{number}:1");
        let mut told = service.watch(&format!("p{number}")).await;
        told.says(&[&address]).await;
    }
    // Targets are names for DNS alone: what counts is where they lead.
    let mut told = service.watch("s").await;
    told.says(&["10.0.0.6:1", "10.0.0.7:2"]).await;
}

#[tokio::test]
async fn odd_entries_of_a_file_are_left_out_with_the_character_and_odd_bytes_hide_no_other_line() {
    let service = Service::start(|folder, _| {
        let text = b"10.0.0.1:1 # caf\xe9\nb\xfccher.test:1\nb\xc3\xbccher.test:1\n\xef\xbb\xbf10.0.0.2:1\na..b:1\nworker_1.test.:1\na\tb:1\n";
        write(folder, "list", text);
        format!("[discovery.pools.file]\nsource = \"file://{}/list\"\nbelieved_loss = 1.0", folder.display())
    })
    .await;

    let mut told = service.watch("file").await;
    told.says(&["10.0.0.1:1", "worker_1.test.:1"]).await;
    let line = service.logs(&["left out", "pool=file", "count=5 "]).await;
    for part in [
        "character '\u{fffd}'",
        "character 'ü'",
        "xn--",
        "`a..b`",
        "a part of it is empty",
        "feff",
        "\\t",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }

    let mut bytes = b"[\"10.0.0.3:1\", \"".to_vec();
    bytes.extend([0xff, b'"', b']']);
    service.write("list", "10.0.0.3:1\n");
    told.says(&["10.0.0.3:1"]).await;
    service.write("list", bytes);
    told.fails(&["/list`", "line feed"]).await;
}

/// A question for the A records of a name of these labels.
fn question(labels: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0".to_vec();
    for label in labels {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend_from_slice(label);
    }
    bytes.extend(b"\0\0\x01\0\x01");
    bytes
}

#[tokio::test]
async fn dns_is_asked_for_odd_names_and_answers_each_of_them() {
    let service = Service::start(|folder, _| {
        write(folder, "list", "10.0.0.1:1\n");
        format!(
            "[discovery.dns]\nlisten = \"127.0.0.1:0\"\n[discovery.pools.train]\nsource = \"file://{}/list\"",
            folder.display()
        )
    })
    .await;
    service.watch("train").await.says(&["10.0.0.1:1"]).await;
    let line = service.logs(&["DNS is answered"]).await;
    let at = line.split("at=").nth(1).unwrap().trim();
    let at: SocketAddr = at.parse().unwrap();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let long = [b'a'; 63];
    let zone: [&[u8]; 2] = [b"default", b"tether"];
    let below = |labels: &[&'static [u8]]| [labels, &zone].concat();
    let (ok, no_name, refused) = (0, 3, 5);
    let deepest: Vec<&[u8]> = std::iter::repeat_n(&b"a"[..], 119).chain(zone).collect();
    for (labels, code, answers) in [
        (below(&[b"train"]), ok, 1),
        (below(&[b"TRAIN"]), ok, 1),
        (below(&["bücher".as_bytes()]), no_name, 0),
        (below(&[b"\xff\xfe"]), no_name, 0),
        (below(&[b"a\0b"]), no_name, 0),
        (below(&[b"*"]), no_name, 0),
        (below(&[b"*", b"train"]), no_name, 0),
        (below(&[b"train."]), no_name, 0),
        (below(&[b"tr\\097in"]), no_name, 0),
        (below(&[b"_", b"train"]), no_name, 0),
        (below(&[b"_999-0-0-1", b"train"]), no_name, 0),
        (below(&[b"_10-0-0-1", b"train"]), ok, 1),
        (below(&[b"_tcp"]), no_name, 0),
        (
            [&[&long[..]; 3][..], &[&b"default"[..], b"tether"]].concat(),
            no_name,
            0,
        ),
        (deepest, no_name, 0),
        (Vec::new(), refused, 0),
        (vec![b"example", b"com"], refused, 0),
        (below(&[b"train"]), ok, 1),
    ] {
        let asked = question(&labels);
        socket.send_to(&asked, at).await.unwrap();
        let mut answer = [0; 1500];
        let received = timeout(PATIENCE, socket.recv(&mut answer)).await;
        let received = received
            .unwrap_or_else(|_| panic!("no answer to {labels:?}"))
            .unwrap();
        assert!(received > 12 && answer[..2] == asked[..2], "{labels:?}");
        assert_eq!((answer[3] & 15, answer[7]), (code, answers), "{labels:?}");
    }
}
