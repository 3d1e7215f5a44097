//! From the ground under a bench to its figures on disk.

use std::{future::Future, io::Write as _, path::Path, sync::Arc};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::{Results, figure::Figure, ground::Ground, table};

/// Last lines of a log that an error tells.
const LAST_WORDS: usize = 5;

/// Carries a bench out on a ground of its own, which is cleared away whatever comes of it, also where somebody ends it.
/// `log` is the file on that ground in which what is measured says why it fails.
///
/// # Errors
/// Those of the work, and being told to end.
pub async fn play<T, W>(log: &str, work: impl FnOnce(Arc<Ground>) -> W) -> anyhow::Result<T>
where
    T: Send + 'static,
    W: Future<Output = anyhow::Result<T>> + Send + 'static,
{
    let ground = Arc::new(Ground::new()?);
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let work = tokio::spawn(work(Arc::clone(&ground)));
    let ended = tokio::select! {
        ended = work => ended.context("the bench broke off").flatten(),
        _ = terminate.recv() => Err(anyhow::anyhow!("ended by SIGTERM")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("ended by SIGINT")),
    };
    let log = std::fs::read_to_string(ground.dir().join(log)).unwrap_or_default();
    // Here rather than when the last one lets go of it: the work may still be under way.
    ground.remove();
    ended.map_err(|error| {
        let last: Vec<_> = log.lines().rev().take(LAST_WORDS).collect();
        error.context(format!(
            "the last words of what was measured, latest first: {last:#?}"
        ))
    })
}

/// What else the machine does while this begins.
pub(crate) fn busy() -> Figure {
    let loads = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = loads.split(' ').next().and_then(|load| load.parse().ok());
    let row = Figure::new("load of the machine before it begins", "processes");
    match load {
        Some(load) => row.ours(load),
        None => row.without("`/proc/loadavg` cannot be read"),
    }
}

/// Prints a row as soon as it is there.
pub fn tell(figure: &Figure) {
    let _ = writeln!(std::io::stdout(), "{}", figure.line());
}

/// Says how far a bench has come.
pub(crate) fn progress(text: &str) {
    let _ = writeln!(std::io::stderr(), "... {text}");
}

/// Writes the evidence, where that is asked for, and a table of it beside it.
///
/// # Errors
/// Where it cannot be written.
pub fn keep(figures: Vec<Figure>, json: Option<&Path>) -> anyhow::Result<()> {
    if let Some(path) = json {
        let table = table::markdown(&figures);
        Results::new(figures).write(path)?;
        std::fs::write(path.with_extension("md"), table)?;
        writeln!(std::io::stdout(), "written to {}", path.display())?;
    }
    Ok(())
}
