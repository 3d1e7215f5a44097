//! What it costs while nothing happens but beats.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::{arbiter::Arbiter, count, kib, swarm::Swarm};

/// After a change, until all is quiet.
const SETTLE: Duration = Duration::from_secs(12);

/// What a server used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) cpu: Duration,
    pub(super) span: Duration,
    pub(super) beats: u64,
    pub(super) resident: u64,
    /// Of one beat, and of one answer.
    pub(super) up_bytes: f64,
    pub(super) down_bytes: f64,
}

impl Cost {
    pub(super) fn cores(&self) -> f64 {
        self.cpu.as_secs_f64() / self.span.as_secs_f64()
    }

    pub(super) fn megabytes(&self) -> f64 {
        kib(self.resident) / 1024.0
    }

    pub(super) fn beat_micros(&self) -> f64 {
        let beats = count(usize::try_from(self.beats).unwrap_or(usize::MAX));
        self.cpu.as_secs_f64() * 1e6 / beats
    }
}

/// Measures an arbiter whose agents do nothing but beat.
pub(super) async fn measure(
    arbiter: &Arbiter,
    swarm: &Swarm,
    span: Duration,
) -> anyhow::Result<Cost> {
    sleep(SETTLE).await;
    let (cpu, before, begun) = (arbiter.cpu()?, swarm.tally(), Instant::now());
    sleep(span).await;
    let (cpu, after) = (arbiter.cpu()?.saturating_sub(cpu), swarm.tally());
    let span = begun.elapsed();
    anyhow::ensure!(
        after.resyncs == 0,
        "{} agents were asked for all they have",
        after.resyncs
    );
    anyhow::ensure!(after.broken == 0, "{} streams broke", after.broken);
    let beats = after.beats - before.beats;
    #[expect(clippy::cast_precision_loss, reason = "these counts are small")]
    let each = |bytes: u64| bytes as f64 / beats as f64;
    Ok(Cost {
        cpu,
        span,
        beats,
        resident: arbiter.resident()?,
        up_bytes: each(after.up - before.up),
        down_bytes: each(after.down - before.down),
    })
}
