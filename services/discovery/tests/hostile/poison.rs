//! Answers that nobody should believe: what can be used of them is, the rest has a word, and nothing grows without end.

use std::fmt::Write as _;

use tether_store::{Txn, open};

use crate::{
    named::Named,
    service::{Service, write},
};

/// So much more memory may be taken, in KiB, by what is ten thousand addresses at most.
const ROOM: u64 = 96 << 10;

#[tokio::test]
async fn of_a_list_with_bad_entries_each_has_a_word_and_the_good_ones_serve() {
    let (label, long) = ("a".repeat(64), "z".repeat(300));
    let path = format!("unix:/{}", "p".repeat(200));
    let entries = [
        ("\"10.0.0.1:1\"", ""),
        ("\"10.0.0.2:0\"", "port 0 of `10.0.0.2:0`"),
        ("\"10.0.0.3:99999\"", "`10.0.0.3:99999` is not an address"),
        ("\"0.0.0.0:1\"", "nobody can be reached at `0.0.0.0:1`"),
        ("\"[::ffff:0.0.0.0]:1\"", "nobody can be reached at"),
        ("\"239.1.2.3:1\"", "nobody can be reached at `239.1.2.3:1`"),
        ("\"0:1\"", "made of numbers alone"),
        (&format!("\"{label}.test:1\""), "64 bytes"),
        (&format!("\"{path}\""), "201 bytes"),
    ];
    let more = [
        ("7", "`7` is neither an address nor an object"),
        (
            "{\"address\": \"10.0.0.4:1\", \"weight\": -1}",
            "invalid value",
        ),
        (
            "{\"address\": \"10.0.0.4:1\", \"weight\": 70000}",
            "the weight of `10.0.0.4:1`",
        ),
        (
            &format!("{{\"address\": \"10.0.0.4:1\", \"zone\": \"{long}\"}}"),
            "at most 256 bytes",
        ),
        (
            "{\"address\": \"10.0.0.4:1\", \"zone\": \"a\\u001bb\"}",
            "control characters",
        ),
        ("\"10.0.0.5:1\"", ""),
    ];
    let service = Service::start(|folder, _| {
        let source = |name: &str| {
            format!(
                "[discovery.pools.{name}]\nsource = \"file://{}/{name}.json\"",
                folder.display()
            )
        };
        for (name, entries) in [("one", &entries[..]), ("two", &more[..])] {
            let entries: Vec<_> = entries.iter().map(|(entry, _)| *entry).collect();
            write(
                folder,
                &format!("{name}.json"),
                format!("[{}]", entries.join(", ")),
            );
        }
        format!("{}\n{}", source("one"), source("two"))
    })
    .await;

    service.watch("one").await.says(&["10.0.0.1:1"]).await;
    service.watch("two").await.says(&["10.0.0.5:1"]).await;
    for (pool, entries) in [("one", &entries[..]), ("two", &more[..])] {
        let count = entries.iter().filter(|(_, why)| !why.is_empty()).count();
        let line = service
            .logs(&[
                "WARN",
                "left out",
                &format!("pool={pool} "),
                &format!("count={count} "),
            ])
            .await;
        assert!(
            line.contains(&format!("{pool}.json")) && line.contains("mend"),
            "{line}"
        );
        for (_, why) in entries {
            assert!(line.contains(why), "{why}: {line}");
        }
    }
}

#[tokio::test]
async fn a_key_that_says_nonsense_is_named_and_hides_no_other_one() {
    let service = Service::start(|_, etcd| {
        format!(
            "[discovery.pools.keys]\nsource = {:?}",
            etcd.url("services/keys")
        )
    })
    .await;
    let mut client = service.etcd.client(0).await.unwrap();
    let huge = "9".repeat(5_000);
    let bad: [(&str, &[u8], &str); 5] = [
        ("bytes", b"10.0.0.9:1\xff", "its value is no text"),
        ("huge", huge.as_bytes(), "more than 4096 bytes"),
        (
            "port",
            b"{\"address\": \"10.0.0.9:70000\"}",
            "`10.0.0.9:70000` is not an address",
        ),
        ("json", b"{\"address\": ", "cannot be read"),
        (
            "zero",
            b"0.0.0.0:50051",
            "nobody can be reached at `0.0.0.0:50051`",
        ),
    ];
    for (key, value, _) in bad {
        let key = format!("/services/keys/{key}");
        client.put(key, value, None).await.unwrap();
    }
    client
        .put("/services/keys/good", "10.0.0.1:1", None)
        .await
        .unwrap();

    service.watch("keys").await.says(&["10.0.0.1:1"]).await;
    let line = service.logs(&["left out", "pool=keys", "count=5 "]).await;
    for (key, _, why) in bad {
        assert!(line.contains(&format!("the key `{key}`")), "{key}: {line}");
        assert!(line.contains(why), "{why}: {line}");
    }
}

