//! From what a pool's owner asks for to what is run: checked, resolved, every default filled in.

mod services;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tether_lifecycle::{
    Chosen, Facts, LifecyclePolicy, Mode, ModeChoice, PolicyOverrides, Refusal, Surroundings,
    UnknownWord, detect,
};
use tether_placement::{
    Budget, Counts, Labels, Needs, Preference, Unusable, check_label, check_resource,
};
use tether_proto::{
    Failure,
    pool::{self, PoolSpec, RestartMode, Template},
};
use tether_supervise::{Delay, Intensity, Plan, Recycle, RestartPolicy, StartTerms, StopTerms};
use tether_types::{PoolName, Reason, TemplateName, WEIGHT_MAX};

/// More workers than this in one pool, or started within one second, are a slip of the keyboard.
const SIZE_MAX: u32 = 10_000;

/// Templates the arbiter's configuration names.
pub(crate) type Templates = BTreeMap<TemplateName, Template>;

/// A pool that can be run.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    pub(crate) name: PoolName,
    /// As asked for, with the template in place and the mode chosen.
    pub(crate) spec: PoolSpec,
    pub(crate) template: Template,
    pub(crate) mode: Mode,
    /// Why this mode; empty where the owner chose it.
    pub(crate) mode_why: String,
    pub(crate) policy: LifecyclePolicy,
    pub(crate) plan: Arc<Plan>,
    /// The pools it depends on.
    pub(crate) depends_on: Vec<PoolName>,
    pub(crate) wishes: Wishes,
    pub(crate) budget: Budget,
}

/// What a pool asks of the nodes of its workers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    labels: Labels,
    pub(crate) resources: Counts,
    pub(crate) preference: Preference,
}

impl Wishes {
    /// As the planner is asked.
    pub(crate) fn needs(&self) -> Needs<'_> {
        Needs {
            labels: &self.labels,
            resources: &self.resources,
        }
    }
}

impl Resolved {
    /// Whether workers that run are replaced where a change outdates them.
    pub(crate) fn replaces_on_change(&self) -> bool {
        let rollout = self.spec.rollout.unwrap_or_default();
        rollout.on_change() != pool::OnChange::NextStart
    }

    /// Whether a worker that was started for `self` has to be replaced to be what `next` asks for. What the
    /// arbiter alone goes by counts for it at once.
    pub(crate) fn is_outdated_by(&self, next: &Self) -> bool {
        let started = |template: &Template| Template {
            recycle: None,
            restart: None,
            ..template.clone()
        };
        let needs = |pool: &Self| (pool.wishes.labels.clone(), pool.wishes.resources.clone());
        started(&self.template) != started(&next.template) || needs(self) != needs(next)
    }
}

