//! Sources that lose most of what they named: it is held for a while, told as held, and let go in a known way.

use std::{fmt::Write as _, fs};

use crate::{
    named::Named,
    service::{Service, write},
};

/// Addresses with these last numbers, one a line.
fn hosts(numbers: std::ops::RangeInclusive<u8>) -> Vec<String> {
    numbers.map(|number| format!("10.0.0.{number}")).collect()
}

fn list(numbers: std::ops::RangeInclusive<u8>) -> String {
    hosts(numbers).iter().fold(String::new(), |mut list, host| {
        writeln!(list, "{host}:1").unwrap();
        list
    })
}

#[tokio::test]
async fn of_a_loss_of_most_all_are_held_with_a_word_until_they_are_named_again_or_it_has_lasted() {
    let service = Service::start(|folder, _| {
        write(folder, "list", list(11..=20));
        format!(
            "[discovery.pools.rank]\nsource = \"file://{}/list\"\nhold = \"8s\"",
            folder.display()
        )
    })
    .await;
    let mut told = service.watch("rank").await;
    told.until("all are told", |told| told.count() == 10).await;
    let before = told.worker("10.0.0.13:1");

    service.write("list", list(11..=12));

    told.until("eight are held", |told| told.held() == 8).await;
    assert_eq!(told.count(), 10, "and told");
    let line = service.logs(&["WARN", "they are held"]).await;
    for part in ["pool=rank", "count=8", "hold=8s", "`believed_loss`"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    // One that is named again is held no more, and who it was; the others go in their time.
    service.write("list", list(11..=13));
    told.until("one is back", |told| told.held() == 7).await;
    assert_eq!(told.worker("10.0.0.13:1"), before);
    told.says(&["10.0.0.11:1", "10.0.0.12:1", "10.0.0.13:1"])
        .await;
    assert_eq!(told.held(), 0);
}

#[tokio::test]
async fn a_name_that_has_lost_most_of_its_addresses_is_held_and_one_that_is_not_there_keeps_all() {
    let records = |numbers| {
        let hosts = hosts(numbers);
        hosts.iter().fold(String::new(), |mut records, host| {
            writeln!(records, "web A {host}").unwrap();
            records
        })
    };
    let mut named = Named::start(&records(11..=20));
    let at = named.at;
    let service = Service::start(|_, _| {
        format!("[discovery.pools.rank]\nsource = \"dns://{at}/web.test:1\"\nhold = \"3s\"")
    })
    .await;
    let mut told = service.watch("rank").await;
    told.until("all are told", |told| told.count() == 10).await;

    named.set("other A 10.0.0.1");
    told.fails(&["`web.test.`", "NXDOMAIN"]).await;
    assert_eq!((told.count(), told.held()), (10, 0));

    named.set(&records(11..=12));
    told.until("eight are held", |told| told.held() == 8).await;
    assert_eq!(told.count(), 10);
    told.says(&["10.0.0.11:1", "10.0.0.12:1"]).await;
}

/// As leases end when a rack is cut off: each key by itself, and all within seconds.
#[tokio::test]
async fn a_prefix_that_loses_its_keys_one_by_one_keeps_as_many_as_it_would_of_a_loss_at_once() {
    let service = Service::start(|_, etcd| {
        format!(
            "[discovery.pools.rank]\nsource = {:?}\nhold = \"10s\"",
            etcd.url("services/rank")
        )
    })
    .await;
    let mut client = service.etcd.client(0).await.unwrap();
    let key = |host: &str| format!("/services/rank/{host}");
    for host in hosts(11..=20) {
        let address = format!("{host}:1");
        client.put(key(&host), address, None).await.unwrap();
    }
    let mut told = service.watch("rank").await;
    told.until("all are told", |told| told.count() == 10).await;

    for (gone, host) in (1..).zip(hosts(11..=18)) {
        client.delete(key(&host), None).await.unwrap();
        told.until("it is told", |told| told.count() - told.held() == 10 - gone)
            .await;
        assert!(
            told.count() >= 5,
            "{gone} of 10 are gone, {} are told",
            told.count()
        );
    }
    assert_eq!((told.count(), told.held()), (5, 3));
    told.says(&["10.0.0.19:1", "10.0.0.20:1"]).await;
}

#[tokio::test]
async fn nobody_is_believed_or_held_and_any_loss_is_believed_where_that_is_asked_for() {
    let service = Service::start(|folder, _| {
        write(folder, "list", list(11..=14));
        let source = format!("source = \"file://{}/list\"", folder.display());
        format!(
            "[discovery.pools.usual]\n{source}\n[discovery.pools.careful]\n{source}\nempty = \"hold\"\n[discovery.pools.trusting]\n{source}\nbelieved_loss = 1.0\nempty = \"hold\""
        )
    })
    .await;
    let (mut usual, mut careful, mut trusting) = (
        service.watch("usual").await,
        service.watch("careful").await,
        service.watch("trusting").await,
    );
    for told in [&mut usual, &mut careful, &mut trusting] {
        told.until("all are told", |told| told.count() == 4).await;
    }

    service.write("list", "# nobody\n");

    usual.says(&[]).await;
    trusting.says(&[]).await;
    careful.until("all are held", |told| told.held() == 4).await;
    // That it was believed is no error: the answer is as old as any other.
    assert!(usual.last.pool_ages.is_empty());
}

#[tokio::test]
async fn going_over_to_another_source_and_back_is_no_loss_and_nothing_of_either_is_held() {
    let service = Service::start(|folder, _| {
        write(folder, "list", list(11..=14));
        format!(
            "[discovery.pools.rank]\nsources = [\"file://{}/list\", \"static://10.0.0.90:1,10.0.0.91:1\"]",
            folder.display()
        )
    })
    .await;
    let own = ["10.0.0.11:1", "10.0.0.12:1", "10.0.0.13:1", "10.0.0.14:1"];
    let mut told = service.watch("rank").await;
    told.says(&own).await;

    fs::remove_file(service.folder.path().join("list")).unwrap();
    told.says(&["10.0.0.90:1", "10.0.0.91:1"]).await;
    service.write("list", list(11..=14));
    told.says(&own).await;

    assert_eq!(told.most, 4, "never those of both");
}
