//! An address that was given to somebody else: who serves there now is another one, for everybody and at once.

use std::net::SocketAddr;

use tether_proto::common::EndpointHealth;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
};

use crate::service::{Service, write};

const SHARED: &str = "10.0.0.1:1";

#[tokio::test]
async fn another_one_at_an_address_replaces_the_first_in_one_message_and_nobody_is_told_of_the_first_again()
 {
    let service = Service::start(|folder, etcd| {
        let list = "[{\"address\": \"10.0.0.1:1\", \"identity\": \"pod-a\"}]";
        write(folder, "list.json", list);
        format!(
            "[discovery.pools.keys]\nsource = {:?}\n[discovery.pools.file]\nsource = \"file://{}/list.json\"",
            etcd.url("services/keys"),
            folder.display()
        )
    })
    .await;
    let mut client = service.etcd.client(0).await.unwrap();
    client.put("/services/keys/a", SHARED, None).await.unwrap();
    let (mut keys, mut file) = (service.watch("keys").await, service.watch("file").await);
    keys.says(&[SHARED]).await;
    file.says(&[SHARED]).await;

    let second = "[{\"address\": \"10.0.0.1:1\", \"identity\": \"pod-b\"}]";
    service.write("list.json", second);
    // The new one is there before the key of the old one is gone, and its key sorts before that.
    client.put("/services/keys/0", SHARED, None).await.unwrap();

    for (pool, told) in [("keys", &mut keys), ("file", &mut file)] {
        let first = told.worker(SHARED);
        told.until("another one serves there", |told| {
            told.worker(SHARED) != first
        })
        .await;
        let second = told.worker(SHARED);
        assert_eq!(second.0, first.0, "in the same slot");
        let gone = told.last.removals.iter().map(|gone| gone.worker.clone());
        let gone: Vec<_> = gone.map(Option::unwrap).collect();
        assert_eq!(gone.len(), 1, "{pool}: the first one is over");
        assert_eq!((gone[0].slot, gone[0].incarnation), first);
        let mut later = service.watch(pool).await;
        later.says(&[SHARED]).await;
        assert_eq!(later.worker(SHARED), second);
    }

    let second = keys.worker(SHARED);
    client.delete("/services/keys/a", None).await.unwrap();
    client
        .put("/services/keys/b", "10.0.0.2:1", None)
        .await
        .unwrap();
    keys.says(&[SHARED, "10.0.0.2:1"]).await;
    assert_eq!(
        keys.worker(SHARED),
        second,
        "whose key it was is over, and nothing else"
    );
}

/// Answers each GET, once the gate is open, that it is well and of one version, as all pods of a deployment do.
async fn same_version(gate: watch::Receiver<bool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut gate = gate.clone();
            tokio::spawn(async move {
                let mut asked = [0; 1024];
                let _ = stream.read(&mut asked).await;
                let _ = gate.wait_for(|open| *open).await;
                let answer = "HTTP/1.1 200 -\r\nx-version: v1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn another_pod_at_an_address_is_another_one_whatever_its_header_says_and_passes_once_it_was_asked()
 {
    let (gate, open) = watch::channel(true);
    let address = same_version(open).await;
    let pod = |name| format!("[{{\"address\": \"{address}\", \"identity\": \"{name}\"}}]");
    let service = Service::start(|folder, _| {
        write(folder, "list.json", pod("pod-1"));
        format!(
            "[discovery.pools.web]\nsource = \"file://{}/list.json\"\n\
             [discovery.pools.web.health]\ncheck = \"http\"\ninterval = \"30ms\"\ntimeout = \"60s\"\nidentity_header = \"x-version\"",
            folder.display()
        )
    })
    .await;
    let address = address.to_string();
    let mut told = service.watch("web").await;
    let health = |told: &crate::told::Told| told.by_address()[address.as_str()].health();
    told.says(&[&address]).await;
    assert_eq!(health(&told), EndpointHealth::Passing);
    let first = told.worker(&address);

    gate.send_replace(false);
    service.write("list.json", pod("pod-2"));
    told.until("another one is there", |told| {
        told.worker(&address) != first
    })
    .await;
    assert_eq!(health(&told), EndpointHealth::Unchecked);
    gate.send_replace(true);
    told.until("it has answered", |told| {
        health(told) == EndpointHealth::Passing
    })
    .await;
}