/// Checks and resolves `spec`.
///
/// # Errors
/// Names the field, what is wrong with it, and what to do.
pub(crate) fn resolve(
    spec: PoolSpec,
    templates: &Templates,
    surroundings: &Surroundings,
) -> Result<Resolved, Failure> {
    let name = PoolName::new(&spec.name).map_err(|error| invalid(error.to_string()))?;
    if name.as_str() == tether_settings::FORKSERVER_POOL {
        return Err(invalid(format!(
            "`{name}` names the processes from which workers are forked: give the pool another name"
        )));
    }
    let counts = [
        ("size", spec.size),
        ("spares", spec.spares),
        ("starts_per_second", spec.starts_per_second),
        ("size and spares", spec.size.saturating_add(spec.spares)),
    ];
    if let Some((field, count)) = counts.into_iter().find(|(_, count)| *count > SIZE_MAX) {
        return Err(invalid(format!(
            "`{field}` of pool `{name}` is {count}, at most {SIZE_MAX} are allowed"
        )));
    }
    let depends_on = spec.depends_on.iter().map(|other| {
        PoolName::new(other)
            .map_err(|error| invalid(format!("`depends_on` of pool `{name}`: {error}")))
    });
    let depends_on = depends_on.collect::<Result<Vec<_>, _>>()?;
    let wishes = wishes(&name, spec.placement.as_ref())?;
    let template = template(&name, &spec, templates)?;
    let budget = budget(&name, &spec, template.service.is_some())?;
    let plan = Arc::new(plan(&name, &template)?);

    let choice = if spec.mode.is_empty() {
        ModeChoice::Auto
    } else {
        spec.mode.parse().map_err(word)?
    };
    let chosen = match choice {
        ModeChoice::Fixed(mode) => Chosen {
            mode,
            launcher: None,
            why: String::new(),
        },
        ModeChoice::Auto => {
            // A mode that this template cannot have would be refused right after it was chosen.
            let mut found = surroundings.clone();
            found.launchers.retain(|launcher| {
                tether_settings::wrong_with_service(&template, Some(launcher.name())).is_none()
            });
            let chosen = detect(&found);
            tracing::info!(pool = %name, "{}", chosen.why);
            chosen
        }
    };
    let mut spec = spec;
    if let Some(launcher) = chosen.launcher {
        // Said in the record, as the mode is: read again, it is not to be chosen again.
        let policy = spec.policy.get_or_insert_default();
        policy
            .launcher
            .get_or_insert_with(|| launcher.name().to_owned());
    }
    let (mode, mode_why) = (chosen.mode, chosen.why);
    let policy = mode
        .policy(&overrides(spec.policy.as_ref())?)
        .map_err(|refusal| refused(&name, &refusal))?;
    services::check(&name, &spec, &template, &policy)?;

    let spec = PoolSpec {
        mode: mode.name().to_owned(),
        template_name: String::new(),
        template: Some(template.clone()),
        ..spec
    };
    Ok(Resolved {
        name,
        spec,
        template,
        mode,
        mode_why,
        policy,
        plan,
        depends_on,
        wishes,
        budget,
    })
}

/// Refuses a pool whose mode cannot keep its promises here.
///
/// # Errors
/// Says what is missing and how to get it.
pub(crate) fn check_needs(pool: &Resolved, facts: &Facts) -> Result<(), Failure> {
    tether_lifecycle::check(&pool.policy, pool.mode, facts)
        .map_err(|refusal| refused(&pool.name, &refusal))
}

fn invalid(text: String) -> Failure {
    Failure::new(Reason::ConfigInvalid, text)
}

fn word(unknown: UnknownWord) -> Failure {
    invalid(unknown.to_string())
}

fn refused(pool: &PoolName, refusal: &Refusal) -> Failure {
    Failure::new(
        Reason::ModeForbids,
        format!("pool `{pool}` is refused: {refusal}"),
    )
    .fact("field", refusal.field)
}

fn template(pool: &PoolName, spec: &PoolSpec, templates: &Templates) -> Result<Template, Failure> {
    let template = match (&spec.template, spec.template_name.as_str()) {
        (Some(template), "") => template.clone(),
        (None, "") => {
            return Err(invalid(format!(
                "pool `{pool}` names no template: set `template`"
            )));
        }
        (Some(_), _) => {
            return Err(invalid(format!(
                "pool `{pool}` both names a template and brings one: keep one of them"
            )));
        }
        (None, name) => {
            let known = TemplateName::new(name)
                .ok()
                .and_then(|name| templates.get(&name));
            known.cloned().ok_or_else(|| {
                let names: Vec<_> = templates.keys().map(TemplateName::as_str).collect();
                let known = if names.is_empty() { "none is known".to_owned() } else { format!("known are: {}", names.join(", ")) };
                Failure::new(
                    Reason::UnknownTemplate,
                    format!("pool `{pool}` asks for template `{}`, and {known}; write it as [template.{0}] into the pool's file or the arbiter's configuration", name.escape_default()),
                )
            })?
        }
    };
    if template.command.is_empty() && template.service.is_none() {
        return Err(invalid(format!(
            "the template of pool `{pool}` has no `command`"
        )));
    }
    if template.weight > WEIGHT_MAX {
        return Err(invalid(format!(
            "the template of pool `{pool}` has a `weight` of {}, at most {WEIGHT_MAX} are allowed",
            template.weight
        )));
    }
    Ok(template)
}

