//! Pools whose workers are services of a supervisor: what such a one cannot have, and whose service is whose.

use std::time::Duration;

use tether_lifecycle::{LifecyclePolicy, OnAgentLoss, OnOwnerLoss};
use tether_proto::{
    Failure,
    pool::{PoolSpec, Template},
};
use tether_types::PoolName;

use super::{Resolved, invalid};

/// Within less, a keeper cannot have its service stopped and then killed before it is killed itself.
const GRACE_MIN: Duration = Duration::from_millis(500);

/// Refuses a template that the pool's launcher cannot run, and a policy that it cannot keep.
///
/// # Errors
/// Says what to do.
pub(super) fn check(
    pool: &PoolName,
    spec: &PoolSpec,
    template: &Template,
    policy: &LifecyclePolicy,
) -> Result<(), Failure> {
    let launcher = policy.launcher.name();
    if let Some((key, why)) = tether_settings::wrong_with_service(template, Some(launcher)) {
        return Err(invalid(format!(
            "the template of pool `{pool}`, which has launcher `{launcher}`, cannot have this `{key}`: {why}"
        )));
    }
    let Some(service) = &template.service else {
        return Ok(());
    };
    let kills_with_owner = policy.on_owner_exit == OnOwnerLoss::Kill;
    let kills_with_agent = policy.on_agent_loss == OnAgentLoss::Kill;
    if service.connect_only
        && (kills_with_owner || policy.on_owner_silent == OnOwnerLoss::Kill || kills_with_agent)
    {
        return Err(invalid(format!(
            "pool `{pool}` has its workers killed, and `service.connect_only` of its template leaves the service to \
             whoever runs it: remove one of them"
        )));
    }
    // systemd stops the service of a keeper that was killed. These do not, and the agent may be gone.
    if matches!(launcher, "supervisord" | "runit") && !service.connect_only {
        if kills_with_owner || kills_with_agent {
            let key = match kills_with_agent {
                true => "policy.on_agent_loss",
                false => "policy.on_owner_exit",
            };
            return Err(invalid(format!(
                "pool `{pool}` has its workers killed (`{key}` is \"kill\", or `policy.bound` is set), and {launcher} \
                 does not end its services with their keepers: have them end with their lease, or use launcher `systemd`"
            )));
        }
        let grace = template.stop.and_then(|stop| stop.grace_ms);
        if let Some(grace) = grace.map(Duration::from_millis)
            && grace < GRACE_MIN
        {
            return Err(invalid(format!(
                "the template of pool `{pool}`, which has launcher `{launcher}`, has a `stop.grace` of {grace:?}, and a \
                 service takes {GRACE_MIN:?} at least to be stopped"
            )));
        }
    }
    let wanted = spec.size.saturating_add(spec.spares);
    match tether_settings::places(service) {
        Some(places) if places < wanted => Err(invalid(format!(
            "pool `{pool}` is to have {wanted} workers, and `{}` names {places}",
            service.name
        ))),
        _ => Ok(()),
    }
}

impl Resolved {
    /// Refuses it where one of its services is a worker of `other` too: each would start, stop and restart it. Nodes that
    /// cannot be the same have services of their own, and what both only connect to is neither's.
    ///
    /// # Errors
    /// Names the service.
    pub(crate) fn check_apart_from(&self, other: &Self) -> Result<(), Failure> {
        let (Some(own), Some(others)) = (&self.template.service, &other.template.service) else {
            return Ok(());
        };
        let is_apart = self.policy.launcher != other.policy.launcher
            || (own.connect_only && others.connect_only)
            || self.wishes.labels.iter().any(|(name, value)| {
                let theirs = other.wishes.labels.get(name);
                theirs.is_some_and(|theirs| theirs != value)
            });
        if is_apart {
            return Ok(());
        }
        match tether_settings::in_common(own, others) {
            Some(name) => Err(invalid(format!(
                "pool `{}` is refused: service `{name}` is a worker of pool `{}`; give each its own, place them on \
                 different nodes (`placement.labels`), or delete that pool first",
                self.name, other.name
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tether_proto::pool::{Placement, PolicyOverrides, Service, Stop};

    use super::*;

    fn spec(name: &str, launcher: &str, service: &str) -> PoolSpec {
        let template = Template {
            service: Some(Service {
                name: service.into(),
                address: "127.0.0.1:5{instance}".into(),
                connect_only: false,
            }),
            ..Template::default()
        };
        PoolSpec {
            name: name.into(),
            mode: "supervised".into(),
            size: 2,
            template: Some(template),
            policy: Some(PolicyOverrides {
                launcher: Some(launcher.into()),
                ..PolicyOverrides::default()
            }),
            ..PoolSpec::default()
        }
    }

    fn resolve(spec: PoolSpec) -> Result<Resolved, Failure> {
        super::super::resolve(spec, &Default::default(), &Default::default())
    }

    #[test]
    fn what_only_systemd_can_keep_is_refused_elsewhere_with_what_to_do() {
        type Change = fn(&mut PoolSpec);
        let changes: [(Change, &str); 4] = [
            (
                |spec| {
                    spec.policy.as_mut().unwrap().on_agent_loss = Some("kill".into());
                },
                "use launcher `systemd`",
            ),
            (
                |spec| {
                    spec.policy.as_mut().unwrap().on_owner_exit = Some("kill".into());
                },
                "`policy.on_owner_exit`",
            ),
            (
                |spec| spec.policy.as_mut().unwrap().bound = Some(true),
                "`policy.bound`",
            ),
            (
                |spec| {
                    spec.template.as_mut().unwrap().stop = Some(Stop {
                        grace_ms: Some(0),
                        ..Stop::default()
                    });
                },
                "`stop.grace`",
            ),
        ];
        for (change, told) in changes {
            for (launcher, service) in [("supervisord", "w-*"), ("runit", "w-*")] {
                let mut spec = spec("digits", launcher, service);
                resolve(spec.clone()).unwrap();
                change(&mut spec);
                let refused = resolve(spec).unwrap_err().to_string();
                assert!(refused.contains(told), "{refused}");
            }
            let mut spec = spec("digits", "systemd", "w@*.service");
            change(&mut spec);
            resolve(spec).unwrap();
        }
    }

    #[test]
    fn a_service_is_a_worker_of_one_pool() {
        let placed = |spec: PoolSpec, zone: &str| PoolSpec {
            placement: Some(Placement {
                labels: [("zone".to_owned(), zone.to_owned())].into(),
                ..Placement::default()
            }),
            ..spec
        };
        let connected = |mut spec: PoolSpec| {
            let template = spec.template.as_mut().unwrap();
            template.service.as_mut().unwrap().connect_only = true;
            spec
        };
        let apart = |one, other| {
            let (one, other) = (resolve(one).unwrap(), resolve(other).unwrap());
            one.check_apart_from(&other)
        };
        let (one, other) = (spec("a", "runit", "w-*"), spec("b", "runit", "w-{2..3}"));

        let refused = apart(one.clone(), other.clone()).unwrap_err().to_string();
        assert!(
            refused.contains("service `w-2` is a worker of pool `b`"),
            "{refused}"
        );
        apart(one.clone(), spec("b", "runit", "v-*")).unwrap();
        apart(one.clone(), spec("b", "supervisord", "w-*")).unwrap();
        apart(placed(one.clone(), "x"), placed(other.clone(), "y")).unwrap();
        apart(placed(one.clone(), "x"), placed(other.clone(), "x")).unwrap_err();
        apart(connected(one), connected(other)).unwrap();
    }
}
