//! What a template says about the process itself: whose it is, its limits, its input, its sockets.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tether_kit::config::{duration, size};
use tether_proto::pool as wire;

use crate::template::{ReadinessKind, millis};

/// What can be set under `[template.NAME.process]`; what is absent is the agent's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// User to run as, by name or number.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Primary group, by name or number; that of `user` where nothing is said.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Further groups; those of `user` where nothing is said.
    pub groups: Vec<String>,
    /// File mode creation mask, in octal digits such as `"027"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<Mask>,
    /// Scheduling niceness, -20 to 19.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
    /// Numbers of the processors it may run on.
    pub cpus: Vec<u32>,
    /// Limits of the kernel per process, by their name in lower case: `nofile = 1024`.
    pub resource_limits: BTreeMap<String, ResourceLimit>,
    /// What it reads on standard input, before the end.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub input: String,
    /// Whether the end of standard input never comes while it may live.
    pub hold_input_open: bool,
    /// Whether it gets a terminal of its own.
    pub pty: bool,
    /// Whether it sees a `/proc` of its own namespace, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private_proc: Option<bool>,
}

/// A file mode creation mask, written in octal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mask(pub u32);

impl TryFrom<String> for Mask {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match u32::from_str_radix(&text, 8) {
            Ok(bits) if bits <= 0o777 => Ok(Self(bits)),
            Ok(_) | Err(_) => Err(format!(
                "`{text}` is not a file mode mask, expected octal digits such as \"027\""
            )),
        }
    }
}

impl From<Mask> for String {
    fn from(mask: Mask) -> Self {
        format!("{:03o}", mask.0)
    }
}

/// One limit: a number for both, `"unlimited"`, or soft and hard apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum ResourceLimit {
    /// Soft and hard alike.
    Both(Bound),
    /// Each for itself.
    Apart {
        /// What holds.
        soft: Bound,
        /// To where the process may raise it.
        hard: Bound,
    },
}

/// A number, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bound {
    /// At most this.
    Of(u64),
    /// No limit.
    None(Unlimited),
}

/// The word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unlimited {
    /// No limit.
    Unlimited,
}

/// What can be set under `[template.NAME.limits]`: limits of the whole tree, kept by cgroups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory; `0B` is no limit.
    #[serde(with = "size")]
    pub memory: u64,
    /// Processors, such as 1.5; 0 is no limit.
    pub cpus: f64,
    /// Processes and threads; 0 is no limit.
    pub pids: u32,
}

/// What can be set under `[template.NAME.liveness]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Liveness {
    /// What is asked; nothing means as for readiness.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<ReadinessKind>,
    /// Between two questions.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// How long an answer may take.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// Failures in a row after which it is ended.
    pub failures: u32,
    /// Longest time between two `WATCHDOG=1` of the worker; `0s` asks for none.
    #[serde(with = "duration")]
    pub watchdog: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            kind: None,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(2),
            failures: 3,
            watchdog: Duration::ZERO,
        }
    }
}

/// What can be set under `[template.NAME.recycle]`; zero is never.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recycle {
    /// At this age; up to a tenth is taken off, so that a pool is not replaced at once.
    #[serde(with = "duration")]
    pub max_lifetime: Duration,
    /// After so many calls that came through gateways. They tell once a second at most, so that it may serve
    /// some more.
    pub max_calls: u64,
    /// At this memory of its tree, as PSS.
    #[serde(with = "size")]
    pub max_memory: u64,
}

/// What can be set under `[template.NAME.sockets.LABEL]`: a socket that the agent listens on. The first by
/// label is the worker's address.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Socket {
    /// `unix:/path` or `host:port`, also with placeholders; nothing takes the one of this label that the
    /// agent inherited.
    pub listen: String,
    /// Whether the worker is started only at the first connection.
    pub on_demand: bool,
}