fn wishes(pool: &PoolName, placement: Option<&pool::Placement>) -> Result<Wishes, Failure> {
    let wrong = |key: &str, error: Unusable| {
        invalid(format!("`placement.{key}` of pool `{pool}`: {error}"))
    };
    let Some(placement) = placement else {
        return Ok(Wishes::default());
    };
    for (name, value) in &placement.labels {
        check_label(name, value).map_err(|error| wrong("labels", error))?;
    }
    for (name, &count) in &placement.resources {
        check_resource(name, count).map_err(|error| wrong("resources", error))?;
    }
    let counts = placement.resources.iter().filter(|(_, count)| **count > 0);
    Ok(Wishes {
        labels: placement.labels.clone().into_iter().collect(),
        resources: counts.map(|(name, count)| (name.clone(), *count)).collect(),
        preference: match placement.prefer() {
            pool::Preference::Unspecified | pool::Preference::Spread => Preference::Spread,
            pool::Preference::Pack => Preference::Pack,
        },
    })
}

fn budget(pool: &PoolName, spec: &PoolSpec, is_service: bool) -> Result<Budget, Failure> {
    let rollout = spec.rollout.unwrap_or_default();
    // There is no other service to step in for one that is replaced, where each place has its own.
    let (surge, unavailable) = match is_service {
        true => (0, 1),
        false => (Budget::default().surge(), 0),
    };
    let surge = rollout.surge.unwrap_or(surge);
    let unavailable = rollout.max_unavailable.unwrap_or(unavailable);
    if let Some((key, count)) = [("surge", surge), ("max_unavailable", unavailable)]
        .into_iter()
        .find(|(_, count)| *count > SIZE_MAX)
    {
        return Err(invalid(format!(
            "`rollout.{key}` of pool `{pool}` is {count}, at most {SIZE_MAX} are allowed"
        )));
    }
    // A spare serves for a worker that is being replaced: missing it costs the pool nothing.
    let budget = Budget::new(surge, unavailable.saturating_add(spec.spares));
    budget.map_err(|error| invalid(format!("`rollout` of pool `{pool}`: {error}")))
}

fn plan(pool: &PoolName, template: &Template) -> Result<Plan, Failure> {
    if let Some((key, why)) = tether_settings::wrong_with_fork(template) {
        return Err(invalid(format!(
            "the template of pool `{pool}` has `forked_from`, and cannot have this `{key}`: {why}"
        )));
    }
    let standard = Plan::default();
    let restart = template.restart.unwrap_or_default();
    let millis =
        |given: Option<u64>, standard: Duration| given.map_or(standard, Duration::from_millis);
    let initial = millis(restart.delay_ms, Duration::from_millis(100));
    let plan = Plan {
        start: StartTerms {
            timeout: match template
                .readiness
                .as_ref()
                .map_or(0, |readiness| readiness.timeout_ms)
            {
                0 => Duration::from_secs(30),
                ms => Duration::from_millis(ms),
            },
        },
        stop: StopTerms {
            grace: millis(
                template.stop.and_then(|stop| stop.grace_ms),
                standard.stop.grace,
            ),
        },
        restart: match restart.mode() {
            RestartMode::Unspecified | RestartMode::Always => RestartPolicy::Always,
            RestartMode::Transient => RestartPolicy::Transient,
            RestartMode::Never => RestartPolicy::Never,
        },
        delay: Delay {
            initial,
            max: millis(restart.max_delay_ms, Duration::from_secs(30).max(initial)),
            ..standard.delay
        },
        intensity: Intensity {
            max_restarts: restart
                .max_restarts
                .unwrap_or(standard.intensity.max_restarts),
            window: millis(restart.window_ms, standard.intensity.window),
        },
        recycle: recycle(template),
    };
    plan.validate().map_err(|error| {
        invalid(format!(
            "the template of pool `{pool}` cannot be run: {error}"
        ))
    })?;
    Ok(plan)
}

