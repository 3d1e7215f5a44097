//! The gRPC face of discovery.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use tether_proto::{
    Malformed,
    discovery::{
        WatchEndpointsRequest, WatchEndpointsResponse, discovery_service_server::DiscoveryService,
    },
};
use tether_types::PoolName;
use tonic::{Request, Response, Status};

use crate::board::{Board, Watcher};

/// Implements `DiscoveryService`.
#[derive(Debug, Clone)]
pub struct Rpc(Arc<Board>);

impl Rpc {
    pub(crate) fn new(board: Arc<Board>) -> Self {
        Self(board)
    }
}

#[tonic::async_trait]
impl DiscoveryService for Rpc {
    type WatchEndpointsStream =
        Pin<Box<dyn Stream<Item = Result<WatchEndpointsResponse, Status>> + Send>>;

    async fn watch_endpoints(
        &self,
        request: Request<WatchEndpointsRequest>,
    ) -> Result<Response<Self::WatchEndpointsStream>, Status> {
        let request = request.into_inner();
        let pool = match request.pool.as_str() {
            "" => None,
            name => Some(PoolName::new(name).map_err(Malformed::from)?),
        };
        let resume = (request.resume_instance.as_str(), request.resume_revision);
        let watcher = Watcher::new(Arc::clone(&self.0), pool, resume);
        // Pulled by the transport as the client takes messages, so a slow client holds nothing back.
        let messages = stream::unfold(Some(watcher), |watcher| async {
            let mut watcher = watcher?;
            let message = watcher.next().await?;
            let more = message.is_ok().then_some(watcher);
            Some((message, more))
        });
        Ok(Response::new(messages.boxed()))
    }
}
