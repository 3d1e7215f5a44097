//! Workers that are services of a supervisor, which an administrator has defined there.

use std::collections::BTreeSet;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tether_proto::pool as wire;
use tether_types::Address;

/// What stands for the place's own part of a name.
const ANY: char = '*';

/// The same in an address.
const INSTANCE: &str = "{instance}";

/// What can be set under `[template.NAME.service]`: the worker is this service of the pool's launcher, and there is no
/// `command`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Supervised {
    /// Its name there, as in `worker@*.service` or `worker@{1..10}.service`: `*` counts the places from 1, and a range
    /// has one for each.
    pub name: String,
    /// Where it listens: `unix:/path` or `host:port`, also with `{instance}`, which is what stands for `*` or the range.
    pub address: String,
    /// Whether it is never started or stopped, only connected to while it runs.
    pub connect_only: bool,
}

impl Supervised {
    /// As the services speak of it.
    pub(crate) fn to_wire(&self) -> wire::Service {
        wire::Service {
            name: self.name.clone(),
            address: self.address.clone(),
            connect_only: self.connect_only,
        }
    }
}

/// The service of one place: its name, and where it listens.
///
/// # Errors
/// When the name has no place for it, or the address is none.
pub fn service_of(service: &wire::Service, slot: u32) -> Result<(String, Address), String> {
    let pattern = Pattern::of(&service.name)?;
    let instance = pattern.instance(slot).ok_or_else(|| {
        format!(
            "`{}` has no service for place {slot} of the pool: make the pool smaller, or the range longer",
            service.name
        )
    })?;
    let address = service.address.replace(INSTANCE, &instance);
    let address = address
        .parse()
        .map_err(|error| format!("`{address}` is no address of a service: {error}"))?;
    Ok((pattern.name(&instance), address))
}

/// Which setting of a template that is a service, or is run by a supervisor, it cannot have, and why; nothing where all
/// is well. `launcher` is the pool's, where it is known.
pub fn wrong_with_service(
    template: &wire::Template,
    launcher: Option<&str>,
) -> Option<(&'static str, String)> {
    let Some(service) = &template.service else {
        return match launcher {
            Some("systemd") => wrong_with_unit(template),
            Some(launcher @ ("supervisord" | "runit")) => Some((
                "service",
                format!(
                    "launcher `{launcher}` runs services that are defined there: name one under `service`"
                ),
            )),
            _ => None,
        };
    };
    if let Some(launcher @ ("exec" | "connect")) = launcher {
        let why = format!(
            "launcher `{launcher}` has no services: set `launcher` in the pool's [policy] to systemd, supervisord or runit"
        );
        return Some(("service", why));
    }
    let first = match Pattern::of(&service.name) {
        Ok(pattern) if launcher == Some("systemd") && !pattern.is_unit() => {
            let why = format!("`{}` does not end with `.service`", service.name);
            return Some(("service.name", why));
        }
        Ok(_) => service_of(service, 0),
        Err(why) => return Some(("service.name", why)),
    };
    if let Err(why) = first {
        return Some(("service.address", why));
    }
    let set_there = "that is said where the service is defined: leave it out here";
    [
        ("command", !template.command.is_empty()),
        ("args", !template.args.is_empty()),
        ("env", !template.env.is_empty()),
        ("sockets", !template.sockets.is_empty()),
        ("forked_from", template.forked_from.is_some()),
        ("cwd", !template.cwd.is_empty()),
        ("process.user", !template.user.is_empty()),
        ("process.group", !template.group.is_empty()),
        ("process.groups", !template.groups.is_empty()),
        ("process.umask", template.umask.is_some()),
        ("process.nice", template.nice.is_some()),
        ("process.cpus", !template.cpus.is_empty()),
        (
            "process.resource_limits",
            !template.resource_limits.is_empty(),
        ),
        ("process.private_proc", template.private_proc.is_some()),
        ("process.input", template.stdin.is_some()),
        ("process.pty", template.pty),
        ("stop.signal", has_other_signal(template)),
    ]
    .into_iter()
    .find(|(_, is_set)| *is_set)
    .map(|(key, _)| (key, set_there.to_owned()))
    .or_else(|| never_kept(template, service, launcher))
}

/// What nobody would keep for a service.
fn never_kept(
    template: &wire::Template,
    service: &wire::Service,
    launcher: Option<&str>,
) -> Option<(&'static str, String)> {
    let readiness = template.readiness.as_ref().map(wire::Readiness::kind);
    if readiness == Some(wire::ReadinessKind::LogLine) {
        let why = "its supervisor has what a service writes, and no line of it comes here: use another kind";
        return Some(("readiness", why.to_owned()));
    }
    let limits = template.tree_limits.unwrap_or_default();
    if limits == wire::TreeLimits::default() {
        return None;
    }
    let why = match launcher {
        _ if service.connect_only => "what is only connected to is not limited either",
        Some("supervisord" | "runit") => {
            "this launcher limits nothing: have the service limit itself, or use launcher `systemd`"
        }
        _ => return None,
    };
    Some(("limits", why.to_owned()))
}