impl Process {
    /// Fills in what the services are told of it.
    pub(crate) fn fill(&self, template: &mut wire::Template) {
        template.user = self.user.clone();
        template.group = self.group.clone();
        template.groups = self.groups.clone();
        template.umask = self.umask.map(|mask| mask.0);
        template.nice = self.nice;
        template.cpus = self.cpus.clone();
        template.pty = self.pty;
        template.private_proc = self.private_proc;
        template.resource_limits = self
            .resource_limits
            .iter()
            .map(|(name, limit)| limit.to_wire(name))
            .collect();
        let wanted = !self.input.is_empty() || self.hold_input_open;
        template.stdin = wanted.then(|| wire::Input {
            data: self.input.clone().into_bytes(),
            hold_open: self.hold_input_open,
        });
    }
}

impl ResourceLimit {
    fn to_wire(self, name: &str) -> wire::ResourceLimit {
        let (soft, hard) = match self {
            Self::Both(both) => (both, both),
            Self::Apart { soft, hard } => (soft, hard),
        };
        wire::ResourceLimit {
            name: name.to_owned(),
            soft: soft.number(),
            hard: hard.number(),
        }
    }
}

impl Bound {
    fn number(self) -> Option<u64> {
        match self {
            Self::Of(number) => Some(number),
            Self::None(Unlimited::Unlimited) => None,
        }
    }
}

impl Limits {
    /// As the services speak of it; none where nothing is limited.
    pub(crate) fn to_wire(self) -> Option<wire::TreeLimits> {
        (self != Self::default()).then(|| wire::TreeLimits {
            memory_bytes: self.memory,
            // A limit below a thousandth is one of a thousandth.
            cpu_millis: (self.cpus * 1000.0).ceil() as u32,
            pids: self.pids,
        })
    }
}

impl Liveness {
    /// As the services speak of it.
    pub(crate) fn to_wire(&self) -> wire::Liveness {
        wire::Liveness {
            kind: self
                .kind
                .map_or(wire::ReadinessKind::Unspecified, ReadinessKind::to_wire)
                .into(),
            interval_ms: millis(self.interval),
            timeout_ms: millis(self.timeout),
            failures: self.failures,
            watchdog_ms: millis(self.watchdog),
        }
    }
}

impl Recycle {
    /// As the services speak of it.
    pub(crate) fn to_wire(&self) -> wire::Recycle {
        wire::Recycle {
            max_lifetime_ms: millis(self.max_lifetime),
            max_calls: self.max_calls,
            max_memory_bytes: self.max_memory,
        }
    }
}

impl Socket {
    /// Why it cannot be held under this label, if it cannot.
    pub(crate) fn wrong(&self, label: &str) -> Option<String> {
        let is_name = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b':';
        if label.is_empty() || !label.bytes().all(is_name) {
            return Some("the name cannot stand in LISTEN_FDNAMES; use letters and digits".into());
        }
        let circular = ["{address}", "{socket}", "{port}"];
        let circular = circular.iter().find(|word| self.listen.contains(**word))?;
        Some(format!(
            "`{circular}` is known only once it listens; write the address, with `{{slot}}` where each worker has its own"
        ))
    }

    /// As the services speak of it.
    pub(crate) fn to_wire(&self, label: &str) -> wire::ListeningSocket {
        wire::ListeningSocket {
            name: label.to_owned(),
            address: self.listen.clone(),
            on_demand: self.on_demand,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_a_number_a_word_or_two_of_them() {
        let process: Process = toml::from_str(
            "umask = '027'\n[resource_limits]\nnofile = 64\ncore = 'unlimited'\nstack = { soft = 1, hard = 'unlimited' }\n",
        )
        .unwrap();
        let mut template = wire::Template::default();
        process.fill(&mut template);

        let limits: Vec<_> = template
            .resource_limits
            .iter()
            .map(|limit| (limit.name.as_str(), limit.soft, limit.hard))
            .collect();
        assert_eq!(
            limits,
            [
                ("core", None, None),
                ("nofile", Some(64), Some(64)),
                ("stack", Some(1), None)
            ]
        );
        assert_eq!(template.umask, Some(0o027));
        assert!(toml::from_str::<Process>("umask = '888'").is_err());
    }
}
