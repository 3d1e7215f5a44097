//! `tether doctor`: which mode fits here, and what this machine allows an agent to guarantee, tried out rather than
//! looked up.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context as _;
use serde::Serialize;
use tether_agent::{Config, Guarantee, diagnose};
use tether_arbiter::Surroundings;
use tether_client::Client;
use tether_lifecycle::{Launcher, Systemd, detect};
use tether_proto::worker::ListNodesRequest;
use tether_settings::surroundings;
use tokio::time::timeout;

use crate::{cli, config, output::Output};

/// How long a Tether on this machine may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// What an agent started here, by this user, could do.
#[derive(Debug, Serialize)]
struct Diagnosis {
    /// What `auto` would choose.
    mode: &'static str,
    mode_why: String,
    /// What was seen.
    found: Vec<(&'static str, String)>,
    guarantee: Guarantee,
    by: &'static str,
    not_covered: &'static str,
    /// How to get more; empty where there is no more.
    advice: String,
    /// Further means, each with whether it works.
    means: Vec<(&'static str, bool)>,
    /// What is likely to be regretted.
    warnings: Vec<String>,
}

pub(crate) async fn doctor(
    args: &cli::Doctor,
    client: Option<Client>,
    out: &Output,
) -> anyhow::Result<()> {
    let (loaded, _) = config::load(&args.settings)?;
    let agent = loaded.value.agent;
    let agent = Config {
        no_cgroups: args.no_cgroups || agent.no_cgroups,
        no_namespaces: args.no_namespaces || agent.no_namespaces,
        ..agent
    };
    let diagnosed = diagnose(&agent).context("cannot try out what this machine allows")?;
    let serving = match client {
        Some(client) => timeout(PATIENCE, offered(&client)).await.ok().flatten(),
        None => None,
    };
    let around = Surroundings {
        launchers: serving.clone().unwrap_or_else(|| vec![Launcher::Exec]),
        ..surroundings()
    };
    let chosen = detect(&around);
    let diagnosis = Diagnosis {
        mode: chosen.mode.name(),
        mode_why: chosen.why,
        found: found(&around, serving.as_deref()),
        guarantee: diagnosed.guarantee,
        by: diagnosed.guarantee.means(),
        not_covered: diagnosed.guarantee.not_covered(),
        advice: diagnosed.advice,
        means: diagnosed.means,
        warnings: diagnosed.warnings,
    };
    if out.is_json() {
        return out.line(&serde_json::to_string(&diagnosis)?);
    }
    diagnosis.print(out)
}

impl Diagnosis {
    fn print(&self, out: &Output) -> anyhow::Result<()> {
        out.line(&format!("mode        {}", self.mode_why))?;
        for (what, seen) in &self.found {
            out.line(&format!("{what:<11} {seen}"))?;
        }
        out.line(&format!("guarantee   {}, by {}", self.guarantee, self.by))?;
        out.line(&format!("not covered {}", self.not_covered))?;
        for (what, works) in &self.means {
            let mark = if *works { "yes" } else { "no " };
            out.line(&format!("{mark}         {what}"))?;
        }
        if !self.advice.is_empty() {
            out.line(&format!("for more    {}", self.advice))?;
        }
        for warning in &self.warnings {
            out.line(&format!("warning     {warning}"))?;
        }
        Ok(())
    }
}

/// The launchers of all nodes, where a gateway answers.
async fn offered(client: &Client) -> Option<Vec<Launcher>> {
    let nodes = client.workers().list_nodes(ListNodesRequest {}).await;
    let nodes = nodes.ok()?.into_inner().nodes;
    let words = nodes.iter().flat_map(|node| &node.launchers);
    let launchers: BTreeSet<_> = words.filter_map(|word| word.parse().ok()).collect();
    Some(launchers.into_iter().collect())
}

/// What the choice goes by, line by line.
fn found(around: &Surroundings, serving: Option<&[Launcher]>) -> Vec<(&'static str, String)> {
    let yes = |holds: bool, what: &str, not: &str| match holds {
        true => what.to_owned(),
        false => not.to_owned(),
    };
    let launchers = |offered: &[Launcher]| {
        let names: Vec<_> = offered.iter().map(|one| one.name()).collect();
        names.join(", ")
    };
    vec![
        (
            "tether",
            match serving {
                Some(offered) => format!("serves; its agents offer: {}", launchers(offered)),
                None => "none answers; one started here would offer: exec".to_owned(),
            },
        ),
        (
            "systemd",
            match &around.systemd {
                Systemd::Absent => "this machine was not booted with it".to_owned(),
                Systemd::Usable(at) => format!("usable by this user, at `{at}`"),
                Systemd::Refused(why) => format!("not usable by this user: {why}"),
            },
        ),
        (
            "cgroup",
            yes(
                around.delegated,
                "delegated to this process",
                "not delegated to this process",
            ),
        ),
        (
            "process",
            yes(
                around.first,
                "the first of its container",
                "not the first of a container: `tether up --init` and `tether-agent --init` are for that",
            ),
        ),
        (
            "session",
            yes(
                around.in_session,
                "somebody's login, with which what is started here ends",
                "none: a service, a container, or no systemd",
            ),
        ),
    ]
}
