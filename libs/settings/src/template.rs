//! Templates as people write them in TOML.

use std::{collections::BTreeMap, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tether_kit::config::{dotted, duration};
use tether_proto::pool as wire;
use tether_types::{InvalidName, TemplateName};

use crate::{
    At as _, Wrong,
    forked::{ForkedFrom, wrong_with_fork},
    process::{Limits, Liveness, Process, Recycle, Socket},
    signals,
    supervised::{Supervised, wrong_with_service},
};

/// Every `[template.NAME]`.
pub type Templates = BTreeMap<String, Template>;

/// What can be set under `[template.NAME]`: what to run. Texts may hold `{pool}`, `{slot}`,
/// `{incarnation}`, `{node}`, `{address}`, `{socket}`, `{port}` and `{dir}`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Template {
    /// Program; a bare word is looked up on PATH, a relative path starts at `cwd`.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment, on top of PATH, HOME, LANG, TZ, USER and what Tether tells it.
    pub env: BTreeMap<String, String>,
    /// Working directory; a relative one starts at the file it stands in.
    pub cwd: String,
    /// How it listens; its address is in `TETHER_LISTEN`.
    pub listen: Listen,
    /// How to see that it is ready.
    pub readiness: Readiness,
    /// How it is stopped.
    pub stop: Stop,
    /// When it is started again.
    pub restart: Restart,
    /// Size at which each of its two logs is rotated.
    #[serde(with = "tether_kit::config::size")]
    pub log_limit: u64,
    /// Age at which each of its two logs is rotated; `0s` is never.
    #[serde(with = "duration")]
    pub log_max_age: Duration,
    /// Rotated logs kept of each stream; 0 means one.
    pub log_files: u32,
    /// Whose process it is, and on what terms with the kernel.
    pub process: Process,
    /// Limits of its whole tree.
    pub limits: Limits,
    /// How to see that it still works once it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Liveness>,
    /// When it is replaced although it runs well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recycle: Option<Recycle>,
    /// `[template.NAME.sockets.LABEL]`: sockets that the agent holds for it.
    pub sockets: BTreeMap<String, Socket>,
    /// Has it forked from a Python process that has imported what it needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forked_from: Option<ForkedFrom>,
    /// Has it be a service that an administrator has defined with the pool's launcher, and not `command`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Supervised>,
    /// How many calls a worker serves at once, as a Python worker has so many threads; 0 where that is not known.
    pub capacity: u32,
    /// A worker's share of calls beside the others of its pool, such as those of the template before it: up to 65535; 0
    /// means 1.
    pub weight: u32,
}

/// How a worker listens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listen {
    /// On a unix socket.
    #[default]
    Unix,
    /// On a free port of 127.0.0.1.
    Tcp,
}

/// When a worker is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Readiness {
    /// What is asked.
    pub kind: ReadinessKind,
    /// Longest time from start to ready.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// The path asked for by `http`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The file that `file` waits for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub file: String,
    /// The text that `log_line` waits for.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
}

/// What shows that a worker is ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadinessKind {
    /// `grpc.health.v1` answers SERVING.
    #[default]
    Grpc,
    /// Its address takes connections.
    Connect,
    /// GET on its address answers 200 to 399.
    Http,
    /// It sends READY=1 to the socket in `NOTIFY_SOCKET`.
    Notify,
    /// It makes a file.
    File,
    /// It writes a line that contains a text.
    LogLine,
    /// Its program runs.
    Started,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            kind: ReadinessKind::Grpc,
            timeout: Duration::from_secs(30),
            path: String::new(),
            file: String::new(),
            text: String::new(),
        }
    }
}

/// How a worker is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stop {
    /// Time between SIGTERM and SIGKILL.
    #[serde(with = "duration")]
    pub grace: Duration,
    /// The signal that asks it to stop, such as `SIGINT`; nothing means SIGTERM.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub signal: String,
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            grace: Duration::from_secs(10),
            signal: String::new(),
        }
    }
}

/// When a dead worker is started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Restart {
    /// After which deaths.
    pub mode: RestartMode,
    /// First delay; doubles with each further restart.
    #[serde(with = "duration")]
    pub delay: Duration,
    /// Longest delay.
    #[serde(with = "duration")]
    pub max_delay: Duration,
    /// More restarts than this within the window are a crash loop.
    pub max_restarts: u32,
    /// That window.
    #[serde(with = "duration")]
    pub window: Duration,
}

/// After which deaths a worker is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartMode {
    /// After each.
    #[default]
    Always,
    /// After those that were neither an exit with code 0 nor ordered.
    Transient,
    /// After none.
    Never,
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            mode: RestartMode::Always,
            delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(30),
            max_restarts: 5,
            window: Duration::from_secs(60),
        }
    }
}

