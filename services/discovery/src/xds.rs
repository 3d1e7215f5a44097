//! The xDS face of discovery: a watcher of the table like any other, and streams that read what it made of that.

mod feed;
mod service;

use tether_kit::serve::Server;
use tether_xds::wire::envoy::service::{
    cluster::v3::cluster_discovery_service_server::ClusterDiscoveryServiceServer,
    discovery::v3::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    endpoint::v3::endpoint_discovery_service_server::EndpointDiscoveryServiceServer,
};

pub(crate) use feed::Feed;

/// A server with the services of xDS, which read `feed`.
pub(crate) fn server(feed: &Feed) -> Server {
    let service = service::Xds::new(feed.clone());
    let limit = tether_kit::serve::MESSAGE_LIMIT;
    Server::new(tether_xds::DESCRIPTORS)
        .service(
            AggregatedDiscoveryServiceServer::new(service.clone()).max_decoding_message_size(limit),
        )
        .service(
            ClusterDiscoveryServiceServer::new(service.clone()).max_decoding_message_size(limit),
        )
        .service(EndpointDiscoveryServiceServer::new(service).max_decoding_message_size(limit))
}
