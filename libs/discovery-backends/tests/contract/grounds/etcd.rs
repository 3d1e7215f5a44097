//! Keys in a real etcd of one member.

use std::{collections::BTreeSet, net::SocketAddr};

use async_trait::async_trait;
use etcd_client::{Client, DeleteOptions, Txn, TxnOp};
use tether_etcd_cluster::{Cluster, Setup};

use crate::{
    ground::{Ground, PORT},
    sockets,
};

/// Where the keys are.
pub(crate) const PREFIX: &str = "/services/web/";

pub(crate) struct Prefix {
    cluster: Cluster,
    client: Option<Client>,
    serving: BTreeSet<String>,
}

impl Prefix {
    async fn client(&mut self) -> &mut Client {
        if self.client.is_none() {
            self.client = Some(self.cluster.client(0).await.unwrap());
        }
        self.client.as_mut().unwrap()
    }

    async fn clear(&mut self) {
        let all = DeleteOptions::new().with_prefix();
        self.client().await.delete(PREFIX, Some(all)).await.unwrap();
        self.serving.clear();
    }

    async fn put_all(&mut self, pairs: Vec<(String, String)>) {
        for some in pairs.chunks(100) {
            let puts = some
                .iter()
                .map(|(key, value)| TxnOp::put(format!("{PREFIX}{key}"), value.as_str(), None));
            let txn = Txn::new().and_then(puts.collect::<Vec<_>>());
            self.client().await.txn(txn).await.unwrap();
        }
    }
}

#[async_trait]
impl Ground for Prefix {
    const SCHEME: &'static str = "etcd";
    const NONSENSE: &'static [&'static str] = &[
        "host/a/",
        "host:0/a/",
        "host:x/a/",
        "host:2379",
        "host:2379/",
        "host:2379,/a/",
        "unix:/a/b",
        "u:p@host:2379/a/",
        "host:2379/a/?user=u",
        "host:2379/a/?password=geheim",
        "host:2379/a/?cert=/c&key=/k",
        "host:2379/a/?ca=relative",
        "host:2379/a/?pool=no/name",
    ];

    async fn start(hosts: &[&str]) -> Self {
        let mut ground = Self {
            cluster: Setup::members(1).start().await,
            client: None,
            serving: BTreeSet::new(),
        };
        ground.serve(hosts).await;
        ground.client = None;
        ground
    }

    fn url(&self) -> String {
        self.cluster.url("services/web")
    }

    fn name(&self) -> String {
        self.cluster.addresses()[0].clone()
    }

    async fn serve(&mut self, hosts: &[&str]) {
        let next: BTreeSet<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        if self.serving.contains("many") {
            self.clear().await;
        }
        let key = |host: &String| format!("{PREFIX}{host}");
        let gone = self
            .serving
            .difference(&next)
            .map(|host| TxnOp::delete(key(host), None));
        let new = next
            .difference(&self.serving)
            .map(|host| TxnOp::put(key(host), format!("{host}:{PORT}"), None));
        let writes: Vec<_> = gone.chain(new).collect();
        self.client()
            .await
            .txn(Txn::new().and_then(writes))
            .await
            .unwrap();
        self.serving = next;
    }

    async fn away(&mut self) {
        self.client = None;
        self.cluster.member(0).kill();
    }

    async fn back(&mut self) {
        self.cluster.restart(0).await;
    }

    async fn spoil(&mut self) -> usize {
        self.clear().await;
        let long = "x".repeat(5_000);
        let bad = [
            "",
            "nonsense",
            "10.0.0.2:0",
            "{\"zone\":\"a\"}",
            "{\"address\":\"10.0.0.3:1\",\"weight\":70000}",
            &long,
        ];
        let bad = bad
            .iter()
            .enumerate()
            .map(|(key, value)| (key.to_string(), (*value).to_owned()));
        let mut pairs: Vec<_> = bad.collect();
        let count = pairs.len();
        pairs.push(("good".to_owned(), format!("10.0.0.1:{PORT}")));
        self.put_all(pairs).await;
        count
    }

    async fn flood(&mut self) {
        let pairs = (1..=10_500).map(|port| (format!("many/{port}"), format!("10.0.0.9:{port}")));
        self.put_all(pairs.collect()).await;
        self.serving.insert("many".to_owned());
    }

    fn held(&self) -> usize {
        let address: SocketAddr = self.cluster.addresses()[0].parse().unwrap();
        sockets::connected_to(address)
    }
}
