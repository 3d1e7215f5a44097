//! Pools as people write them in TOML.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tether_kit::config;
use tether_proto::pool as wire;

use crate::{Placement, Rollout, Template, Templates, template::millis};

/// A file of templates and pools, as `tether run` and `tether pool apply` read it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoolFile {
    /// `[template.NAME]`.
    pub template: Templates,
    /// `[pool.NAME]`.
    pub pool: BTreeMap<String, Pool>,
}

/// What can be set under `[pool.NAME]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pool {
    /// A template of this file, or of the arbiter's configuration.
    pub template: String,
    /// `coupled`, `supervised`, `independent`, `distributed` or `auto`.
    pub mode: String,
    /// Number of workers.
    pub size: u32,
    /// Pools that must have a ready worker first, and that are stopped after this one.
    pub depends_on: Vec<String>,
    /// Ready workers beyond `size` that wait to take the place of a dead one.
    pub spares: u32,
    /// Most workers started within one second; 0 is no limit.
    pub starts_per_second: u32,
    /// Where its workers may be.
    #[serde(skip_serializing_if = "Placement::is_anywhere")]
    pub placement: Placement,
    /// How its workers are replaced.
    #[serde(skip_serializing_if = "Rollout::is_usual")]
    pub rollout: Rollout,
    /// What to change in the mode's preset.
    pub policy: Policy,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            template: String::new(),
            mode: "auto".to_owned(),
            size: 1,
            depends_on: Vec::new(),
            spares: 0,
            starts_per_second: 0,
            placement: Placement::default(),
            rollout: Rollout::default(),
            policy: Policy::default(),
        }
    }
}

/// What can be set under `[pool.NAME.policy]`; what is absent stays as the mode has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// `exec`, `systemd`, `supervisord`, `runit` or `connect`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launcher: Option<String>,
    /// `kill`, `run_for_timeout` or `continue`, when the owner's process was seen to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_owner_exit: Option<String>,
    /// Likewise, when the owner's lease ran out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_owner_silent: Option<String>,
    /// Likewise, when the owner said goodbye.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_owner_goodbye: Option<String>,
    /// `kill` or `hold_until_lease`, when the agent is gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_agent_loss: Option<String>,
    /// How often the owner beats.
    #[serde(skip_serializing_if = "Option::is_none", with = "optional_duration")]
    pub heartbeat_interval: Option<Duration>,
    /// How long workers may go on without their owner.
    #[serde(skip_serializing_if = "Option::is_none", with = "optional_duration")]
    pub heartbeat_timeout: Option<Duration>,
    /// How long workers live on, without calls, after their node's lease is over.
    #[serde(skip_serializing_if = "Option::is_none", with = "optional_duration")]
    pub partition_grace: Option<Duration>,
    /// How long a worker that does a job lives after its node was last heard.
    #[serde(skip_serializing_if = "Option::is_none", with = "optional_duration")]
    pub job_ttl: Option<Duration>,
    /// `continue` or `terminate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beam_crash_policy: Option<String>,
    /// Whether workers die with their owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<bool>,
}

/// A duration that may be absent.
mod optional_duration {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};
    use tether_kit::config::duration;

    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => duration::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        duration::deserialize(deserializer).map(Some)
    }
}

impl PoolFile {
    /// Reads a file; the second value is its directory, where relative paths start.
    ///
    /// # Errors
    /// Points at the line that is wrong.
    pub fn read(path: &Path) -> miette::Result<(Self, PathBuf)> {
        let loaded = config::load::<Self>(Some(path), std::iter::empty(), &[])?;
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let base = absolute
            .parent()
            .unwrap_or_else(|| Path::new("/"))
            .to_owned();
        Ok((loaded.value, base))
    }

    /// Its pools as the services speak of them; `only` names the one that is wanted.
    ///
    /// # Errors
    /// When there is no pool, or none of that name.
    pub fn specs(&self, base: &Path, only: Option<&str>) -> anyhow::Result<Vec<wire::PoolSpec>> {
        let wanted = self
            .pool
            .iter()
            .filter(|(name, _)| only.is_none_or(|only| only == name.as_str()));
        let specs: Vec<_> = wanted
            .map(|(name, pool)| pool.to_wire(name, self.template.get(&pool.template), base))
            .collect();
        let specs = dependencies_first(specs);
        match (specs.is_empty(), only) {
            (false, _) => Ok(specs),
            (true, Some(name)) => {
                let known: Vec<_> = self.pool.keys().map(String::as_str).collect();
                Err(anyhow::anyhow!("expected one of: {}", known.join(", ")))
                    .with_context(|| format!("the file has no pool `{name}`"))
            }
            (true, None) => anyhow::bail!(
                "the file has no pool: write one as [pool.NAME] with `template`, `mode` and `size`"
            ),
        }
    }
}