impl Template {
    /// As the services speak of it; `base` is the directory of the file it stands in.
    pub fn to_wire(&self, base: &Path) -> wire::Template {
        let cwd = match self.cwd.as_str() {
            // Nothing said, and nothing relative to it: the incarnation's own directory.
            "" if !self.command.starts_with('.') => String::new(),
            cwd => base.join(cwd).display().to_string(),
        };
        let mut template = wire::Template {
            command: self.command.clone(),
            args: self.args.clone(),
            env: self.env.clone().into_iter().collect(),
            cwd,
            listen: match self.listen {
                Listen::Unix => wire::Listen::Unix,
                Listen::Tcp => wire::Listen::Tcp,
            }
            .into(),
            readiness: Some(wire::Readiness {
                kind: self.readiness.kind.to_wire().into(),
                timeout_ms: millis(self.readiness.timeout),
                what: self.readiness.what().to_owned(),
            }),
            stop: Some(wire::Stop {
                grace_ms: Some(millis(self.stop.grace)),
                // What is no signal was refused when the file was checked.
                signal: signals::number(&self.stop.signal).unwrap_or_default(),
            }),
            restart: Some(wire::Restart {
                mode: match self.restart.mode {
                    RestartMode::Always => wire::RestartMode::Always,
                    RestartMode::Transient => wire::RestartMode::Transient,
                    RestartMode::Never => wire::RestartMode::Never,
                }
                .into(),
                delay_ms: Some(millis(self.restart.delay)),
                max_delay_ms: Some(millis(self.restart.max_delay)),
                max_restarts: Some(self.restart.max_restarts),
                window_ms: Some(millis(self.restart.window)),
            }),
            log_limit_bytes: self.log_limit,
            log_max_age_ms: millis(self.log_max_age),
            log_files: self.log_files,
            tree_limits: self.limits.to_wire(),
            liveness: self.liveness.as_ref().map(Liveness::to_wire),
            recycle: self.recycle.as_ref().map(Recycle::to_wire),
            sockets: self
                .sockets
                .iter()
                .map(|(label, socket)| socket.to_wire(label))
                .collect(),
            forked_from: self.forked_from.as_ref().map(ForkedFrom::to_wire),
            service: self.service.as_ref().map(Supervised::to_wire),
            capacity: self.capacity,
            weight: self.weight,
            ..wire::Template::default()
        };
        self.process.fill(&mut template);
        template
    }
}

impl Readiness {
    /// What its kind asks for.
    fn what(&self) -> &str {
        match self.kind {
            ReadinessKind::Http => &self.path,
            ReadinessKind::File => &self.file,
            ReadinessKind::LogLine => &self.text,
            ReadinessKind::Grpc
            | ReadinessKind::Connect
            | ReadinessKind::Notify
            | ReadinessKind::Started => "",
        }
    }
}

impl ReadinessKind {
    /// As the services speak of it.
    pub(crate) fn to_wire(self) -> wire::ReadinessKind {
        match self {
            Self::Grpc => wire::ReadinessKind::Grpc,
            Self::Connect => wire::ReadinessKind::Connect,
            Self::Http => wire::ReadinessKind::Http,
            Self::Notify => wire::ReadinessKind::Notify,
            Self::File => wire::ReadinessKind::File,
            Self::LogLine => wire::ReadinessKind::LogLine,
            Self::Started => wire::ReadinessKind::Started,
        }
    }
}

/// Whether every template has a usable name and something to run.
///
/// # Errors
/// Names the template.
pub fn check_templates(templates: &Templates) -> Result<(), Wrong> {
    for (name, template) in templates {
        TemplateName::new(name).at(dotted(&["template", name]))?;
        if let Some((wrong, why)) = wrong_with_service(&template.to_wire(Path::new("")), None) {
            let parts = ["template", name].into_iter().chain(wrong.split('.'));
            let key = dotted(&parts.collect::<Vec<_>>());
            return Err(Wrong::new(key, why).and(dotted(&["template", name, "service"])));
        }
        if template.command.is_empty() && template.service.is_none() {
            let key = dotted(&["template", name, "command"]);
            let why = "there is nothing to run; write for example command = \"python3\"";
            return Err(Wrong::new(key, why).and(dotted(&["template", name])));
        }
        let signal = &template.stop.signal;
        if !signal.is_empty() {
            signals::number(signal).at(dotted(&["template", name, "stop", "signal"]))?;
        }
        for (label, socket) in &template.sockets {
            if let Some(why) = socket.wrong(label) {
                let key = dotted(&["template", name, "sockets", label]);
                return Err(Wrong::new(key, why));
            }
        }
        if let Some((wrong, why)) = wrong_with_fork(&template.to_wire(Path::new(""))) {
            let parts = ["template", name].into_iter().chain(wrong.split('.'));
            let key = dotted(&parts.collect::<Vec<_>>());
            return Err(Wrong::new(key, why).and(dotted(&["template", name, "forked_from"])));
        }
        let readiness = &template.readiness;
        if matches!(readiness.kind, ReadinessKind::File | ReadinessKind::LogLine)
            && readiness.what().is_empty()
        {
            let (key, example) = if readiness.kind == ReadinessKind::File {
                ("file", "file = \"{dir}/ready\"")
            } else {
                ("text", "text = \"listening on\"")
            };
            let key = dotted(&["template", name, "readiness", key]);
            let why = format!("nothing is said to wait for; write for example {example}");
            return Err(Wrong::new(key, why).and(dotted(&["template", name, "readiness"])));
        }
    }
    Ok(())
}

/// Every template of a configuration, as the arbiter wants them.
///
/// # Errors
/// Says which name is none.
pub fn named(
    templates: &Templates,
    base: &Path,
) -> Result<BTreeMap<TemplateName, wire::Template>, InvalidName> {
    templates
        .iter()
        .map(|(name, template)| Ok((TemplateName::new(name)?, template.to_wire(base))))
        .collect()
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_without_a_name_or_a_command_is_refused_by_its_key() {
        let refused = |text: &str| {
            let templates: Templates = toml::from_str(text).unwrap();
            check_templates(&templates).unwrap_err().to_string()
        };

        assert!(refused("['a b']\ncommand = 'x'").starts_with("`template.\"a b\"`: template name"));
        assert!(refused("[a]\nargs = ['x']").starts_with("`template.a.command`: there is nothing"));
        let socket = |label: &str, listen: &str| {
            refused(&format!(
                "[a]\ncommand = 'x'\n[a.sockets.{label}]\nlisten = '{listen}'"
            ))
        };
        assert!(socket("http", "[::1]:{port}").starts_with("`template.a.sockets.http`: `{port}`"));
        assert!(socket("'a:b'", "").contains("cannot stand in LISTEN_FDNAMES"));
    }
}
