//! What `auto` chooses, and why. Whatever counts here was seen to be there: no build and no profile is asked.

use std::fmt;

use crate::{Launcher, Mode, OwnerSight};

/// What was found of a scheduler: a claim in the environment, and what nobody but it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scheduler {
    /// Its variables are set; whoever starts a shell from a container inherits them, so they do not suffice.
    pub claimed: bool,
    /// What it hands to whom it runs is there: a service account, an allocation's directory.
    pub given: bool,
    /// This process is where it puts those that it runs: a cgroup, or mounts, with its name.
    pub placed: bool,
}

impl Scheduler {
    /// Two of three: each of them alone can be had otherwise, or be missing in good order.
    pub const fn is_here(self) -> bool {
        self.claimed as u8 + self.given as u8 + self.placed as u8 >= 2
    }
}

/// Whether systemd would do something for this user.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Systemd {
    /// This machine was not booted with it.
    #[default]
    Absent,
    /// It answered this user at this socket.
    Usable(String),
    /// It runs, and does not answer this user: why.
    Refused(String),
}

/// Where the system finds itself: what a look around found, and what the nodes say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// Of Kubernetes.
    pub kubernetes: Scheduler,
    /// Of Nomad.
    pub nomad: Scheduler,
    /// Of systemd.
    pub systemd: Systemd,
    /// This Tether is part of the process that a BEAM has opened as a port, and ends with it.
    pub embedded: bool,
    /// It runs in somebody's login session, and ends with that.
    pub in_session: bool,
    /// It is the first process of its PID namespace: a container's, or an image's.
    pub first: bool,
    /// Its cgroup was delegated to it: workers can have cgroups of their own below.
    pub delegated: bool,
    /// The launchers that agents offer.
    pub launchers: Vec<Launcher>,
    /// Whether an agent can watch the owner's process, where it is known who that is.
    pub owner: Option<OwnerSight>,
}

/// A mode, and the reason to tell whoever left the choice to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The mode.
    pub mode: Mode,
    /// The launcher that goes with it, where that is not the one of its preset.
    pub launcher: Option<Launcher>,
    /// Why, in one sentence.
    pub why: String,
}

/// Launchers that have somebody else as the supervisor of workers, in the order they are preferred.
pub(crate) const SUPERVISED: [Launcher; 3] =
    [Launcher::Systemd, Launcher::Supervisord, Launcher::Runit];

/// Chooses a mode.
pub fn detect(found: &Surroundings) -> Chosen {
    let (mode, launcher, because) = decide(found);
    let preset = mode.preset().launcher;
    Chosen {
        mode,
        launcher: launcher.filter(|launcher| *launcher != preset),
        why: format!("chose mode `{mode}`, because {because}; set `mode` to decide yourself"),
    }
}

fn decide(found: &Surroundings) -> (Mode, Option<Launcher>, String) {
    let plain = |mode, because: &str| (mode, None, because.to_owned());
    if found.embedded {
        return plain(
            Mode::Coupled,
            "this Tether is part of the BEAM's port and ends with it, so nothing could outlive it",
        );
    }
    for (name, scheduler, traces) in found.schedulers() {
        if scheduler.is_here() {
            return (
                Mode::Distributed,
                None,
                format!("this runs in {name} ({})", Seen(scheduler, traces)),
            );
        }
    }
    let supervisor = SUPERVISED
        .into_iter()
        .find(|launcher| found.launchers.contains(launcher));
    match supervisor {
        Some(launcher) if !found.in_session => {
            let because = format!("an agent offers launcher `{launcher}`, which keeps workers");
            return (Mode::Supervised, Some(launcher), because);
        }
        _ => {}
    }
    if let Some(OwnerSight::NoIdentity | OwnerSight::Elsewhere) = found.owner
        && !found.launchers.is_empty()
    {
        return plain(
            Mode::Independent,
            "no agent can watch the owner's process, so that its lease is what workers live by",
        );
    }
    let mut because = vec!["nothing here outlives the owner".to_owned()];
    for (name, scheduler, traces) in found.schedulers() {
        if scheduler != Scheduler::default() {
            let seen = Seen(scheduler, traces);
            because.push(format!(
                "of {name} there is only one trace ({seen}), and two are needed"
            ));
        }
    }
    because.push(match (&found.systemd, supervisor) {
        (_, Some(launcher)) => format!(
            "an agent offers launcher `{launcher}`, but this runs in a login session and ends with it"
        ),
        (Systemd::Usable(at), None) => {
            format!("systemd answers at `{at}`, but no agent offers it as a launcher")
        }
        (Systemd::Refused(why), None) => format!("systemd is not usable by this user: {why}"),
        (Systemd::Absent, None) => {
            "no agent offers systemd, supervisord or runit as a launcher for such workers".to_owned()
        }
    });
    if found.first {
        because
            .push("this is the first process of a container, whose end is that of all".to_owned());
    }
    (Mode::Coupled, None, because.join("; "))
}

/// What each trace is called.
type Traces = [&'static str; 3];

impl Surroundings {
    fn schedulers(&self) -> [(&'static str, Scheduler, Traces); 2] {
        [
            (
                "Kubernetes",
                self.kubernetes,
                [
                    "`KUBERNETES_SERVICE_HOST` is set",
                    "there is a service account",
                    "the cgroup or the mounts are a kubelet's",
                ],
            ),
            (
                "Nomad",
                self.nomad,
                [
                    "`NOMAD_ALLOC_ID` is set",
                    "there is an allocation's directory",
                    "the cgroup is an allocation's",
                ],
            ),
        ]
    }
}

/// The traces that were seen, in words.
struct Seen(Scheduler, Traces);

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(scheduler, names) = self;
        let seen = [scheduler.claimed, scheduler.given, scheduler.placed];
        let named = names
            .iter()
            .zip(seen)
            .filter_map(|(name, seen)| seen.then_some(*name));
        f.write_str(&named.collect::<Vec<_>>().join(", "))
    }
}
