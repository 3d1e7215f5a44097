//! When nodes are lost: never early, not late, and a million workers at once.

use std::time::{Duration, Instant};

use anyhow::Context as _;
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

/// Before the first loss is due the processor time begins to count.
const BEFORE: Duration = Duration::from_millis(200);

/// Between two looks at the processor time.
const LOOK: Duration = Duration::from_millis(5);

/// Nothing more follows after that.
const QUIET: Duration = Duration::from_secs(3);

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

/// All nodes are lost in one moment: they beat together once more, and then nothing is heard of any. The arbiter
/// runs all the while, so that it counts every moment of that silence.
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
    swarm.beat_at_once(cut, agents).await?;
    swarm.cut(agents);
    // The lease counts from the receipt, which no beat has before it is sent.
    let sent = || (cut..agents).map(|number| swarm.last(number).0);
    let first = sent().min().unwrap_or_default() + span;
    let due = sent().max().unwrap_or_default() + span;
    sleep(first.since(BootClock.now()).saturating_sub(BEFORE)).await;
    let before = arbiter.cpu()?;
    // The last event of the burst: by then all of it is decided and written.
    let mut told = None;
    let mut cpu = Duration::ZERO;
    let deadline = due + Duration::from_secs(120);
    loop {
        match timeout(QUIET, events.message()).await {
            Ok(event) => {
                let event = event?.context("no more events")?.event.unwrap_or_default();
                let ended = event.text.contains("ended with the leases");
                if event.kind() == EventKind::NodeLost || ended {
                    let now = BootClock.now();
                    // Not for each of ten thousand: looking takes time too.
                    if told.is_none_or(|told| now.since(told) > LOOK) || ended {
                        cpu = arbiter.cpu()?.saturating_sub(before);
                    }
                    told = Some(now);
                }
            }
            Err(_) if told.is_some() && arbiter.ready().await? == 0 => break,
            Err(_) => anyhow::ensure!(BootClock.now() < deadline, "the loss is never told"),
        }
    }
    let told = told.context("no node is lost")?;
    let theirs = peer.as_ref().map(|measured| measured.expiry_seconds);
    let figure = of(agents, "all nodes lost at once, until it is told", "s")
        .ours(millis(told, due) / 1e3)
        .peer("etcd", theirs.map_err(Clone::clone))
        .cpu("ours", cpu.as_secs_f64());
    Ok(vec![if agents >= 10_000 {
        figure.target(Target::AtMost(1.0))
    } else {
        figure
    }])
}