fn recycle(template: &Template) -> Recycle {
    let wanted = template.recycle.unwrap_or_default();
    let unless_zero = |value: u64| Some(value).filter(|&value| value != 0);
    Recycle {
        max_lifetime: unless_zero(wanted.max_lifetime_ms).map(Duration::from_millis),
        max_memory_bytes: unless_zero(wanted.max_memory_bytes),
        max_calls: unless_zero(wanted.max_calls),
    }
}

fn overrides(given: Option<&pool::PolicyOverrides>) -> Result<PolicyOverrides, Failure> {
    fn read<T: std::str::FromStr<Err = UnknownWord>>(
        text: Option<&String>,
    ) -> Result<Option<T>, Failure> {
        text.map(|text| text.parse()).transpose().map_err(word)
    }
    let Some(given) = given else {
        return Ok(PolicyOverrides::default());
    };
    Ok(PolicyOverrides {
        launcher: read(given.launcher.as_ref())?,
        on_owner_exit: read(given.on_owner_exit.as_ref())?,
        on_owner_silent: read(given.on_owner_silent.as_ref())?,
        on_owner_goodbye: read(given.on_owner_goodbye.as_ref())?,
        on_agent_loss: read(given.on_agent_loss.as_ref())?,
        heartbeat_interval: given.heartbeat_interval_ms.map(Duration::from_millis),
        heartbeat_timeout: given.heartbeat_timeout_ms.map(Duration::from_millis),
        partition_grace: given.partition_grace_ms.map(Duration::from_millis),
        job_ttl: given.job_ttl_ms.map(Duration::from_millis),
        beam_crash_policy: read(given.beam_crash_policy.as_ref())?,
        bound: given.bound,
    })
}

#[cfg(test)]
mod tests {
    use tether_lifecycle::{Launcher, OnAgentLoss, OnOwnerLoss};

    use super::*;

    fn spec(template_name: &str) -> PoolSpec {
        PoolSpec {
            name: "digits".into(),
            template_name: template_name.into(),
            size: 2,
            ..PoolSpec::default()
        }
    }

    fn templates() -> Templates {
        let template = Template {
            command: "python3".into(),
            ..Template::default()
        };
        [(TemplateName::new("digits").unwrap(), template)].into()
    }

    #[test]
    fn an_unknown_template_is_refused_with_those_that_are_known() {
        let failure = resolve(spec("digit"), &templates(), &Default::default()).unwrap_err();

        assert_eq!(failure.reason(), Reason::UnknownTemplate);
        assert!(
            failure.to_string().contains("known are: digits"),
            "{failure}"
        );
    }

    #[test]
    fn auto_says_what_it_chose_and_the_record_holds_the_choice() {
        let resolved = resolve(spec("digits"), &templates(), &Default::default()).unwrap();

        assert_eq!(
            (resolved.mode, resolved.spec.mode.as_str()),
            (Mode::Coupled, "coupled")
        );
        assert!(
            resolved.mode_why.contains("chose mode `coupled`"),
            "{}",
            resolved.mode_why
        );
        assert!(resolved.spec.template.is_some() && resolved.spec.template_name.is_empty());
    }

    #[test]
    fn auto_takes_the_launcher_that_there_is_and_the_record_holds_it() {
        let found = Surroundings {
            launchers: vec![Launcher::Exec, Launcher::Runit],
            ..Default::default()
        };

        let of_service = || {
            let service = pool::Service {
                name: "digits-*".into(),
                address: "unix:/run/digits/{instance}.sock".into(),
                connect_only: false,
            };
            let template = Template {
                service: Some(service),
                ..Template::default()
            };
            PoolSpec {
                template: Some(template),
                ..spec("")
            }
        };

        let resolved = resolve(of_service(), &templates(), &found).unwrap();
        let again = resolve(resolved.spec.clone(), &templates(), &Default::default()).unwrap();

        for resolved in [resolved, again] {
            assert_eq!(resolved.mode, Mode::Supervised);
            assert_eq!(resolved.policy.launcher, Launcher::Runit);
        }
        let mut own = of_service();
        own.policy = Some(pool::PolicyOverrides {
            launcher: Some("supervisord".into()),
            ..Default::default()
        });
        let kept = resolve(own, &templates(), &found).unwrap();
        assert_eq!(kept.policy.launcher, Launcher::Supervisord);
    }

