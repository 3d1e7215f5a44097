//! An address that was given to somebody else: who serves there now is another one, for everybody and at once.

use crate::service::Service;

const SHARED: &str = "10.0.0.1:1";

#[tokio::test]
async fn another_one_at_an_address_replaces_the_first_in_one_message_and_nobody_is_told_of_the_first_again()
 {
    let service = Service::start(|folder, etcd| {
        let list = "[{\"address\": \"10.0.0.1:1\", \"identity\": \"pod-a\"}]";
        crate::service::write(folder, "list.json", list);
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
