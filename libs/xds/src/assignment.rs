//! The endpoints of a pool, as far as Envoy and gRPC can be told of them.

use std::{collections::BTreeMap, net::IpAddr};

use tether_proto::common::{Endpoint, EndpointHealth};
use tether_types::Address;

use crate::{
    Kind,
    resource::Resource,
    wire::{
        envoy::config::{
            core::v3::{Address as WireAddress, HealthStatus, Locality, SocketAddress},
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint as WireEndpoint, LbEndpoint, LocalityLbEndpoints,
            },
        },
        google::protobuf::UInt32Value,
    },
};

/// The endpoints of `pool`, each address once: a client refuses the whole of an assignment for one that is there twice,
/// or is none.
pub(crate) fn assignment<'a>(
    pool: &str,
    endpoints: impl Iterator<Item = &'a Endpoint>,
) -> Resource {
    let mut by_address: BTreeMap<(IpAddr, u16), &Endpoint> = BTreeMap::new();
    for endpoint in endpoints {
        let Some(at) = reachable(endpoint) else {
            continue;
        };
        let known = by_address.entry(at).or_insert(endpoint);
        // A port that was given to another worker before the last one's end was told.
        if incarnation(known) < incarnation(endpoint) {
            *known = endpoint;
        }
    }
    // All weights together have to fit into 32 bits.
    let most = u32::try_from(by_address.len()).map_or(1, |count| u32::MAX / count.max(1));
    let mut by_zone: BTreeMap<&str, Vec<LbEndpoint>> = BTreeMap::new();
    for (at, endpoint) in by_address {
        let told = LbEndpoint {
            endpoint: Some(WireEndpoint {
                address: Some(WireAddress {
                    socket_address: Some(SocketAddress {
                        address: at.0.to_string(),
                        port_value: at.1.into(),
                    }),
                }),
            }),
            health_status: health(endpoint).into(),
            load_balancing_weight: Some(UInt32Value {
                value: endpoint.weight.clamp(1, most),
            }),
        };
        by_zone.entry(&endpoint.zone).or_default().push(told);
    }
    let zones = by_zone.into_iter().map(|(zone, endpoints)| {
        // Of those that drain nobody takes a share of the calls to their zone.
        let drains = HealthStatus::Draining as i32;
        let taking = endpoints.iter().filter(|told| told.health_status != drains);
        let weights = taking.filter_map(|told| told.load_balancing_weight);
        let weight: u32 = weights.map(|weight| weight.value).sum();
        LocalityLbEndpoints {
            locality: Some(Locality {
                zone: zone.to_owned(),
            }),
            lb_endpoints: endpoints,
            // Without one, gRPC takes nobody in the zone.
            load_balancing_weight: Some(UInt32Value {
                value: weight.max(1),
            }),
        }
    });
    let assignment = ClusterLoadAssignment {
        cluster_name: pool.to_owned(),
        endpoints: zones.collect(),
    };
    Resource::new(Kind::Endpoints, &assignment)
}

/// Where a client of xDS can reach it: at a port of an IP address, without TLS. No client resolves a name there.
fn reachable(endpoint: &Endpoint) -> Option<(IpAddr, u16)> {
    if !matches!(endpoint.protocol.as_str(), "" | "grpc") {
        return None;
    }
    match endpoint.address.parse().ok()? {
        Address::Tcp { host, port } if port != 0 => Some((host.parse().ok()?, port)),
        Address::Tcp { .. } | Address::Unix(_) => None,
    }
}

fn incarnation(endpoint: &Endpoint) -> u64 {
    let worker = endpoint.worker.as_ref();
    worker.map_or(0, |worker| worker.incarnation)
}

