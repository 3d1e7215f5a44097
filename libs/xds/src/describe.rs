//! What a pool's name stands for: its listener, its route and its cluster. None of them changes while the pool is there.

use crate::{
    Balance, Kind,
    resource::{Resource, any},
    wire::{
        envoy::{
            config::{
                cluster::v3::{Cluster, cluster},
                core::v3::{
                    AggregatedConfigSource, ApiVersion, ConfigSource, Http2ProtocolOptions,
                },
                listener::v3::{ApiListener, Listener},
                route::v3::{
                    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route_action,
                },
            },
            extensions::{
                filters::{
                    http::router::v3::Router,
                    network::http_connection_manager::v3::{HttpConnectionManager, HttpFilter},
                },
                upstreams::http::v3::{HttpProtocolOptions, http_protocol_options},
            },
            r#type::v3::Percent,
        },
        google::protobuf::Duration,
    },
};

const MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const UPSTREAM: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const CONNECT_TIMEOUT: Duration = Duration {
    seconds: 5,
    nanos: 0,
};
/// No limit of our own: how long a call may take is for who makes it to say, and a training takes hours.
const NONE: Duration = Duration {
    seconds: 0,
    nanos: 0,
};

/// What `xds:///POOL` stands for. Its route is in it, which saves a client a question.
pub(crate) fn listener(pool: &str) -> Resource {
    let manager = HttpConnectionManager {
        stat_prefix: pool.to_owned(),
        route_config: Some(routes(pool)),
        http_filters: vec![HttpFilter {
            name: "envoy.filters.http.router".to_owned(),
            typed_config: Some(any(ROUTER, &Router {})),
        }],
    };
    let listener = Listener {
        name: pool.to_owned(),
        api_listener: Some(ApiListener {
            api_listener: Some(any(MANAGER, &manager)),
        }),
    };
    Resource::new(Kind::Listener, &listener)
}

/// Where calls go, for a proxy whose own listener asks.
pub(crate) fn route(pool: &str) -> Resource {
    Resource::new(Kind::Route, &routes(pool))
}

fn routes(pool: &str) -> RouteConfiguration {
    let action = RouteAction {
        cluster: pool.to_owned(),
        timeout: Some(NONE),
        max_stream_duration: Some(route_action::MaxStreamDuration {
            grpc_timeout_header_max: Some(NONE),
        }),
    };
    let all = Route {
        r#match: Some(RouteMatch {
            prefix: Some(String::new()),
        }),
        route: Some(action),
    };
    RouteConfiguration {
        name: pool.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: pool.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![all],
        }],
    }
}

/// How a pool is spoken to.
pub(crate) fn cluster(pool: &str, balance: Balance) -> Resource {
    let upstream = HttpProtocolOptions {
        explicit_http_config: Some(http_protocol_options::ExplicitHttpConfig {
            http2_protocol_options: Some(Http2ProtocolOptions {}),
        }),
    };
    let policy = match balance {
        Balance::RoundRobin => cluster::LbPolicy::RoundRobin,
        Balance::LeastRequest => cluster::LbPolicy::LeastRequest,
    };
    let cluster = Cluster {
        name: pool.to_owned(),
        r#type: cluster::DiscoveryType::Eds.into(),
        eds_cluster_config: Some(cluster::EdsClusterConfig {
            eds_config: Some(ConfigSource {
                ads: Some(AggregatedConfigSource {}),
                resource_api_version: ApiVersion::V3.into(),
            }),
        }),
        connect_timeout: Some(CONNECT_TIMEOUT),
        lb_policy: policy.into(),
        // Discovery itself holds endpoints that go too many at once. A proxy that does it again would send calls to
        // those that drain as soon as most of them do.
        common_lb_config: Some(cluster::CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
        }),
        typed_extension_protocol_options: [(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            any(UPSTREAM, &upstream),
        )]
        .into(),
    };
    Resource::new(Kind::Cluster, &cluster)
}
