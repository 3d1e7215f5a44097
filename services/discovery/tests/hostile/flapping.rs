//! Addresses that come and go many times a second: watchers arrive at what is so in the end, and nothing grows.

use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::{Instant, sleep},
};

use crate::{
    service::{Service, write},
    told::Told,
};

/// So much more memory may be taken by what comes and goes, in KiB: allocators keep some of what they were given back.
const ROOM: u64 = 24 << 10;

fn list(network: usize, count: usize) -> String {
    (0..count).fold(String::new(), |mut list, host| {
        writeln!(list, "10.{network}.{}.{}:1", host / 250, host % 250 + 1).unwrap();
        list
    })
}

#[tokio::test]
async fn a_file_that_names_others_a_hundred_times_a_second_leaves_what_it_names_in_the_end() {
    let service = Service::start(|folder, _| {
        write(folder, "list", "10.0.0.1:1\n");
        format!(
            "[discovery.pools.flap]\nsource = \"file://{}/list\"",
            folder.display()
        )
    })
    .await;
    let mut told = service.watch("flap").await;
    told.says(&["10.0.0.1:1"]).await;
    let first = told.worker("10.0.0.1:1");

    let (begun, names) = (Instant::now(), 20);
    for round in 0..300 {
        service.write(
            "list",
            format!("{}10.0.0.1:1\n", list(round % 250 + 1, names)),
        );
        sleep(Duration::from_millis(10)).await;
    }
    service.write("list", "10.0.0.1:1\n10.0.0.2:1\n");

    // What was lost at once on the way is held, and never more of it than was named at once.
    told.until("the end is told", |told| {
        told.addresses().contains(&"10.0.0.2:1") && told.count() - told.held() == 2
    })
    .await;
    assert!(told.most <= 2 * (names + 1), "{}", told.most);
    // The file is read 50 times a second at most.
    let reads = begun.elapsed().as_millis() / 20;
    let changes = told.changes;
    assert!(
        (changes as u128) < reads + 3,
        "{changes} changes, {reads} reads"
    );
    assert_eq!(told.worker("10.0.0.1:1"), first, "who stays is who it was");
    let mut later = service.watch("flap").await;
    later.next().await;
    assert_eq!(later.addresses(), told.addresses());
}

#[tokio::test]
async fn thousands_that_come_and_go_leave_no_more_memory_than_they_take_once() {
    let service = Service::start(|folder, _| {
        write(folder, "list", list(1, 3_000));
        format!(
            "[discovery.pools.flap]\nsource = \"file://{}/list\"\nbelieved_loss = 1.0",
            folder.display()
        )
    })
    .await;
    let mut told = service.watch("flap").await;
    told.until("all are told", |told| told.count() == 3_000)
        .await;
    let flap = async |told: &mut Told, times: usize| {
        for time in 0..times {
            let network = 2 + time % 2;
            service.write("list", list(network, 3_000));
            let name = format!("10.{network}.0.1:1");
            told.until("the others are told", |told| {
                told.count() == 3_000 && told.by_address().contains_key(name.as_str())
            })
            .await;
        }
    };
    flap(&mut told, 6).await;
    let before = service.memory();

    flap(&mut told, 30).await;

    // Each change names 3,000 who come and 3,000 who go: remembered one by one they are over 40 MiB.
    let after = service.memory();
    assert!(after <= before + ROOM, "{before} KiB, and then {after} KiB");
}

#[tokio::test]
async fn a_key_that_comes_and_goes_a_thousand_times_touches_no_other_one() {
    let service = Service::start(|_, etcd| {
        format!(
            "[discovery.pools.flap]\nsource = {:?}",
            etcd.url("services/flap")
        )
    })
    .await;
    let mut client = service.etcd.client(0).await.unwrap();
    for (key, address) in [
        ("a", "10.0.0.1:1"),
        ("b", "10.0.0.2:1"),
        ("c", "10.0.0.3:1"),
    ] {
        client
            .put(format!("/services/flap/{key}"), address, None)
            .await
            .unwrap();
    }
    let mut told = service.watch("flap").await;
    told.says(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"]).await;
    let (stable, flapping) = (told.worker("10.0.0.1:1"), told.worker("10.0.0.3:1"));
    let before = told.changes;

    for _ in 0..500 {
        client.delete("/services/flap/c", None).await.unwrap();
        client
            .put("/services/flap/c", "10.0.0.3:1", None)
            .await
            .unwrap();
    }
    client
        .put("/services/flap/d", "10.0.0.4:1", None)
        .await
        .unwrap();

    told.says(&["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1", "10.0.0.4:1"])
        .await;
    assert_eq!(told.worker("10.0.0.1:1"), stable);
    let end = told.worker("10.0.0.3:1");
    assert_eq!(end.0, flapping.0, "an address has one slot for ever");
    assert_ne!(end.1, flapping.1, "and who comes back is another one");
    assert!(told.changes - before <= 1_001 && told.most == 4);
}

/// Answers GET by turns with 200 and 503, and counts.
async fn by_turns() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let status = match count.fetch_add(1, Ordering::Relaxed) % 2 {
                0 => 200,
                _ => 503,
            };
            let answer =
                format!("HTTP/1.1 {status} -\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            tokio::spawn(async move {
                let mut question = [0; 1024];
                let _ = stream.read(&mut question).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (address, asked)
}

#[tokio::test]
async fn health_that_flaps_below_its_threshold_is_told_to_nobody() {
    let (one, asked) = by_turns().await;
    let (other, _) = by_turns().await;
    let source = format!("static://{one},{other}");
    let service = Service::start(|_, _| {
        format!(
            "[discovery]\nsign_of_life = \"100ms\"\n[discovery.pools.flap]\nsource = {source:?}\n[discovery.pools.flap.health]\ncheck = \"http\"\ninterval = \"10ms\"\nfailures = 3\ntimeout = \"10s\"\n"
        )
    })
    .await;
    let mut told = service.watch("flap").await;
    told.until("both pass", |told| told.count() == 2).await;
    let before = told.changes;

    told.until("it was asked often", |_| {
        asked.load(Ordering::Relaxed) >= 60
    })
    .await;

    assert_eq!((told.changes, told.count()), (before, 2));
    assert_eq!(service.logged("does not serve"), 0);
}
