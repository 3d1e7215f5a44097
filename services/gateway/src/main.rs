//! `tether-gateway`: the gateway as a process of its own.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use tether_gateway::{Config, Gateway, Handover, Listener};
use tether_kit::manager;
use tether_settings::{
    Admin, Check, Connect, Ignored, Listen, Place, Whereabouts, Wrong, check::some_time,
    check_whereabouts, service,
};
use tether_types::Address;

/// What the gateway reads of the configuration file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    listen: Listen,
    connect: Connect,
    admin: Admin,
    gateway: Config,
    store: Option<String>,
    lease: Ignored,
    agent: Ignored,
    metrics: Ignored,
    discovery: Ignored,
    template: Ignored,
}

impl Check for Settings {
    fn check(&self) -> Result<(), Wrong> {
        check_whereabouts(&self.listen, &self.connect, &[Place::Gateway])?;
        self.admin.check()?;
        self.gateway.control.check()?;
        some_time("gateway.connect_timeout", self.gateway.connect_timeout)
    }
}

/// Where it listens.
struct Sockets {
    calls: Vec<Listener>,
    control: Option<Listener>,
    admin: Option<Listener>,
    handover: Option<Handover>,
}

async fn sockets(settings: &Settings, at: &Whereabouts) -> anyhow::Result<Sockets> {
    let addresses = at.listens(Place::Gateway)?;
    let control = &settings.gateway.control;
    let Some(path) = &settings.gateway.handover else {
        return Ok(Sockets {
            calls: at.bind(Place::Gateway).await?,
            control: control.bind(&addresses).await?,
            admin: settings.admin.bind().await?,
            handover: None,
        });
    };
    let mut handover = Handover::begin(path).await?;
    let take = async |address: &Address, insecure| handover.listener(address, insecure).await;
    let calls = at.bind_by(Place::Gateway, take).await?;
    let control = match control.address(&addresses)? {
        None => None,
        Some(address) => Some(handover.listener(&address, control.insecure).await?),
    };
    let admin = match settings.admin.address()? {
        None => None,
        Some(address) => Some(handover.listener(&address, settings.admin.insecure).await?),
    };
    Ok(Sockets {
        calls,
        control,
        admin,
        handover: Some(handover),
    })
}

fn main() -> ExitCode {
    service(Place::Gateway, |settings: Settings, _, stop| async move {
        let at = Whereabouts::new(&settings.listen, &settings.connect)?;
        let Sockets {
            calls,
            control,
            admin,
            handover,
        } = sockets(&settings, &at).await?;
        let gateway = Gateway::build(settings.gateway, at.arbiters()?, at.find(Place::Discovery)?)
            .controlled_at(control)
            .probed_at(admin)
            .handing_over(handover);
        tracing::info!("Gateway serves");
        manager::serves("Serves");
        gateway.serve(calls, stop).await
    })
}
