//! Ours whole: an agent that starts the workers and tells of their deaths, arbiter, discovery and a store beside it.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use tether_client::{Client, Problem};
use tether_proto::{
    common::WorkerPhase,
    pool::{
        ApplyPoolRequest, Listen, Liveness, PolicyOverrides, PoolSpec, ReadinessKind, Restart,
        Stop, Template,
    },
    worker::ListWorkersRequest,
};
use tether_types::Address;

use super::{
    Programs,
    site::{Manner, Member, Patience},
};
use crate::{
    calls::client::POOL,
    etcd::Etcd,
    ground::Ground,
    net::{free_port, local},
    proxies::{said_in, set},
};

/// All of it but the gateway, with a pool of workers that are ready.
pub(super) struct Ours {
    children: Vec<Child>,
    dir: PathBuf,
    gateway: PathBuf,
    arbiter: Address,
    discovery: Address,
    client: Client,
    template: Template,
    size: usize,
    /// Holds the arbiter's state, for discovery to follow.
    store: Etcd,
}

impl Drop for Ours {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Ours {
    pub(super) async fn start(
        ground: &Arc<Ground>,
        programs: &Programs,
        books: &Path,
        manner: Manner,
    ) -> anyhow::Result<Self> {
        let dir = ground.fresh("ours")?;
        let store = Etcd::start(ground, &programs.etcd).await?;
        let (arbiter, discovery) = (local(free_port()?), local(free_port()?));
        let mut ours = Self {
            children: Vec::new(),
            gateway: programs.proxies.gateway.clone(),
            client: Client::connect(&arbiter),
            // The agent starts it elsewhere.
            template: template(&std::path::absolute(&programs.clerk)?, books, manner),
            size: manner.count,
            arbiter,
            discovery,
            dir,
            store,
        };
        let url = format!("store=\"{}\"", ours.store.store());
        let listen = |place: &str, address: &Address| format!("listen.{place}=[\"{address}\"]");
        let (arbiter, discovery) = (ours.arbiter.clone(), ours.discovery.clone());
        let proxies = &programs.proxies;
        for (name, program, sets) in [
            (
                "arbiter",
                &proxies.arbiter,
                vec![url.clone(), listen("arbiter", &arbiter)],
            ),
            (
                "discovery",
                &proxies.discovery,
                vec![url, listen("discovery", &discovery)],
            ),
            (
                "agent",
                &programs.agent,
                vec!["agent.node=\"bench\"".to_owned()],
            ),
        ] {
            let mut command = ours.service(program);
            sets.iter().for_each(|one| set(&mut command, one));
            said_in(&ground.dir().join(format!("{name}.log")), &mut command)?;
            ours.children.push(ground.start(&mut command)?);
        }
        let patience = Patience::new();
        while let Err(why) = ours.apply(&ours.template).await {
            patience
                .pause(&format!("the arbiter takes no pool: {why}"))
                .await?;
        }
        ours.ready(|_| true).await?;
        Ok(ours)
    }

    /// A service of this site.
    fn service(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        for one in [
            format!("listen.runtime_dir=\"{}\"", self.dir.display()),
            format!("connect.arbiter=\"{}\"", self.arbiter),
        ] {
            set(&mut command, &one);
        }
        command.stdin(Stdio::null());
        command
    }

    /// A gateway with the settings it comes with.
    pub(super) fn gateway(&self, port: u16) -> Command {
        let mut command = self.service(&self.gateway);
        set(
            &mut command,
            &format!("listen.gateway=[\"{}\"]", local(port)),
        );
        set(
            &mut command,
            &format!("connect.discovery=\"{}\"", self.discovery),
        );
        command
    }

    async fn apply(&self, template: &Template) -> Result<(), Problem> {
        let stays = || Some("continue".to_owned());
        let request = ApplyPoolRequest {
            pool: Some(PoolSpec {
                name: POOL.to_owned(),
                mode: "independent".to_owned(),
                template: Some(template.clone()),
                size: u32::try_from(self.size).unwrap_or(u32::MAX),
                policy: Some(PolicyOverrides {
                    on_owner_exit: stays(),
                    on_owner_silent: stays(),
                    on_owner_goodbye: stays(),
                    ..PolicyOverrides::default()
                }),
                ..PoolSpec::default()
            }),
            owner: "bench".to_owned(),
            epoch: 0,
        };
        self.client.pools().apply_pool(request).await?;
        Ok(())
    }

    pub(super) async fn members(&self) -> anyhow::Result<Vec<Member>> {
        let request = ListWorkersRequest {
            pool: POOL.to_owned(),
        };
        let workers = self.client.workers().list_workers(request).await?;
        let workers = workers.into_inner().workers.into_iter();
        let ready = workers.filter(|worker| worker.phase() == WorkerPhase::Ready);
        Ok(ready
            .filter_map(|worker| {
                let reference = worker.worker?;
                Some(Member {
                    slot: usize::try_from(reference.slot).ok()?,
                    clerk: format!("{}.{}", reference.slot, reference.incarnation),
                    pid: worker.pid,
                    port: worker.address.rsplit_once(':')?.1.parse().ok()?,
                })
            })
            .collect())
    }

    async fn ready(&self, is: impl Fn(&Member) -> bool + Sync) -> anyhow::Result<()> {
        let patience = Patience::new();
        loop {
            let members = self.members().await?;
            if members.len() == self.size && members.iter().all(&is) {
                return Ok(());
            }
            let missing = format!("not all workers are ready: {members:?}");
            patience.pause(&missing).await?;
        }
    }

    /// Changes the template, and waits until every worker is of the new one.
    pub(super) async fn roll(&self) -> anyhow::Result<()> {
        let before = self.members().await?;
        let mut template = self.template.clone();
        template.env.insert("ROLLED".to_owned(), "1".to_owned());
        self.apply(&template).await?;
        self.ready(|member| !before.contains(member)).await
    }
}

fn template(clerk: &Path, books: &Path, manner: Manner) -> Template {
    let text = |path: &Path| path.display().to_string();
    let book = format!("{}/{{slot}}.{{incarnation}}", text(books));
    let args = ["--listen", "{address}", "--slot", "{slot}", "--book", &book];
    let delay = u64::try_from(manner.restart_after.as_millis()).ok();
    Template {
        command: text(clerk),
        args: args
            .map(str::to_owned)
            .into_iter()
            .chain(manner.flags())
            .collect(),
        listen: Listen::Tcp.into(),
        capacity: 1,
        stop: Some(Stop {
            grace_ms: Some(1_000),
            signal: 0,
        }),
        restart: Some(Restart {
            delay_ms: delay,
            max_delay_ms: delay,
            max_restarts: Some(10_000),
            ..Restart::default()
        }),
        // As often as other proxies ask, and as patiently.
        liveness: Some(Liveness {
            kind: ReadinessKind::Grpc.into(),
            interval_ms: 1_000,
            timeout_ms: 1_000,
            failures: 2,
            watchdog_ms: 0,
        }),
        ..Template::default()
    }
}
