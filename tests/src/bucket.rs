//! A bucket in which the nodes of a cluster keep checkpoints.

use tether_s3_server::{BUCKET, REGION, Server};
use tokio::process::Command;

/// Where it is, and the keys of agents.
#[derive(Debug)]
pub struct Bucket {
    endpoint: String,
    key: String,
    secret: String,
}

impl Bucket {
    /// That of a server.
    pub fn of(server: &Server) -> Self {
        Self {
            endpoint: server.endpoint(),
            key: server.key.clone(),
            secret: server.secret.clone(),
        }
    }

    /// The same, with keys that are not valid there.
    #[must_use]
    pub fn with_wrong_keys(self) -> Self {
        Self {
            secret: "another".to_owned(),
            ..self
        }
    }

    pub(crate) fn give(&self, agent: &mut Command) {
        let settings = [
            ("store", format!("s3://{BUCKET}/tether")),
            ("s3_endpoint", self.endpoint.clone()),
            ("s3_region", REGION.to_owned()),
        ];
        for (key, value) in settings {
            agent.args(["--set", &format!("agent.checkpoints.{key}={value}")]);
        }
        agent
            .env("AWS_ACCESS_KEY_ID", &self.key)
            .env("AWS_SECRET_ACCESS_KEY", &self.secret);
    }
}
