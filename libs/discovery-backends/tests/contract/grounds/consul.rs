//! A service in a stand-in for Consul.

use async_trait::async_trait;
use serde_json::json;

use crate::{
    consul_server::{Consul, Instance},
    ground::{Ground, PORT},
    sockets,
};

pub(crate) struct Service(pub(crate) Consul);

/// An instance on a node of its own.
pub(crate) fn instance(host: &str) -> (String, Instance) {
    let entry = json!({
        "Node": {"Node": host, "Address": host, "Meta": {"zone": "z"}},
        "Service": {"ID": host, "Service": "web", "Address": "", "Port": PORT, "Weights": {"Passing": 3, "Warning": 1}},
        "Checks": [{"Status": "passing"}],
    });
    (
        host.to_owned(),
        Instance {
            entry,
            passing: true,
        },
    )
}

#[async_trait]
impl Ground for Service {
    const SCHEME: &'static str = "consul";
    const NONSENSE: &'static [&'static str] = &[
        "web",
        "host/web",
        "host:0/web",
        "host:x/web",
        "host:8500",
        "host:8500/",
        "host:8500/a/b",
        "host:8500/a b",
        "unix:/a/web",
        "host:8500/web?wait=0s",
        "host:8500/web?wait=1h",
        "host:8500/web?wait=10ms",
        "host:8500/web?token_file=relative",
        "host:8500/web?token=geheim",
    ];

    async fn start(hosts: &[&str]) -> Self {
        let mut ground = Self(Consul::start().await);
        ground.serve(hosts).await;
        ground
    }

    fn url(&self) -> String {
        format!("consul://{}/web", self.0.0.address())
    }

    fn name(&self) -> String {
        self.url()
    }

    async fn serve(&mut self, hosts: &[&str]) {
        self.0
            .register("web", hosts.iter().map(|host| instance(host)).collect());
        tokio::task::yield_now().await;
    }

    async fn away(&mut self) {
        self.0.0.away().await;
    }

    async fn back(&mut self) {
        self.0.0.back().await;
    }

    async fn spoil(&mut self) -> usize {
        let mut instances = vec![instance("10.0.0.1")];
        let long = "x".repeat(300);
        for (key, value) in [
            ("Port", json!(0)),
            ("Port", json!(70_000)),
            ("Port", json!(null)),
            ("Address", json!("0.0.0.0")),
            ("Address", json!("a b")),
            ("Address", json!(7)),
            ("ID", json!(long)),
            ("Weights", json!({"Passing": 70_000, "Warning": 1})),
            ("Meta", json!({"zone": "a\nb"})),
        ] {
            let (id, mut bad) = instance("10.0.0.2");
            bad.entry["Service"][key] = value;
            instances.push((format!("{id}-{}", instances.len()), bad));
        }
        let count = instances.len() - 1;
        self.0.register("web", instances);
        count
    }

    async fn flood(&mut self) {
        let many = (0..10_500)
            .map(|number| instance(&format!("10.1.{}.{}", number / 250, number % 250 + 1)));
        self.0.register("web", many.collect());
    }

    fn held(&self) -> usize {
        sockets::connected_to(self.0.0.address())
    }
}
