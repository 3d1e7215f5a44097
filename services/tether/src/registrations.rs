//! `tether registrations`.

use serde::Serialize;
use tether_client::{Client, Problem};
use tether_proto::{
    common::EndpointHealth,
    registry::{ListRegistrationsRequest, Registration},
};

use crate::{
    cli,
    output::{Output, Row, worker_name},
};

/// One registration.
#[derive(Debug, Serialize)]
struct RegistrationRow {
    pool: String,
    name: String,
    worker: String,
    epoch: u64,
    address: String,
    protocol: String,
    zone: String,
    weight: u32,
    capacity: u32,
    draining: bool,
    health: &'static str,
    ttl_ms: u64,
    remaining_ms: u64,
}

impl From<Registration> for RegistrationRow {
    fn from(registration: Registration) -> Self {
        let registrant = registration.registrant.unwrap_or_default();
        let condition = registration.condition.unwrap_or_default();
        let health = match condition.health() {
            EndpointHealth::Unspecified => "believed",
            EndpointHealth::Passing => "passing",
            EndpointHealth::Unchecked => "unchecked",
            EndpointHealth::Held => "held",
            EndpointHealth::Failing => "failing",
        };
        Self {
            worker: worker_name(registration.worker.as_ref()),
            pool: registrant.pool,
            name: registrant.name,
            epoch: registrant.epoch,
            address: registrant.address,
            protocol: registrant.protocol,
            zone: condition.zone,
            weight: condition.weight.max(1),
            capacity: condition.capacity,
            draining: condition.draining,
            health,
            ttl_ms: registrant.ttl_ms,
            remaining_ms: registration.remaining_ms,
        }
    }
}

impl Row for RegistrationRow {
    const HEAD: &'static [&'static str] = &[
        "WORKER",
        "NAME",
        "ADDRESS",
        "ZONE",
        "STATE",
        "HEALTH",
        "LEASE LEFT",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.worker.clone(),
            self.name.clone(),
            self.address.clone(),
            match self.zone.as_str() {
                "" => "-".to_owned(),
                zone => zone.to_owned(),
            },
            match self.draining {
                true => "draining".to_owned(),
                false => "serving".to_owned(),
            },
            self.health.to_owned(),
            format!("{}s", self.remaining_ms.div_ceil(1_000)),
        ]
    }
}

pub(crate) async fn registrations(
    client: &Client,
    args: &cli::Registrations,
    out: &Output,
) -> anyhow::Result<()> {
    let request = ListRegistrationsRequest {
        pool: args.pool.clone().unwrap_or_default(),
    };
    let registrations = client
        .registrations()
        .list_registrations(request)
        .await
        .map_err(Problem::from)?
        .into_inner()
        .registrations;
    let rows: Vec<_> = registrations
        .into_iter()
        .map(RegistrationRow::from)
        .collect();
    out.list(&rows)
}
