//! `tether-gateway`: the gateway as a process of its own.

use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use tether_gateway::{Config, Gateway};
use tether_settings::{
    Check, Connect, Ignored, Listen, Place, Whereabouts, Wrong, check::some_time,
    check_whereabouts, service,
};

/// What the gateway reads of the configuration file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    listen: Listen,
    connect: Connect,
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
        self.gateway.control.check()?;
        some_time("gateway.connect_timeout", self.gateway.connect_timeout)
    }
}

fn main() -> ExitCode {
    service(
        "tether-gateway",
        "The one address a BEAM application needs",
        |settings: Settings, _, stop| async move {
            let at = Whereabouts::new(&settings.listen, &settings.connect)?;
            let listeners = at.bind(Place::Gateway).await?;
            let control = settings
                .gateway
                .control
                .bind(&at.listens(Place::Gateway)?)
                .await?;
            let gateway =
                Gateway::build(settings.gateway, at.arbiters()?, at.find(Place::Discovery)?)
                    .controlled_at(control);
            tracing::info!("Gateway serves");
            gateway.serve(listeners, stop).await
        },
    )
}