    #[test]
    fn auto_takes_no_launcher_that_the_template_cannot_have() {
        let found = Surroundings {
            launchers: vec![Launcher::Exec, Launcher::Runit],
            ..Default::default()
        };

        let resolved = resolve(spec("digits"), &templates(), &found).unwrap();

        assert_eq!(resolved.mode, Mode::Coupled);
        assert_eq!(resolved.policy.launcher, Launcher::Exec);
    }

    #[test]
    fn every_field_of_the_policy_wins_over_the_preset_of_its_mode() {
        fn word(text: &str) -> Option<String> {
            Some(text.to_owned())
        }
        let preset = Mode::Distributed.preset();
        let supervised = Mode::Supervised.preset();
        let (kill, go_on) = (OnOwnerLoss::Kill, OnOwnerLoss::Continue);
        let run_out = OnOwnerLoss::RunForTimeout;
        let ms = Duration::from_millis;
        let given = |mode: &str, policy: pool::PolicyOverrides| {
            let mut spec = spec("digits");
            (spec.mode, spec.policy) = (mode.to_owned(), Some(policy));
            resolve(spec, &templates(), &Default::default())
                .unwrap()
                .policy
        };
        // All of them; a new one does not compile before it is looked at here.
        let all = pool::PolicyOverrides {
            launcher: word("systemd"),
            on_owner_exit: word("kill"),
            on_owner_silent: word("run_for_timeout"),
            on_owner_goodbye: word("continue"),
            heartbeat_interval_ms: Some(1_000),
            heartbeat_timeout_ms: Some(7_000),
            beam_crash_policy: None,
            bound: None,
            on_agent_loss: word("kill"),
            partition_grace_ms: Some(9_000),
            job_ttl_ms: Some(11_000),
        };

        assert_eq!(
            given("distributed", all),
            LifecyclePolicy {
                launcher: Launcher::Systemd,
                reach: preset.reach,
                on_owner_exit: kill,
                on_owner_silent: run_out,
                on_owner_goodbye: go_on,
                on_agent_loss: OnAgentLoss::Kill,
                heartbeat_interval: ms(1_000),
                heartbeat_timeout: ms(7_000),
                partition_grace: ms(9_000),
                job_ttl: ms(11_000),
            }
        );
        let crash = |mode: &str, text: &str| {
            let policy = given(
                mode,
                pool::PolicyOverrides {
                    beam_crash_policy: word(text),
                    ..Default::default()
                },
            );
            (policy.on_owner_exit, policy.on_owner_silent)
        };
        assert_eq!(crash("distributed", "terminate"), (run_out, run_out));
        assert_eq!(crash("independent", "continue"), (go_on, go_on));
        let bound = pool::PolicyOverrides {
            bound: Some(true),
            ..Default::default()
        };
        assert_eq!(
            given("supervised", bound),
            LifecyclePolicy {
                on_owner_exit: kill,
                on_owner_goodbye: kill,
                ..supervised
            }
        );
    }

    #[test]
    fn a_limit_of_zero_is_none() {
        let recycle = |recycle| {
            let template = Template {
                command: "python3".into(),
                recycle: Some(recycle),
                ..Template::default()
            };
            let spec = PoolSpec {
                template: Some(template),
                ..spec("")
            };
            let resolved = resolve(spec, &templates(), &Default::default());
            resolved.unwrap().plan.recycle
        };

        let all = recycle(pool::Recycle {
            max_lifetime_ms: 5_000,
            max_memory_bytes: 7,
            max_calls: 9,
        });

        assert_eq!(all.max_lifetime, Some(Duration::from_secs(5)));
        assert_eq!((all.max_memory_bytes, all.max_calls), (Some(7), Some(9)));
        assert_eq!(recycle(pool::Recycle::default()), Recycle::default());
    }

