//! What this machine allows, and which mode would be chosen here.

use tether_agent::{Config, diagnose};
use tether_arbiter::Surroundings;
use tether_lifecycle::{Launcher, detect};
use tether_port::{Fields, Term};
use tether_settings::surroundings;

use super::failure::Failed;

/// Answers as `tether doctor` does, with the mode.
pub(crate) async fn doctor(args: Term) -> Result<Term, Failed> {
    if !args.is_nil() {
        let fields = Fields::new("the arguments of doctor", args);
        fields
            .and_then(Fields::end)
            .map_err(|why| Failed::meaningless(&why))?;
    }
    let runtime = tokio::runtime::Handle::current();
    let found = tokio::task::spawn_blocking(move || {
        let _inside = runtime.enter();
        diagnose(&Config::default())
    });
    let found = match found.await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err(Failed::internal(error.to_string())),
        Err(panic) => return Err(Failed::internal(panic.to_string())),
    };
    let chosen = detect(&Surroundings {
        launchers: vec![Launcher::Exec],
        ..surroundings()
    });
    let means = found
        .means
        .iter()
        .map(|(what, works)| ((*what).into(), (*works).into()));
    let entries = [
        ("mode", chosen.mode.to_string().into()),
        ("why", chosen.why.into()),
        ("guarantee", found.guarantee.to_string().into()),
        ("guarantee_by", found.guarantee.means().into()),
        ("not_covered", found.guarantee.not_covered().into()),
        ("advice", found.advice.into()),
        ("means", Term::Map(means.collect())),
        (
            "warnings",
            Term::List(found.warnings.into_iter().map(Term::text).collect()),
        ),
    ];
    let entries = entries
        .into_iter()
        .map(|(key, value): (&str, Term)| (key.into(), value));
    Ok(Term::Map(entries.collect()))
}
