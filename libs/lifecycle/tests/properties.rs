//! One property per invariant of the crate's front page, over every override there is.

use std::time::Duration;

use proptest::{option, prelude::*, sample::select};
use tether_lifecycle::{
    BeamCrashPolicy, Launcher, LifecyclePolicy, Loss, Mode, OnAgentLoss, OnOwnerLoss,
    PolicyOverrides, Verdict,
};

fn overrides() -> impl Strategy<Value = PolicyOverrides> {
    let answer = || option::weighted(0.4, select(OnOwnerLoss::ALL));
    let span = || {
        let millis = prop_oneof![Just(0), 0..200u64, 1_000..120_000u64];
        let edges =
            prop_oneof![9 => millis.prop_map(Duration::from_millis), 1 => Just(Duration::MAX)];
        option::weighted(0.4, edges)
    };
    (
        option::weighted(0.4, select(Launcher::ALL)),
        (answer(), answer(), answer()),
        option::weighted(0.4, select(OnAgentLoss::ALL)),
        (span(), span(), span(), span()),
        option::weighted(0.2, select(BeamCrashPolicy::ALL)),
        option::weighted(0.2, any::<bool>()),
    )
        .prop_map(
            |(launcher, owner, on_agent_loss, heartbeat, beam_crash_policy, bound)| {
                PolicyOverrides {
                    launcher,
                    on_owner_exit: owner.0,
                    on_owner_silent: owner.1,
                    on_owner_goodbye: owner.2,
                    on_agent_loss,
                    heartbeat_interval: heartbeat.0,
                    heartbeat_timeout: heartbeat.1,
                    partition_grace: heartbeat.2,
                    job_ttl: heartbeat.3,
                    beam_crash_policy,
                    bound,
                }
            },
        )
}

/// The longest a verdict lets a worker live when nothing else happens; none where it sets no end.
fn life_left(verdict: Verdict, lease: Duration) -> Option<Duration> {
    match verdict {
        Verdict::KillNow => Some(Duration::ZERO),
        Verdict::RunFor(span) => Some(span),
        Verdict::HoldUntilLease { grace } => Some(lease + grace),
        Verdict::Continue | Verdict::Restart | Verdict::NotApplicable => None,
    }
}

/// Takes back the override a refusal names, as its fix offers.
fn without(mut overrides: PolicyOverrides, field: &str) -> PolicyOverrides {
    match field {
        "launcher" => overrides.launcher = None,
        "on_owner_exit" => overrides.on_owner_exit = None,
        "on_owner_goodbye" => overrides.on_owner_goodbye = None,
        "beam_crash_policy" => overrides.beam_crash_policy = None,
        "bound" => overrides.bound = None,
        "heartbeat_interval" => overrides.heartbeat_interval = None,
        "partition_grace" => overrides.partition_grace = None,
        // Its complaint may be about the grace it is compared with.
        "job_ttl" => (overrides.job_ttl, overrides.partition_grace) = (None, None),
        // Its complaint may be about the other half of the pair.
        "heartbeat_timeout" => {
            overrides.heartbeat_timeout = None;
            overrides.heartbeat_interval = None;
        }
        other => panic!("no setting is called {other}"),
    }
    overrides
}

