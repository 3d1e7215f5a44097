//! Nodes: one heartbeat stream each.

use std::{future::ready, sync::Arc};

use futures::stream;
use tether_proto::{
    Failure, admit_shard,
    node::{HeartbeatRequest, HeartbeatResponse, node_service_server::NodeService},
};
use tether_types::{NodeName, Reason};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::Answers;
use crate::seat::Seat;

/// Messages on their way to a node. One that is this far behind has to begin anew.
const OUTBOX: usize = 256;

/// Serves [`NodeService`].
#[derive(Debug)]
pub(crate) struct Nodes(pub(crate) Arc<Seat>);

#[tonic::async_trait]
impl NodeService for Nodes {
    type HeartbeatStream = Answers<HeartbeatResponse>;

    async fn heartbeat(
        &self,
        request: Request<Streaming<HeartbeatRequest>>,
    ) -> Result<Response<Self::HeartbeatStream>, Status> {
        // Looked at first: who does not lead has no use for a thousand workers' reports.
        let shared = self.0.shared()?;
        let mut beats = request.into_inner();
        let first = beats.next().await.transpose()?.and_then(|beat| beat.hello);
        let Some(hello) = first else {
            return Err(Failure::new(
                Reason::ConfigInvalid,
                "the first message of a node's stream has no `hello`",
            )
            .into());
        };
        admit_shard(hello.shard)?;
        let node = NodeName::new(&hello.node)
            .map_err(|error| Failure::new(Reason::ConfigInvalid, error.to_string()))?;

        let (outbox, receive) = mpsc::channel(OUTBOX);
        let stream = shared.join(&node, &hello, outbox.clone()).await?;
        let reigning = Arc::clone(&shared);
        tokio::spawn(async move {
            loop {
                let beat = tokio::select! {
                    beat = beats.next() => beat,
                    // Both halves end together: beats of a node that does not listen renew nothing.
                    () = outbox.closed() => None,
                    () = shared.over() => None,
                };
                let Some(Ok(beat)) = beat else { break };
                if !shared.beat(&node, stream, &beat).await {
                    break;
                }
            }
            shared.unlink(&node, stream).await;
        });
        // Whoever is sent away because another arbiter leads is told so.
        let last_word = stream::once(async move { reigning.deposed() });
        let last_word = futures::StreamExt::filter_map(last_word, |why| ready(why.map(Err)));
        let messages = ReceiverStream::new(receive).map(|message| Ok(*message));
        let messages = messages.chain(last_word);
        Ok(Response::new(Box::pin(messages)))
    }
}