/// Puts each pool behind those of the file it depends on. Pools that depend on each other in a circle
/// keep their order: the arbiter refuses them, and names the circle.
fn dependencies_first(mut waiting: Vec<wire::PoolSpec>) -> Vec<wire::PoolSpec> {
    let mut sorted = Vec::with_capacity(waiting.len());
    loop {
        let is_free = |spec: &wire::PoolSpec| {
            let mut others = waiting.iter().filter(|other| other.name != spec.name);
            !others.any(|other| spec.depends_on.contains(&other.name))
        };
        let Some(next) = waiting.iter().position(is_free) else {
            sorted.append(&mut waiting);
            return sorted;
        };
        sorted.push(waiting.remove(next));
    }
}

impl Pool {
    /// As the services speak of it. Without `template` the arbiter is to know its name.
    pub fn to_wire(&self, name: &str, template: Option<&Template>, base: &Path) -> wire::PoolSpec {
        let policy = &self.policy;
        wire::PoolSpec {
            name: name.to_owned(),
            mode: self.mode.clone(),
            template_name: if template.is_some() {
                String::new()
            } else {
                self.template.clone()
            },
            template: template.map(|template| template.to_wire(base)),
            size: self.size,
            depends_on: self.depends_on.clone(),
            spares: self.spares,
            starts_per_second: self.starts_per_second,
            placement: self.placement.to_wire(),
            rollout: self.rollout.to_wire(),
            policy: Some(wire::PolicyOverrides {
                launcher: policy.launcher.clone(),
                on_owner_exit: policy.on_owner_exit.clone(),
                on_owner_silent: policy.on_owner_silent.clone(),
                on_owner_goodbye: policy.on_owner_goodbye.clone(),
                on_agent_loss: policy.on_agent_loss.clone(),
                heartbeat_interval_ms: policy.heartbeat_interval.map(millis),
                heartbeat_timeout_ms: policy.heartbeat_timeout.map(millis),
                partition_grace_ms: policy.partition_grace.map(millis),
                job_ttl_ms: policy.job_ttl.map(millis),
                beam_crash_policy: policy.beam_crash_policy.clone(),
                bound: policy.bound,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_brings_its_template_along_and_paths_start_at_its_file() {
        let text = "[template.a]\ncommand = '../bin/x'\ncwd = '../w'\n[pool.p]\ntemplate = 'a'\nsize = 3\n[pool.p.policy]\nheartbeat_timeout = '4s'\n";
        let file: PoolFile = toml::from_str(text).unwrap();

        let specs = file.specs(Path::new("/etc/t"), None).unwrap();

        assert_eq!(specs[0].template.as_ref().unwrap().cwd, "/etc/t/../w");
        assert_eq!(
            specs[0].policy.as_ref().unwrap().heartbeat_timeout_ms,
            Some(4_000)
        );
        assert!(specs[0].template_name.is_empty());
        let wrong = file.specs(Path::new("/"), Some("q")).unwrap_err();
        assert!(
            format!("{wrong:#}").contains("no pool `q`: expected one of: p"),
            "{wrong:#}"
        );
    }

    #[test]
    fn a_pool_says_where_its_workers_may_be_and_how_they_are_replaced() {
        let read = |text: &str| {
            let file: PoolFile =
                toml::from_str(&format!("[pool.p]\ntemplate = 't'\n{text}")).unwrap();
            file.specs(Path::new("/"), None).unwrap().remove(0)
        };

        let spec = read(
            "placement = { labels = { zone = 'a' }, resources = { gpu = 2 }, prefer = 'pack' }\nrollout = { max_unavailable = 1, on_change = 'next_start' }\n",
        );

        let placement = spec.placement.unwrap();
        assert_eq!(placement.prefer(), wire::Preference::Pack);
        assert_eq!(
            (&*placement.labels["zone"], placement.resources["gpu"]),
            ("a", 2)
        );
        let rollout = spec.rollout.unwrap();
        assert_eq!((rollout.surge, rollout.max_unavailable), (None, Some(1)));
        assert_eq!(rollout.on_change(), wire::OnChange::NextStart);
        let usual = read("");
        assert_eq!((usual.placement, usual.rollout), (None, None));
    }

    #[test]
    fn a_pool_comes_behind_those_it_depends_on_and_a_circle_is_left_to_be_refused() {
        let names = |text: &str| {
            let file: PoolFile = toml::from_str(text).unwrap();
            let specs = file.specs(Path::new("/"), None).unwrap();
            specs
                .into_iter()
                .map(|spec| spec.name)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let pool =
            |name: &str, on: &str| format!("[pool.{name}]\ntemplate = 't'\ndepends_on = [{on}]\n");

        let chain = [pool("a", "'b', 'x'"), pool("b", "'c'"), pool("c", "")].concat();
        assert_eq!(names(&chain), "c b a");
        let circle = [pool("a", "'b'"), pool("b", "'a'"), pool("c", "'a'")].concat();
        assert_eq!(names(&circle), "a b c");
    }

    #[test]
    fn a_template_of_elsewhere_is_asked_for_by_name() {
        let file: PoolFile = toml::from_str("[pool.p]\ntemplate = 'b'\n").unwrap();

        let specs = file.specs(Path::new("/"), None).unwrap();

        assert_eq!(
            (specs[0].template_name.as_str(), specs[0].mode.as_str()),
            ("b", "auto")
        );
    }
}