#[tokio::test]
async fn of_records_nobody_could_call_the_others_serve_and_of_nothing_else_no_word_is_believed() {
    let mut named = Named::start(
        "_p._tcp SRV 0 1 1 a
         _p._tcp SRV 0 1 0 a
         _p._tcp SRV 0 1 2 sink
         _p._tcp SRV 0 1 3 gone
         web A 10.0.0.2
         a A 10.0.0.1
         sink A 0.0.0.0
         sink A 224.0.0.1",
    );
    let at = named.at;
    let service = Service::start(|_, _| {
        format!(
            "[discovery.pools.srv]\nsource = \"dns://_p._tcp.test?srv=1&servers={at}\"\n[discovery.pools.web]\nsource = \"dns://{at}/web.test:1\"\nbelieved_loss = 1.0"
        )
    })
    .await;
    let (mut srv, mut web) = (service.watch("srv").await, service.watch("web").await);
    srv.says(&["10.0.0.1:1"]).await;
    web.says(&["10.0.0.2:1"]).await;
    let line = service.logs(&["left out", "pool=srv", "count=4 "]).await;
    for part in [
        "_p._tcp.test",
        "port 0 of `10.0.0.1:0`",
        "`0.0.0.0:2`",
        "`224.0.0.1:2`",
        "`gone.test.`: it has no address",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }

    // A server that blocks names answers so, and the target of a service leads in a circle.
    named.set(
        "_p._tcp SRV 0 1 1 a
         _p._tcp SRV 0 1 1 circle
         web A 0.0.0.0
         a A 10.0.0.1
         circle CNAME circus
         circus CNAME circle",
    );
    web.fails(&["`web.test.`", "none of its 1 entries", "`0.0.0.0:1`"])
        .await;
    assert_eq!(
        web.addresses(),
        ["10.0.0.2:1"],
        "what was said before stands"
    );
    srv.fails(&["`circle.test.`"]).await;
    assert_eq!(srv.addresses(), ["10.0.0.1:1"]);

    named.set("web A 10.0.0.3\na A 10.0.0.1\n_p._tcp SRV 0 1 1 a");
    web.says(&["10.0.0.3:1"]).await;
    srv.until("it answers again", |told| told.last.pool_ages.is_empty())
        .await;
}

#[tokio::test]
async fn thousands_of_records_are_taken_up_to_what_an_answer_can_carry_and_what_is_beyond_is_an_error()
 {
    let many = |count: usize| {
        (0..count).fold(String::new(), |mut records, number| {
            writeln!(records, "many A 10.1.{}.{}", number / 250, number % 250 + 1).unwrap();
            records
        })
    };
    let mut named = Named::with(&many(3_000), 1, "max-records-per-type 0;");
    let at = named.at;
    let service = Service::start(|_, _| {
        format!("[discovery.pools.many]\nsource = \"dns://{at}/many.test:1\"\nbelieved_loss = 1.0")
    })
    .await;
    let mut told = service.watch("many").await;
    told.until("all are told", |told| told.count() == 3_000)
        .await;
    let before = service.memory();

    // Of 5,000 records no message can tell, not over TCP either.
    named.set(&many(5_000));

    told.fails(&["`many.test.`", &at.to_string(), "65,535 bytes"])
        .await;
    assert_eq!(told.count(), 3_000, "what was said before stands");
    named.set(&many(2_000));
    told.until("fewer are told", |told| told.count() == 2_000)
        .await;
    let after = service.memory();
    assert!(after <= before + ROOM, "{before} KiB, and then {after} KiB");
}

#[tokio::test]
async fn more_than_ten_thousand_of_one_source_are_an_error_and_those_of_before_stay() {
    let service = Service::start(|folder, etcd| {
        write(folder, "list", "10.0.0.1:1\n");
        format!(
            "[discovery.pools.keys]\nsource = {:?}\n[discovery.pools.file]\nsource = \"file://{}/list\"",
            etcd.url("services/keys"),
            folder.display()
        )
    })
    .await;
    let store = open(&service.etcd.url("services/keys")).await.unwrap();
    store
        .commit(Txn::new().put("first", "10.0.0.1:1"))
        .await
        .unwrap();
    let (mut keys, mut file) = (service.watch("keys").await, service.watch("file").await);
    keys.says(&["10.0.0.1:1"]).await;
    file.says(&["10.0.0.1:1"]).await;
    let before = service.memory();

    let address = |number: u32| format!("10.{}.{}.1:1", number / 250, number % 250);
    let list = (0..20_000).fold(String::new(), |list, number| list + &address(number) + "\n");
    service.write("list", list);
    file.fails(&["/list`", "more than 10000 addresses"]).await;
    assert_eq!(file.addresses(), ["10.0.0.1:1"]);

    for first in (0..20_000).step_by(100) {
        let puts = (first..first + 100).fold(Txn::new(), |txn, number| {
            txn.put(format!("many/{number}"), address(number))
        });
        store.commit(puts).await.unwrap();
    }
    keys.fails(&["/services/keys/`", "more than 10000 addresses"])
        .await;
    assert!(keys.most <= 10_000);
    let after = service.memory();
    assert!(after <= before + ROOM, "{before} KiB, and then {after} KiB");
}

#[tokio::test]
async fn a_file_of_a_million_entries_that_are_none_takes_little_memory() {
    let service = Service::start(|folder, _| {
        write(folder, "list.json", "[\"10.0.0.1:1\"]");
        format!(
            "[discovery.pools.file]\nsource = \"file://{}/list.json\"",
            folder.display()
        )
    })
    .await;
    let mut told = service.watch("file").await;
    told.says(&["10.0.0.1:1"]).await;
    let before = service.peak();

    service.write("list.json", format!("[1{}]", ",1".repeat(1_000_000)));

    told.fails(&[
        "/list.json`",
        "none of its 1000001 entries",
        "`1` is neither",
    ])
    .await;
    assert_eq!(told.addresses(), ["10.0.0.1:1"]);
    let after = service.peak();
    assert!(
        after <= before + (16 << 10),
        "{before} KiB, and then {after} KiB"
    );
}