fn has_other_signal(template: &wire::Template) -> bool {
    let signal = template.stop.map_or(0, |stop| stop.signal);
    signal != 0 && signal != Signal::TERM.as_raw()
}

/// What a worker in a unit of its own cannot have yet.
fn wrong_with_unit(template: &wire::Template) -> Option<(&'static str, String)> {
    [
        ("sockets", !template.sockets.is_empty()),
        ("forked_from", template.forked_from.is_some()),
    ]
    .into_iter()
    .find(|(_, is_set)| *is_set)
    .map(|(key, _)| {
        let why = "a worker in a unit of its own is started by systemd, which has neither: use launcher `exec`";
        (key, why.to_owned())
    })
}

/// How many places a name has; none where there is no end to them.
pub fn places(service: &wire::Service) -> Option<u32> {
    Pattern::of(&service.name).ok()?.places()
}

/// A service that two names have in common; none where they have none, or one is no name.
pub fn in_common(one: &wire::Service, other: &wire::Service) -> Option<String> {
    let names = |service: &wire::Service| -> Option<BTreeSet<String>> {
        let pattern = Pattern::of(&service.name).ok()?;
        let of = |slot| Some(pattern.name(&pattern.instance(slot)?));
        Some((0..PLACES_MAX).map_while(of).collect())
    };
    let (one, other) = (names(one)?, names(other)?);
    one.intersection(&other).next().cloned()
}

/// As many places as a pool can have.
const PLACES_MAX: u32 = 10_000;

/// A name, taken apart.
struct Pattern<'a> {
    before: &'a str,
    part: Part,
    after: &'a str,
}

enum Part {
    /// One service, of this name.
    One,
    Any,
    Range(u32, u32),
}

