//! Streams as the transport pulls them: requests in, and what there is to be told out.

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use tether_kit::listen::Peer;
use tether_xds::{
    Delta, Heard, Kind, Part, Sotw,
    wire::envoy::{
        config::core::v3::Node,
        service::{
            cluster::v3::cluster_discovery_service_server::ClusterDiscoveryService,
            discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
                aggregated_discovery_service_server::AggregatedDiscoveryService,
            },
            endpoint::v3::endpoint_discovery_service_server::EndpointDiscoveryService,
        },
    },
};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status, Streaming};

use super::Feed;

/// Implements the services of xDS.
#[derive(Debug, Clone)]
pub(crate) struct Xds(Feed);

type Told<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One client's stream.
struct Conversation<P: Part> {
    feed: Feed,
    news: watch::Receiver<u64>,
    requests: Streaming<P::Request>,
    stream: tether_xds::Stream<P>,
    client: Client,
}

/// Who it is, for the log.
#[derive(Debug, Default)]
struct Client {
    peer: Option<Peer>,
    node: String,
    /// What it last said that it does not take, which is not logged again.
    refused: Option<Heard>,
}

/// A request, which may say who asks.
trait FromNode {
    fn node(&self) -> Option<&Node>;
}

impl FromNode for DiscoveryRequest {
    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }
}

impl FromNode for DeltaDiscoveryRequest {
    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }
}

impl Xds {
    pub(crate) fn new(feed: Feed) -> Self {
        Self(feed)
    }

    fn tell<P>(
        &self,
        stream: tether_xds::Stream<P>,
        requests: Request<Streaming<P::Request>>,
    ) -> Response<Told<P::Response>>
    where
        P: Part + Send + 'static,
        P::Request: FromNode + Send + 'static,
        P::Response: Send + 'static,
    {
        let peer = requests.extensions().get().cloned();
        let conversation = Conversation {
            feed: self.0.clone(),
            news: self.0.news(),
            requests: requests.into_inner(),
            stream,
            client: Client {
                peer,
                ..Client::default()
            },
        };
        // Pulled by the transport as the client takes responses, so a slow client holds nothing back.
        let told = stream::unfold(Some(conversation), |conversation| async {
            let mut conversation = conversation?;
            let response = conversation.next().await?;
            let more = response.is_ok().then_some(conversation);
            Some((response, more))
        });
        Response::new(told.boxed())
    }
}

impl<P: Part> Conversation<P>
where
    P::Request: FromNode,
{
    /// The next response; `None` when either side ends.
    async fn next(&mut self) -> Option<Result<P::Response, Status>> {
        loop {
            // Before the table was read, silence has clients go on with what they had.
            if *self.news.borrow_and_update() > 0 {
                let told = self.stream.next(&self.feed.catalog());
                if let Some(told) = told {
                    return Some(Ok(told));
                }
            }
            tokio::select! {
                request = self.requests.message() => match request {
                    Ok(request) => {
                        let request = request?;
                        self.client.note(request.node());
                        match self.stream.on_request(&request) {
                            Ok(heard) => self.client.log(heard),
                            Err(error) => {
                                let status = Status::new(Code::ResourceExhausted, error.to_string());
                                return Some(Err(status));
                            }
                        }
                    }
                    Err(status) => return Some(Err(status)),
                },
                changed = self.news.changed() => changed.ok()?,
                () = self.feed.ended().cancelled() => return None,
            }
        }
    }
}

impl Client {
    fn note(&mut self, node: Option<&Node>) {
        if let Some(node) = node {
            // The only thing of it that is kept, and nothing makes it short.
            self.node = node.id.chars().take(128).collect();
        }
    }

    fn log(&mut self, heard: Heard) {
        if heard == Heard::Fine || self.refused.as_ref() == Some(&heard) {
            return;
        }
        let Self { peer, node, .. } = self;
        match &heard {
            Heard::Fine => {}
            Heard::Refused { kind, why } => {
                tracing::warn!(
                    ?peer,
                    node,
                    ?kind,
                    why,
                    "A client of xDS refuses what it was told, and goes on with what it had"
                );
            }
            Heard::Unknown { type_url } => {
                tracing::info!(
                    ?peer,
                    node,
                    type_url,
                    "A client of xDS asks for what discovery does not have"
                );
            }
        }
        self.refused = Some(heard);
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Xds {
    type StreamAggregatedResourcesStream = Told<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Told<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Told<DiscoveryResponse>>, Status> {
        Ok(self.tell(Sotw::new(None), requests))
    }

    async fn delta_aggregated_resources(
        &self,
        requests: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Told<DeltaDiscoveryResponse>>, Status> {
        Ok(self.tell(Delta::new(None), requests))
    }
}

#[tonic::async_trait]
impl ClusterDiscoveryService for Xds {
    type StreamClustersStream = Told<DiscoveryResponse>;
    type DeltaClustersStream = Told<DeltaDiscoveryResponse>;

    async fn stream_clusters(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Told<DiscoveryResponse>>, Status> {
        Ok(self.tell(Sotw::new(Some(Kind::Cluster)), requests))
    }

    async fn delta_clusters(
        &self,
        requests: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Told<DeltaDiscoveryResponse>>, Status> {
        Ok(self.tell(Delta::new(Some(Kind::Cluster)), requests))
    }
}

#[tonic::async_trait]
impl EndpointDiscoveryService for Xds {
    type StreamEndpointsStream = Told<DiscoveryResponse>;
    type DeltaEndpointsStream = Told<DeltaDiscoveryResponse>;

    async fn stream_endpoints(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Told<DiscoveryResponse>>, Status> {
        Ok(self.tell(Sotw::new(Some(Kind::Endpoints)), requests))
    }

    async fn delta_endpoints(
        &self,
        requests: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Told<DeltaDiscoveryResponse>>, Status> {
        Ok(self.tell(Delta::new(Some(Kind::Endpoints)), requests))
    }
}