fn kept<T: PartialEq>(asked: Option<T>, got: T) -> bool {
    asked.is_none_or(|asked| asked == got)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// M1
    #[test]
    fn a_coupled_worker_never_outlives_the_proven_end_of_its_owner(overrides in overrides()) {
        if let Ok(policy) = Mode::Coupled.policy(&overrides) {
            prop_assert_eq!(policy.on(Loss::OwnerExited), Verdict::KillNow);
            prop_assert_eq!(policy.on(Loss::OwnerLeft), Verdict::KillNow);
        }
    }

    /// M2
    #[test]
    fn a_worker_without_owner_and_agent_has_an_end(
        mode in select(Mode::ALL), overrides in overrides(),
    ) {
        let lease = Duration::from_secs(20);
        if let Ok(policy) = mode.policy(&overrides) {
            for owner_loss in [Loss::OwnerExited, Loss::OwnerSilent, Loss::OwnerLeft] {
                let owner = life_left(policy.on(owner_loss), lease);
                let agent = life_left(policy.on(Loss::AgentGone), lease);
                let permitted = owner.into_iter().chain(agent).min();

                let longest = lease + policy.partition_grace;
                prop_assert!(permitted.is_some_and(|life| life <= longest), "{permitted:?}");
                prop_assert!(longest <= lease + Duration::from_secs(31 * 24 * 3600));
            }
        }
    }

    /// M3
    #[test]
    fn an_accepted_policy_says_what_was_asked_for_and_answers_every_loss(
        mode in select(Mode::ALL), overrides in overrides(),
    ) {
        if let Ok(policy) = mode.policy(&overrides) {
            for &loss in Loss::ALL {
                if let Verdict::RunFor(span) = policy.on(loss) {
                    prop_assert_eq!(span, policy.heartbeat_timeout);
                }
            }
            prop_assert!(kept(overrides.launcher, policy.launcher));
            prop_assert!(kept(overrides.on_owner_exit, policy.on_owner_exit));
            prop_assert!(kept(overrides.on_owner_silent, policy.on_owner_silent));
            prop_assert!(kept(overrides.on_owner_goodbye, policy.on_owner_goodbye));
            prop_assert!(kept(overrides.on_agent_loss, policy.on_agent_loss));
            prop_assert!(kept(overrides.heartbeat_interval, policy.heartbeat_interval));
            prop_assert!(kept(overrides.heartbeat_timeout, policy.heartbeat_timeout));
            prop_assert!(kept(overrides.partition_grace, policy.partition_grace));
            prop_assert!(kept(overrides.job_ttl, policy.job_ttl));
            prop_assert!(policy.job_ttl.is_zero() || policy.job_ttl >= policy.partition_grace);
            prop_assert!(policy.heartbeat_timeout >= policy.heartbeat_interval * 2);
            prop_assert!(!policy.heartbeat_interval.is_zero());
        }
    }

    /// M3
    #[test]
    fn a_refusal_names_a_setting_and_taking_it_back_leads_to_a_policy(
        mode in select(Mode::ALL), overrides in overrides(),
    ) {
        let mut overrides = overrides;
        for _ in 0..11 {
            let Err(refusal) = mode.policy(&overrides) else { return Ok(()) };
            prop_assert!(!refusal.problem.is_empty() && !refusal.fix.is_empty());
            overrides = without(overrides, refusal.field);
        }
        prop_assert!(mode.policy(&overrides).is_ok(), "{:?}", mode.policy(&overrides));
    }
}

#[test]
fn beam_crash_policy_and_bound_are_short_for_the_fields_they_set() {
    let overriding = |mode: Mode, change: fn(&mut PolicyOverrides)| -> LifecyclePolicy {
        let mut overrides = PolicyOverrides::default();
        change(&mut overrides);
        mode.policy(&overrides).unwrap()
    };

    let terminate = overriding(Mode::Distributed, |o| {
        o.beam_crash_policy = Some(BeamCrashPolicy::Terminate);
    });
    let bound = overriding(Mode::Supervised, |o| o.bound = Some(true));

    let minute = Verdict::RunFor(Duration::from_secs(60));
    assert_eq!(
        (
            terminate.on(Loss::OwnerExited),
            terminate.on(Loss::OwnerSilent)
        ),
        (minute, minute)
    );
    assert_eq!(bound.on(Loss::OwnerExited), Verdict::KillNow);
    assert_eq!(bound.on(Loss::OwnerLeft), Verdict::KillNow);
    assert_eq!(bound.on(Loss::OwnerSilent), Verdict::Continue);
}

#[test]
fn contradictions_are_refused_with_the_mode_that_was_meant() {
    let refusal = |mode: Mode, change: fn(&mut PolicyOverrides)| {
        let mut overrides = PolicyOverrides::default();
        change(&mut overrides);
        mode.policy(&overrides).unwrap_err().to_string()
    };
    let told = [
        (
            refusal(Mode::Coupled, |o| {
                o.on_owner_exit = Some(OnOwnerLoss::Continue)
            }),
            "mode = \"independent\"",
        ),
        (
            refusal(Mode::Independent, |o| o.bound = Some(true)),
            "mode `supervised`",
        ),
        (
            refusal(Mode::Coupled, |o| o.launcher = Some(Launcher::Connect)),
            "mode `independent`",
        ),
        (
            refusal(Mode::Coupled, |o| {
                o.heartbeat_interval = Some(Duration::from_secs(6))
            }),
            "`heartbeat_timeout`: 10s is less than twice `heartbeat_interval` (6s), so one lost heartbeat would end",
        ),
        (
            refusal(Mode::Distributed, |o| {
                o.job_ttl = Some(Duration::from_secs(30))
            }),
            "`job_ttl`: 30s is less than `partition_grace` (40s), so a worker with a job would be given less",
        ),
        (
            refusal(Mode::Independent, |o| {
                o.partition_grace = Some(Duration::MAX)
            }),
            "`partition_grace`: 18446744073709551615.999999999s is more than 2678400s, so the place of a worker",
        ),
    ];

    for (refusal, part) in told {
        assert!(refusal.contains(part), "{refusal}");
    }
}
