//! A name on a real DNS server.

use std::{net::SocketAddr, time::Duration};

use async_trait::async_trait;
use tokio::time::timeout;

use crate::{
    dns_server::Dns,
    ground::{Ground, PORT},
    rules::PATIENCE,
    sockets,
};

pub(crate) struct Name(Dns);

impl Name {
    fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.0.port).into()
    }

    /// Waits until it can be told of a change: before, that would end it.
    async fn starts(&self) {
        let receives = async {
            while !sockets::receives(self.address()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let received = timeout(PATIENCE, receives).await;
        assert!(received.is_ok(), "nobody answers at {}", self.address());
    }
}

#[async_trait]
impl Ground for Name {
    const SCHEME: &'static str = "dns";
    const NONSENSE: &'static [&'static str] = &[
        "host",
        "host:0",
        "host:x",
        "10.0.0.1:1",
        "unix:/a",
        "server/name:1",
    ];

    async fn start(hosts: &[&str]) -> Self {
        let ground = Self(Dns::start(hosts));
        ground.starts().await;
        ground
    }

    fn url(&self) -> String {
        format!("dns://127.0.0.1:{}/web.test:{PORT}", self.0.port)
    }

    fn name(&self) -> String {
        "web.test".to_owned()
    }

    async fn serve(&mut self, hosts: &[&str]) {
        self.0.set(hosts);
    }

    async fn away(&mut self) {
        self.0.stop();
    }

    async fn back(&mut self) {
        self.0.restart();
        self.starts().await;
    }

    async fn spoil(&mut self) -> usize {
        self.0.set(&["10.0.0.1", "0.0.0.0", "224.0.0.1"]);
        2
    }

    async fn flood(&mut self) {
        unreachable!("no answer is so large")
    }

    fn held(&self) -> usize {
        sockets::connected_to(self.address())
    }
}
