//! When nodes are lost: never early, not late, and a million workers at once.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tether_clock::{BootClock, Clock as _, Tick};
use tether_lease::{Grantor, Terms};
use tether_proto::worker::EventKind;
use tokio::time::{sleep, timeout};

use super::{
    TTL, WORKERS,
    arbiter::Arbiter,
    etcd::Measured,
    of,
    swarm::{self, Swarm},
};
use crate::figure::{Figure, Target};

/// Agents that are cut off to see when that is found out.
const CUT: usize = 20;

/// How long a grantor waits after a beat.
fn span() -> anyhow::Result<Duration> {
    let lease = Grantor::grant(Terms::usual(TTL)?, Tick::ZERO);
    let until = lease.next_deadline().context("a lease without an end")?;
    Ok(until.since(Tick::ZERO))
}

fn millis(later: Tick, earlier: Tick) -> f64 {
    later.since(earlier).as_secs_f64() * 1e3 - earlier.since(later).as_secs_f64() * 1e3
}

/// Cuts some agents off and compares when their loss is told with the formula.
pub(super) async fn detection(
    arbiter: &Arbiter,
    swarm: &Swarm,
    agents: usize,
) -> anyhow::Result<Vec<Figure>> {
    let span = span()?;
    let cut = CUT.min(agents / 2);
    let (mut events, _) = arbiter.events().await?;
    swarm.cut(cut);
    let mut told = vec![None; cut];
    let all = async {
        while told.iter().any(Option::is_none) {
            let event = events.message().await?.context("no more events")?;
            let event = event.event.unwrap_or_default();
            if event.kind() == EventKind::NodeLost {
                let number = (0..cut).find(|&number| swarm::name(number) == event.node);
                let number = number.with_context(|| format!("`{}` is lost", event.node))?;
                told[number] = Some(BootClock.now());
            }
        }
        anyhow::Ok(())
    };
    timeout(span * 2, all)
        .await
        .context("some loss is never told")??;
    let (mut early, mut late) = (0.0_f64, 0.0_f64);
    for (number, told) in told.into_iter().enumerate() {
        let told = told.context("not told")?;
        let (sent, answered) = swarm.last(number);
        // The beat was received between the two; the lease counts from there.
        early = early.max(millis(sent + span, told));
        late = late.max(millis(told, answered + span));
    }
    Ok(vec![
        of(agents, "loss told before the formula allows, at most", "ms")
            .ours(early.max(0.0))
            .target(Target::AtMost(0.0)),
        of(agents, "loss told after it, at most", "ms")
            .ours(late)
            .target(Target::AtMost(100.0)),
    ])
}

/// All nodes are lost in one moment: the arbiter is stopped while their leases run out.
pub(super) async fn all_at_once(
    arbiter: &Arbiter,
    swarm: &Swarm,
    agents: usize,
    peer: &Result<Measured, String>,
) -> anyhow::Result<Vec<Figure>> {
    let span = span()?;
    let cut = CUT.min(agents / 2);
    // What was cut off before has been placed again by now.
    let expected = agents * WORKERS;
    let deadline = Instant::now() + Duration::from_secs(120);
    while arbiter.ready().await? < expected {
        anyhow::ensure!(
            Instant::now() < deadline,
            "lost workers are not started again"
        );
        sleep(Duration::from_millis(200)).await;
    }
    let (mut events, _) = arbiter.events().await?;
    let pid = i32::try_from(arbiter.pid()).ok().and_then(Pid::from_raw);
    let stopped = pidfd_open(pid.context("no pid")?, PidfdFlags::empty())?;
    pidfd_send_signal(&stopped, Signal::STOP)?;
    let newest = (cut..agents).map(|number| swarm.last(number).1).max();
    let newest = newest.unwrap_or_default() + span;
    swarm.cut(agents);
    sleep(newest.since(BootClock.now()) + Duration::from_millis(500)).await;
    let before = arbiter.cpu()?;
    let begun = Instant::now();
    pidfd_send_signal(&stopped, Signal::CONT)?;
    // The last events of the burst: by then all of it is decided and written.
    let mut lost = 0;
    let mut last = begun;
    let pools = async {
        loop {
            let event = events.message().await?.context("no more events")?;
            let event = event.event.unwrap_or_default();
            if event.kind() == EventKind::NodeLost {
                lost += 1;
                last = Instant::now();
            } else if event.kind() == EventKind::PoolChanged && event.text.contains("ended with") {
                last = Instant::now();
                return anyhow::Ok(());
            }
        }
    };
    timeout(Duration::from_secs(120), pools)
        .await
        .context("the loss is never told")??;
    let cpu = arbiter.cpu()?.saturating_sub(before);
    anyhow::ensure!(lost > 0, "no node is lost");
    let ready = arbiter.ready().await?;
    anyhow::ensure!(ready == 0, "{ready} workers are taken to be ready");
    let theirs = peer.as_ref().map(|measured| measured.expiry_seconds);
    let figure = of(agents, "all nodes lost at once, until it is told", "s")
        .ours((last - begun).as_secs_f64())
        .peer("etcd", theirs.map_err(Clone::clone))
        .cpu("ours", cpu.as_secs_f64());
    Ok(vec![if agents >= 10_000 {
        figure.target(Target::AtMost(1.0))
    } else {
        figure
    }])
}