    #[test]
    fn what_a_fork_cannot_have_is_refused() {
        let template = Template {
            command: "python3".into(),
            args: vec!["worker.py".into()],
            pty: true,
            forked_from: Some(pool::ForkedFrom::default()),
            ..Template::default()
        };
        let spec = PoolSpec {
            template: Some(template),
            ..spec("")
        };

        let refused = resolve(spec, &templates(), &Default::default()).unwrap_err();

        assert!(refused.to_string().contains("`process.pty`"), "{refused}");
        let named = PoolSpec {
            name: tether_settings::FORKSERVER_POOL.into(),
            ..self::spec("")
        };
        let refused = resolve(named, &templates(), &Default::default()).unwrap_err();
        assert!(refused.to_string().contains("another name"), "{refused}");
    }

    #[test]
    fn a_weight_that_no_client_could_be_told_is_refused() {
        let heavy = |weight| {
            let template = Template {
                weight,
                ..templates().pop_first().unwrap().1
            };
            let all = [(TemplateName::new("digits").unwrap(), template)].into();
            resolve(spec("digits"), &all, &Default::default())
        };

        assert_eq!(heavy(WEIGHT_MAX).unwrap().template.weight, WEIGHT_MAX);
        let refused = heavy(WEIGHT_MAX + 1).unwrap_err();
        assert!(refused.to_string().contains("`weight`"), "{refused}");
    }

    #[test]
    fn what_is_wrong_is_named_before_anything_is_started() {
        let wrong = |change: fn(&mut PoolSpec)| {
            let mut spec = spec("digits");
            change(&mut spec);
            resolve(spec, &templates(), &Default::default())
                .unwrap_err()
                .to_string()
        };

        assert!(
            wrong(|spec| spec.mode = "couple".into()).contains("expected one of: auto, coupled")
        );
        assert!(wrong(|spec| spec.size = 1_000_000).contains("at most 10000"));
        assert!(wrong(|spec| (spec.size, spec.spares) = (9_999, 2)).contains("`size and spares`"));
        assert!(wrong(|spec| spec.starts_per_second = 10_001).contains("`starts_per_second`"));
        assert!(wrong(|spec| spec.depends_on = vec!["a b".into()]).contains("`depends_on`"));
        assert!(wrong(|spec| spec.name = "a/b".into()).contains("pool name `a/b`"));
        let placement = |labels: (&str, &str), resource: (&str, u32)| pool::Placement {
            labels: [(labels.0.to_owned(), labels.1.to_owned())].into(),
            resources: [(resource.0.to_owned(), resource.1)].into(),
            ..Default::default()
        };
        let wrong_placement = |placement| {
            let spec = PoolSpec {
                placement: Some(placement),
                ..spec("digits")
            };
            resolve(spec, &templates(), &Default::default())
                .unwrap_err()
                .to_string()
        };
        let label = wrong_placement(placement(("zone", "a b"), ("gpu", 1)));
        assert!(
            label.contains("`placement.labels`") && label.contains("as in"),
            "{label}"
        );
        let many = wrong_placement(placement(("zone", "a"), ("memory", 64_000)));
        assert!(
            many.contains("`placement.resources`") && many.contains("`limits`"),
            "{many}"
        );
        let budget = wrong(|spec| {
            spec.rollout = Some(pool::Rollout {
                surge: Some(0),
                ..Default::default()
            });
        });
        assert!(
            budget.contains("`rollout` of pool `digits`") && budget.contains("allow one"),
            "{budget}"
        );
        assert!(wrong(|spec| spec.template_name.clear()).contains("names no template"));
        assert!(
            wrong(|spec| spec.policy = Some(pool::PolicyOverrides {
                on_owner_exit: Some("maybe".into()),
                ..Default::default()
            }))
            .contains("expected one of: kill, run_for_timeout, continue")
        );
    }
}