impl<'a> Pattern<'a> {
    fn of(name: &'a str) -> Result<Self, String> {
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(format!(
                "`{}` is no name of a service",
                name.escape_default()
            ));
        }
        if let Some((before, after)) = name.split_once(ANY) {
            let part = Part::Any;
            return match after.contains(ANY) || name.contains('{') {
                false => Ok(Self {
                    before,
                    part,
                    after,
                }),
                true => Err(format!(
                    "`{name}` has more than one part that counts places"
                )),
            };
        }
        let Some((before, rest)) = name.split_once('{') else {
            return Ok(Self {
                before: name,
                part: Part::One,
                after: "",
            });
        };
        let wrong = || format!("`{name}` has no range as in `{{1..10}}`");
        let (range, after) = rest.split_once('}').ok_or_else(wrong)?;
        let (first, last) = range.split_once("..").ok_or_else(wrong)?;
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first <= last && !after.contains('{') => Ok(Self {
                before,
                part: Part::Range(first, last),
                after,
            }),
            _ => Err(wrong()),
        }
    }

    /// Whether it is one of systemd's services.
    fn is_unit(&self) -> bool {
        let end = match self.part {
            Part::One => self.before,
            Part::Any | Part::Range(..) => self.after,
        };
        end.ends_with(".service")
    }

    fn places(&self) -> Option<u32> {
        match self.part {
            Part::One => Some(1),
            Part::Any => None,
            Part::Range(first, last) => Some((last - first).saturating_add(1)),
        }
    }

    fn instance(&self, slot: u32) -> Option<String> {
        self.places()
            .is_none_or(|places| slot < places)
            .then(|| match self.part {
                Part::One => String::new(),
                Part::Any => slot.saturating_add(1).to_string(),
                Part::Range(first, _) => first.saturating_add(slot).to_string(),
            })
    }

    fn name(&self, instance: &str) -> String {
        [self.before, instance, self.after].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, address: &str) -> wire::Service {
        wire::Service {
            name: name.to_owned(),
            address: address.to_owned(),
            connect_only: false,
        }
    }

    #[test]
    fn each_place_has_a_service_of_its_own() {
        let of = |name: &str, slot| {
            let service = service(name, "unix:/run/w-{instance}.sock");
            service_of(&service, slot).map(|(name, address)| format!("{name} {address}"))
        };

        assert_eq!(
            of("w@*.service", 0).unwrap(),
            "w@1.service unix:/run/w-1.sock"
        );
        assert_eq!(
            of("w@{5..6}.service", 1).unwrap(),
            "w@6.service unix:/run/w-6.sock"
        );
        assert_eq!(of("w.service", 0).unwrap(), "w.service unix:/run/w-.sock");
        for (name, slot, told) in [
            ("w@{5..6}.service", 2, "no service for place 2"),
            ("w.service", 1, "no service for place 1"),
            ("w@{6..5}.service", 0, "no range"),
            ("w@*-*.service", 0, "more than one part"),
            ("", 0, "no name"),
        ] {
            let why = of(name, slot).unwrap_err();
            assert!(why.contains(told), "{why}");
        }
        assert_eq!(places(&service("w@{1..10}.service", "")), Some(10));
        assert_eq!(places(&service("w@*.service", "")), None);
    }

    #[test]
    fn names_that_mean_one_service_are_found() {
        let common = |one, other| in_common(&service(one, ""), &service(other, ""));

        assert_eq!(common("w-{1..4}", "w-{4..9}").as_deref(), Some("w-4"));
        assert_eq!(common("w-*", "w-1*").as_deref(), Some("w-11"));
        assert_eq!(common("w-*", "w-7").as_deref(), Some("w-7"));
        assert_eq!(common("w-{1..4}", "w-{5..9}"), None);
        assert_eq!(common("w@*.service", "v@*.service"), None);
    }

    #[test]
    fn what_nobody_would_keep_is_refused_by_its_key() {
        type Change = fn(&mut wire::Template);
        let key = |launcher, connect_only, change: Change| {
            let mut service = service("w@*.service", "127.0.0.1:5{instance}");
            service.connect_only = connect_only;
            let mut template = wire::Template {
                service: Some(service),
                ..wire::Template::default()
            };
            change(&mut template);
            wrong_with_service(&template, launcher).map(|(key, _)| key)
        };
        let limits: Change = |template| {
            template.tree_limits = Some(wire::TreeLimits {
                pids: 7,
                ..wire::TreeLimits::default()
            });
        };
        let stop: Change = |template| {
            template.stop = Some(wire::Stop {
                signal: 2,
                ..wire::Stop::default()
            });
        };
        let log_line: Change = |template| {
            template.readiness = Some(wire::Readiness {
                kind: wire::ReadinessKind::LogLine.into(),
                ..wire::Readiness::default()
            });
        };

        for (launcher, connect_only, refused) in [
            (None, false, None),
            (Some("systemd"), false, None),
            (Some("systemd"), true, Some("limits")),
            (Some("supervisord"), false, Some("limits")),
            (Some("runit"), false, Some("limits")),
        ] {
            assert_eq!(key(launcher, connect_only, limits), refused);
        }
        assert_eq!(key(None, false, stop), Some("stop.signal"));
        assert_eq!(key(None, false, log_line), Some("readiness"));
        assert_eq!(
            key(None, false, |it| it.umask = Some(7)),
            Some("process.umask")
        );
        assert_eq!(key(None, false, |it| it.cwd = "/srv".into()), Some("cwd"));
    }

    #[test]
    fn what_does_not_go_with_a_supervisor_is_refused_by_its_key() {
        let key = |template: &wire::Template, launcher| {
            wrong_with_service(template, Some(launcher)).map(|(key, _)| key)
        };
        let command = wire::Template {
            command: "x".to_owned(),
            ..wire::Template::default()
        };
        let named = wire::Template {
            service: Some(service("w@*.service", "127.0.0.1:5{instance}")),
            ..wire::Template::default()
        };
        let nowhere = wire::Template {
            service: Some(service("w@*.service", "")),
            ..wire::Template::default()
        };
        let both = wire::Template {
            service: named.service.clone(),
            ..command.clone()
        };
        let forked = wire::Template {
            forked_from: Some(wire::ForkedFrom::default()),
            ..command.clone()
        };

        assert_eq!(key(&command, "exec"), None);
        assert_eq!(key(&command, "systemd"), None);
        assert_eq!(key(&command, "runit"), Some("service"));
        assert_eq!(key(&named, "systemd"), None);
        assert_eq!(key(&named, "exec"), Some("service"));
        let no_unit = wire::Template {
            service: Some(service("w-*", "127.0.0.1:5{instance}")),
            ..wire::Template::default()
        };
        assert_eq!(key(&no_unit, "systemd"), Some("service.name"));
        assert_eq!(key(&no_unit, "runit"), None);
        assert_eq!(key(&nowhere, "systemd"), Some("service.address"));
        assert_eq!(key(&both, "systemd"), Some("command"));
        assert_eq!(key(&forked, "systemd"), Some("forked_from"));
        assert_eq!(key(&forked, "exec"), None);
    }
}
