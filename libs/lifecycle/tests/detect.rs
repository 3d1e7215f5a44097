//! What `auto` chooses, over everything that can be found.

use proptest::{collection::vec, option, prelude::*, sample::select};
use tether_lifecycle::{
    Facts, Launcher, Mode, OwnerSight, PolicyOverrides, Scheduler, Surroundings, Systemd, check,
    detect,
};

fn scheduler() -> impl Strategy<Value = Scheduler> {
    any::<(bool, bool, bool)>().prop_map(|(claimed, given, placed)| Scheduler {
        claimed,
        given,
        placed,
    })
}

fn surroundings() -> impl Strategy<Value = Surroundings> {
    let systemd = prop_oneof![
        Just(Systemd::Absent),
        Just(Systemd::Usable("/run/systemd/private".to_owned())),
        Just(Systemd::Refused("permission denied".to_owned())),
    ];
    let owner = prop_oneof![
        Just(OwnerSight::Observed),
        Just(OwnerSight::NoIdentity),
        Just(OwnerSight::Elsewhere),
    ];
    (
        (scheduler(), scheduler(), systemd),
        any::<(bool, bool, bool, bool)>(),
        vec(select(Launcher::ALL), 0..4),
        option::of(owner),
    )
        .prop_map(
            |((kubernetes, nomad, systemd), flags, launchers, owner)| Surroundings {
                kubernetes,
                nomad,
                systemd,
                embedded: flags.0,
                in_session: flags.1,
                first: flags.2,
                delegated: flags.3,
                launchers,
                owner,
            },
        )
}

/// What a pool finds where an agent runs commands.
fn facts(found: &Surroundings) -> Facts {
    Facts {
        launchers: found.launchers.clone(),
        owner: found.owner.unwrap_or(OwnerSight::Observed),
        arbiter: true,
        discovery: true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn what_is_chosen_is_accepted_wherever_an_agent_runs_commands(found in surroundings()) {
        let mut found = found;
        found.launchers.push(Launcher::Exec);
        if found.embedded {
            // A port's own agent is on the owner's machine.
            found.owner = Some(OwnerSight::Observed);
        }
        let chosen = detect(&found);
        let overrides = PolicyOverrides { launcher: chosen.launcher, ..Default::default() };

        let policy = chosen.mode.policy(&overrides).unwrap();

        prop_assert_eq!(check(&policy, chosen.mode, &facts(&found)), Ok(()), "{}", chosen.why);
    }

    #[test]
    fn the_reason_names_the_mode_and_one_trace_never_makes_a_scheduler(found in surroundings()) {
        let chosen = detect(&found);
        let two = |traces: Scheduler| {
            [traces.claimed, traces.given, traces.placed].iter().filter(|seen| **seen).count() > 1
        };
        let scheduled = two(found.kubernetes) || two(found.nomad);

        prop_assert!(chosen.why.contains(&format!("`{}`", chosen.mode)), "{}", chosen.why);
        prop_assert_eq!(chosen.mode == Mode::Distributed, scheduled && !found.embedded);
    }

    #[test]
    fn nothing_is_supervised_that_ends_with_a_session_or_that_nobody_offers(found in surroundings()) {
        let chosen = detect(&found);
        if chosen.mode == Mode::Supervised {
            let launcher = chosen.launcher.unwrap_or(Mode::Supervised.preset().launcher);
            prop_assert!(found.launchers.contains(&launcher));
            prop_assert!(!found.in_session && !found.embedded);
        }
    }
}

#[test]
fn each_place_has_its_mode_and_the_reason_says_what_was_seen() {
    let pod = Scheduler {
        claimed: true,
        given: false,
        placed: true,
    };
    let shell = Scheduler {
        claimed: true,
        ..Scheduler::default()
    };
    let both = || vec![Launcher::Exec, Launcher::Runit];
    let usable = || Systemd::Usable("/run/systemd/private".to_owned());
    let nothing = Surroundings::default;
    let table = [
        (
            Surroundings {
                kubernetes: pod,
                launchers: both(),
                ..nothing()
            },
            Mode::Distributed,
            "in Kubernetes (`KUBERNETES_SERVICE_HOST` is set, the cgroup or the mounts are a kubelet's)",
        ),
        (
            Surroundings {
                nomad: Scheduler {
                    given: true,
                    ..shell
                },
                ..nothing()
            },
            Mode::Distributed,
            "there is an allocation's directory",
        ),
        (
            Surroundings {
                kubernetes: shell,
                ..nothing()
            },
            Mode::Coupled,
            "only one trace (`KUBERNETES_SERVICE_HOST` is set)",
        ),
        (
            Surroundings {
                kubernetes: pod,
                embedded: true,
                ..nothing()
            },
            Mode::Coupled,
            "part of the BEAM's port",
        ),
        (
            Surroundings {
                launchers: both(),
                ..nothing()
            },
            Mode::Supervised,
            "an agent offers launcher `runit`",
        ),
        (
            Surroundings {
                launchers: both(),
                in_session: true,
                ..nothing()
            },
            Mode::Coupled,
            "in a login session",
        ),
        (
            Surroundings {
                systemd: usable(),
                ..nothing()
            },
            Mode::Coupled,
            "answers at `/run/systemd/private`, but no agent offers it",
        ),
        (
            Surroundings {
                systemd: Systemd::Refused("no right".into()),
                ..nothing()
            },
            Mode::Coupled,
            "not usable by this user: no right",
        ),
        (
            Surroundings {
                first: true,
                ..nothing()
            },
            Mode::Coupled,
            "first process of a container",
        ),
        (
            Surroundings {
                launchers: vec![Launcher::Exec],
                owner: Some(OwnerSight::Elsewhere),
                ..nothing()
            },
            Mode::Independent,
            "no agent can watch the owner's process",
        ),
    ];

    for (found, mode, told) in table {
        let chosen = detect(&found);
        assert_eq!(chosen.mode, mode, "{}", chosen.why);
        assert!(chosen.why.contains(told), "{}", chosen.why);
    }
}

#[test]
fn of_several_supervisors_the_presets_own_comes_first_and_needs_no_override() {
    let offered = |launchers: &[Launcher]| {
        detect(&Surroundings {
            launchers: launchers.to_vec(),
            ..Surroundings::default()
        })
        .launcher
    };

    assert_eq!(offered(&[Launcher::Runit, Launcher::Systemd]), None);
    assert_eq!(
        offered(&[Launcher::Runit, Launcher::Supervisord]),
        Some(Launcher::Supervisord)
    );
}
