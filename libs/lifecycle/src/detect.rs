//! What `auto` chooses, and why.

use crate::Mode;

/// Where the system finds itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Environment {
    /// `KUBERNETES_SERVICE_HOST` is set.
    pub kubernetes: bool,
    /// `NOMAD_ALLOC_ID` is set.
    pub nomad: bool,
    /// systemd runs here and lets us start units.
    pub systemd_usable: bool,
    /// The configuration says that this is production.
    pub production: bool,
}

/// A mode, and the reason to tell whoever left the choice to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The mode.
    pub mode: Mode,
    /// Why, in one sentence.
    pub why: String,
}

/// Chooses a mode for `environment`.
pub fn detect(environment: &Environment) -> Chosen {
    let (mode, because) = if environment.kubernetes {
        (
            Mode::Distributed,
            "this runs in Kubernetes (`KUBERNETES_SERVICE_HOST` is set)",
        )
    } else if environment.nomad {
        (
            Mode::Distributed,
            "this runs in Nomad (`NOMAD_ALLOC_ID` is set)",
        )
    } else {
        match (environment.systemd_usable, environment.production) {
            (true, true) => (
                Mode::Supervised,
                "systemd is usable and the profile is production",
            ),
            (true, false) => (
                Mode::Coupled,
                "systemd is usable, but the profile is not production",
            ),
            (false, true) => (
                Mode::Coupled,
                "the profile is production, but no systemd is usable here",
            ),
            (false, false) => (
                Mode::Coupled,
                "there is no Kubernetes, no Nomad and no usable systemd here",
            ),
        }
    };
    Chosen {
        mode,
        why: format!("chose mode `{mode}`, because {because}; set `mode` to decide yourself"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_wins_over_systemd_and_systemd_counts_in_production_only() {
        let chosen = |kubernetes, nomad, systemd_usable, production| {
            detect(&Environment {
                kubernetes,
                nomad,
                systemd_usable,
                production,
            })
        };

        assert_eq!(chosen(true, false, true, true).mode, Mode::Distributed);
        assert_eq!(chosen(false, true, true, true).mode, Mode::Distributed);
        assert_eq!(chosen(false, false, true, true).mode, Mode::Supervised);
        assert_eq!(chosen(false, false, true, false).mode, Mode::Coupled);
        assert_eq!(chosen(false, false, false, true).mode, Mode::Coupled);
        assert!(
            chosen(false, true, false, false)
                .why
                .contains("NOMAD_ALLOC_ID")
        );
        assert!(chosen(false, false, false, true).why.contains("no systemd"));
    }
}
