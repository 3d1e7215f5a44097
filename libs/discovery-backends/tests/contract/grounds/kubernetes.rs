//! EndpointSlices in a stand-in for the API server.

use std::fs;

use async_trait::async_trait;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    ground::{Ground, PORT},
    kubernetes_server::ApiServer,
    sockets,
};

pub(crate) struct Service {
    pub(crate) server: ApiServer,
    folder: TempDir,
}

/// A slice with these in it, all of them ready.
pub(crate) fn slice(hosts: &[&str]) -> Value {
    let endpoints: Vec<_> = hosts
        .iter()
        .map(|host| json!({"addresses": [host], "conditions": {"ready": true}}))
        .collect();
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1", "addressType": "IPv4",
        "ports": [{"name": "grpc", "port": PORT, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

#[async_trait]
impl Ground for Service {
    const SCHEME: &'static str = "kubernetes";
    const NONSENSE: &'static [&'static str] = &[
        "Shop/web",
        "shop/",
        "/web",
        "shop/web/x",
        "shop/web:",
        "shop/web:0",
        "shop/web:70000",
        "shop/web:a b",
        "-web",
        "web.shop.svc",
        "web?family=ipv5",
        "web?kubeconfig=relative",
    ];

    async fn start(hosts: &[&str]) -> Self {
        let mut ground = Self {
            server: ApiServer::start().await,
            folder: tempfile::tempdir().unwrap(),
        };
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{}", ground.server.0.address())}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "shop"}}],
        });
        fs::write(ground.folder.path().join("config"), config.to_string()).unwrap();
        ground.serve(hosts).await;
        ground
    }

    fn url(&self) -> String {
        format!(
            "kubernetes://shop/web:grpc?kubeconfig={}/config",
            self.folder.path().display()
        )
    }

    fn name(&self) -> String {
        "kubernetes://shop/web:grpc".to_owned()
    }

    async fn serve(&mut self, hosts: &[&str]) {
        self.server.apply("web-1", "web", slice(hosts));
        tokio::task::yield_now().await;
    }

    async fn away(&mut self) {
        self.server.0.away().await;
    }

    async fn back(&mut self) {
        self.server.0.back().await;
    }

    async fn spoil(&mut self) -> usize {
        let bad = ["0.0.0.0", "224.0.0.1", "a b", ""];
        let mut all = slice(&[&bad[..], &["10.0.0.1"]].concat());
        all["endpoints"]
            .as_array_mut()
            .unwrap()
            .push(json!({"addresses": ["10.0.0.2"], "zone": "a\nb"}));
        self.server.apply("web-1", "web", all);
        bad.len() + 1
    }

    async fn flood(&mut self) {
        let hosts: Vec<_> = (0..10_500)
            .map(|number| format!("10.1.{}.{}", number / 250, number % 250 + 1))
            .collect();
        let hosts: Vec<_> = hosts.iter().map(String::as_str).collect();
        self.server.apply("web-1", "web", slice(&hosts));
    }

    fn held(&self) -> usize {
        sockets::connected_to(self.server.0.address())
    }
}
