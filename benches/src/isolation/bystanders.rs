//! Clients that hold streams open and want to keep them.

use futures::FutureExt as _;

use crate::calls::client::{Answer, Ask, Client};

const CONNECTIONS: usize = 4;
const EACH: usize = 16;

/// Streams on which nothing happens, and the connections they are on.
pub(super) struct Bystanders {
    streams: Vec<Answer>,
    clients: Vec<Client>,
}

impl Bystanders {
    pub(super) async fn new(port: u16) -> anyhow::Result<Self> {
        let (mut streams, mut clients) = (Vec::new(), Vec::new());
        let ask = Ask::silence();
        for _ in 0..CONNECTIONS {
            let client = Client::connect(port).await?;
            for _ in 0..EACH {
                streams.push(client.clone().open(&ask).await?);
            }
            clients.push(client);
        }
        Ok(Self { streams, clients })
    }

    /// How many streams have ended, and connections.
    pub(super) async fn lost(mut self) -> usize {
        let ended = |stream: &mut Answer| stream.more().now_or_never().is_some();
        let streams = self.streams.iter_mut().map(ended);
        let mut lost = streams.filter(|ended| *ended).count();
        for client in &self.clients {
            lost += usize::from(client.is_over().await);
        }
        lost
    }
}
