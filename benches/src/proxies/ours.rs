//! Ours: the real gateway, which hears of the worker from a real discovery, with a real arbiter beside it.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tether_types::Address;

use super::{Programs, said_in};
use crate::{
    calls::client::POOL,
    ground::Ground,
    net::{free_port, local},
};

/// What runs beside the gateway for all of the bench, on the processor of the load.
#[derive(Debug)]
pub(super) struct Ours {
    gateway: PathBuf,
    dir: PathBuf,
    arbiter: (Child, Address),
    discovery: (Child, Address),
}

impl Drop for Ours {
    fn drop(&mut self) {
        for child in [&mut self.arbiter.0, &mut self.discovery.0] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Ours {
    pub(super) async fn start(
        ground: &Ground,
        programs: &Programs,
        worker: u16,
    ) -> anyhow::Result<Self> {
        let dir = ground.fresh("ours")?;
        let start = |program: &Path, place: &str, more: &[String]| {
            let address = local(free_port()?);
            let mut command = Command::new(program);
            set(&mut command, &format!("listen.{place}=[\"{address}\"]"));
            set(
                &mut command,
                &format!("listen.runtime_dir=\"{}\"", dir.display()),
            );
            set(&mut command, "store=\"memory:\"");
            more.iter().for_each(|more| set(&mut command, more));
            command.stdin(Stdio::null());
            said_in(&ground.dir().join(format!("{place}.log")), &mut command)?;
            anyhow::Ok((ground.start(&mut command)?, address))
        };
        let source = format!("discovery.pools.{POOL}.source=\"static://127.0.0.1:{worker}\"");
        Ok(Self {
            arbiter: start(&programs.arbiter, "arbiter", &[])?,
            discovery: start(&programs.discovery, "discovery", &[source])?,
            gateway: programs.gateway.clone(),
            dir,
        })
    }

    /// A gateway with the settings it comes with.
    pub(super) fn gateway(&self, port: u16) -> Command {
        let mut command = Command::new(&self.gateway);
        let sets = [
            format!("listen.gateway=[\"{}\"]", local(port)),
            format!("listen.runtime_dir=\"{}\"", self.dir.display()),
            format!("connect.arbiter=\"{}\"", self.arbiter.1),
            format!("connect.discovery=\"{}\"", self.discovery.1),
        ];
        sets.iter().for_each(|one| set(&mut command, one));
        command
    }
}

/// Has a program of ours run with a setting.
pub(crate) fn set(command: &mut Command, setting: &str) {
    command.args(["--set", setting]);
}
