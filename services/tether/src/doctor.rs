//! `tether doctor`: what this machine allows an agent to guarantee, tried out rather than looked up.

use anyhow::Context as _;
use serde::Serialize;
use tether_agent::{Config, Guarantee, diagnose};

use crate::{cli, output::Output};

/// What an agent started here, by this user, could do.
#[derive(Debug, Serialize)]
struct Diagnosis {
    guarantee: Guarantee,
    by: &'static str,
    not_covered: &'static str,
    /// How to get more; empty where there is no more.
    advice: String,
    /// Further means, each with whether it works.
    means: Vec<(&'static str, bool)>,
}

pub(crate) async fn doctor(args: &cli::Doctor, out: &Output) -> anyhow::Result<()> {
    let config = Config {
        no_cgroups: args.no_cgroups,
        no_namespaces: args.no_namespaces,
        ..Config::default()
    };
    let found = diagnose(&config).context("cannot try out what this machine allows")?;
    let diagnosis = Diagnosis {
        guarantee: found.guarantee,
        by: found.guarantee.means(),
        not_covered: found.guarantee.not_covered(),
        advice: found.advice,
        means: found.means,
    };
    if out.is_json() {
        return out.line(&serde_json::to_string(&diagnosis)?);
    }
    out.line(&format!(
        "guarantee   {}, by {}",
        diagnosis.guarantee, diagnosis.by
    ))?;
    out.line(&format!("not covered {}", diagnosis.not_covered))?;
    for (what, works) in &diagnosis.means {
        let mark = if *works { "yes" } else { "no " };
        out.line(&format!("{mark}         {what}"))?;
    }
    if !diagnosis.advice.is_empty() {
        out.line(&format!("for more    {}", diagnosis.advice))?;
    }
    Ok(())
}
