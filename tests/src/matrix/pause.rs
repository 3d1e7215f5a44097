//! Keeps the agent from running while shims are killed in a container, so that it is seen what the first
//! process there does alone; and that one too where it is to be seen what is left before it does.

use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tether_tests::eventually_within;

use crate::{
    lineage::{Pinned, state},
    plan::Event,
    world::{AGENT, World},
};

/// Longest time for a process to be stopped.
const STOP: Duration = Duration::from_secs(10);

/// The processes that are stopped.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    first: Option<Pinned>,
    agent: Option<Pinned>,
}

impl Pause {
    /// Stops whom the event says.
    pub(crate) async fn begin(world: &World, event: Event) -> anyhow::Result<Self> {
        let mut pause = Self::default();
        if event.stops_agent(world.level) {
            pause.agent = Some(stop(world.service(AGENT)?).await?);
        }
        if event.waits_for_first(world.level) {
            pause.first = Some(stop(world.first().context("there is no container")?).await?);
        }
        Ok(pause)
    }

    /// Has the container's first process run again.
    pub(crate) fn wake_first(&mut self) {
        if let Some(first) = self.first.take() {
            first.signal(Signal::CONT);
        }
    }

    /// Has everybody run again.
    pub(crate) fn end(mut self) {
        self.wake_first();
        if let Some(agent) = self.agent.take() {
            agent.signal(Signal::CONT);
        }
    }
}

async fn stop(process: &Pinned) -> anyhow::Result<Pinned> {
    process.signal(Signal::STOP);
    let stopped = eventually_within(STOP, async || {
        let stopped = process.look(state) == Some('T');
        (stopped || !process.lives()).then_some(())
    });
    stopped.await.context("a process does not stop")?;
    Ok(process.again()?)
}
