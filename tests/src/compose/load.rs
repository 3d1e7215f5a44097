//! gRPC's own client under way in a container of its own, and what became of its calls.

use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use tether_tests::eventually_within;

use crate::stack::{Edition, PROJECT, Stack};

const NAME: &str = "tetherground-load";

/// Callers at the same time.
const CALLERS: &str = "4";

/// What was counted up to now.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    /// The last errors.
    pub(crate) errors: Vec<String>,
}

/// What changed since.
#[derive(Debug)]
pub(crate) struct Since {
    pub(crate) calls: u64,
    pub(crate) failed: u64,
    pub(crate) errors: Vec<String>,
}

/// Starts to call, and sees that it does. The container ends with the stack, by [`end`].
pub(crate) async fn begin(stack: &Stack) -> anyhow::Result<()> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/src/compose/load.py");
    let mount = format!("{script}:/load.py:ro");
    let network = format!("{PROJECT}_default");
    let image = format!("tether-agent:{}", Edition::First.tag());
    stack
        .quietly(&[
            "run",
            "--detach",
            // Those of the image, where compose v2 has made it, would have it be an agent.
            "--label",
            "com.docker.compose.project=none",
            "--label",
            "com.docker.compose.service=load",
            "--init",
            "--name",
            NAME,
            "--network",
            &network,
            "--volume",
            &mount,
            "--entrypoint",
            "python3",
            &image,
            "/load.py",
            "dns:///gateway:7437",
            CALLERS,
        ])
        .await?;
    more(stack, &Counts::default(), 1).await?;
    Ok(())
}

/// The counts up to now.
pub(crate) async fn counts(stack: &Stack) -> anyhow::Result<Counts> {
    let said = stack.docker(&["logs", "--tail", "1", NAME]).await?;
    serde_json::from_str(said.trim()).context("it has said nothing yet")
}

/// The counts once so many calls more than before were made.
pub(crate) async fn more(stack: &Stack, before: &Counts, calls: u64) -> anyhow::Result<Since> {
    let now = eventually_within(Duration::from_secs(60), async || {
        let now = counts(stack).await.ok()?;
        (now.calls >= before.calls + calls).then_some(now)
    });
    let (now, _) = now.await.context("calls do not go on")?;
    Ok(Since {
        calls: now.calls - before.calls,
        failed: now.failed - before.failed,
        errors: now.errors,
    })
}

/// The counts once so many calls more than now were made.
pub(crate) async fn later(stack: &Stack, before: &Counts, calls: u64) -> anyhow::Result<Since> {
    let now = counts(stack).await?;
    more(stack, before, now.calls - before.calls + calls).await
}

/// Ends it.
pub(crate) async fn end(stack: &Stack) -> anyhow::Result<()> {
    stack.quietly(&["rm", "--force", NAME]).await
}