/// One that is held or failing together with most others is told like any that was not asked: gRPC would take nobody
/// where all are told as anything less.
fn health(endpoint: &Endpoint) -> HealthStatus {
    match endpoint.health() {
        _ if endpoint.draining => HealthStatus::Draining,
        EndpointHealth::Passing => HealthStatus::Healthy,
        EndpointHealth::Unspecified
        | EndpointHealth::Unchecked
        | EndpointHealth::Held
        | EndpointHealth::Failing => HealthStatus::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use tether_proto::common::WorkerRef;

    use super::*;

    fn at(slot: u32, address: &str) -> Endpoint {
        Endpoint {
            worker: Some(WorkerRef {
                pool: "train".to_owned(),
                slot,
                incarnation: u64::from(slot) + 1,
            }),
            address: address.to_owned(),
            ..Endpoint::default()
        }
    }

    fn told(endpoints: &[Endpoint]) -> ClusterLoadAssignment {
        let resource = assignment("train", endpoints.iter());
        ClusterLoadAssignment::decode(resource.any.value).unwrap()
    }

    /// Port, health and weight.
    type One = (u32, i32, u32);

    /// The zones, each with its weight and who is there.
    fn picture(endpoints: &[Endpoint]) -> Vec<(String, u32, Vec<One>)> {
        let zones = told(endpoints).endpoints.into_iter();
        let zones = zones.map(|zone| {
            let endpoints = zone.lb_endpoints.into_iter().map(|told| {
                let address = told.endpoint.unwrap().address.unwrap();
                let port = address.socket_address.unwrap().port_value;
                let weight = told.load_balancing_weight.unwrap().value;
                (port, told.health_status, weight)
            });
            let weight = zone.load_balancing_weight.unwrap().value;
            (zone.locality.unwrap().zone, weight, endpoints.collect())
        });
        zones.collect()
    }

    #[test]
    fn endpoints_are_told_by_zone_with_weight_and_health() {
        let zoned = |slot, zone: &str, weight| Endpoint {
            zone: zone.to_owned(),
            weight,
            ..at(slot, &format!("10.0.0.1:{}", 7000 + slot))
        };
        let draining = Endpoint {
            draining: true,
            ..zoned(2, "b", 3)
        };
        let passing = Endpoint {
            health: EndpointHealth::Passing.into(),
            ..zoned(1, "a", 0)
        };
        let held = Endpoint {
            health: EndpointHealth::Held.into(),
            ..zoned(4, "b", 2)
        };

        let seen = picture(&[draining, passing, held, at(3, "[::1]:7003")]);

        let (unknown, healthy, drains) = (
            HealthStatus::Unknown as i32,
            HealthStatus::Healthy as i32,
            HealthStatus::Draining as i32,
        );
        assert_eq!(
            seen,
            [
                (String::new(), 1, vec![(7003, unknown, 1)]),
                ("a".to_owned(), 1, vec![(7001, healthy, 1)]),
                (
                    "b".to_owned(),
                    2,
                    vec![(7002, drains, 3), (7004, unknown, 2)]
                ),
            ]
        );
    }

    #[test]
    fn a_zone_whose_workers_all_drain_has_the_least_weight_there_is() {
        let draining = Endpoint {
            draining: true,
            weight: 7,
            ..at(1, "10.0.0.1:1")
        };

        let (_, weight, _) = picture(&[draining]).remove(0);

        assert_eq!(weight, 1);
    }

    #[test]
    fn what_a_client_would_refuse_is_left_out() {
        let tls = Endpoint {
            protocol: "grpcs".to_owned(),
            ..at(4, "10.0.0.1:4")
        };
        let unusable = [
            at(0, "unix:/run/w.sock"),
            at(1, "worker.example:1"),
            at(2, "10.0.0.1:0"),
            at(3, "none"),
            tls,
        ];

        assert_eq!(told(&unusable).endpoints, []);
        assert_eq!(told(&unusable).cluster_name, "train");
    }

    #[test]
    fn an_address_is_told_once_and_as_its_youngest_worker_is() {
        let old = Endpoint {
            draining: true,
            ..at(0, "10.0.0.1:1")
        };
        let young = at(1, "10.0.0.1:1");

        for order in [[old.clone(), young.clone()], [young, old]] {
            let unknown = HealthStatus::Unknown as i32;
            assert_eq!(picture(&order), [(String::new(), 1, vec![(1, unknown, 1)])]);
        }
    }

    #[test]
    fn weights_add_up_within_what_a_client_takes() {
        let heavy: Vec<_> = (1..=3)
            .map(|slot| Endpoint {
                weight: u32::MAX,
                ..at(slot, &format!("10.0.0.{slot}:1"))
            })
            .collect();

        let (_, weight, _) = picture(&heavy).remove(0);

        assert_eq!(weight, u32::MAX / 3 * 3);
    }
}
