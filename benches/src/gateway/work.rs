//! What a proxy has to do in one turn, and what it took.

use std::time::Duration;

use crate::{
    calls::crowd::{Load, Outcome},
    figure::Target,
    proxies::{Proxies, Proxy},
};

use super::Part;

/// A load with its name and what it has to cost at most.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) name: &'static str,
    /// What is counted.
    pub(super) unit: Unit,
    load: Load,
    /// On the processor time for each.
    pub(super) targets: &'static [Target],
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Calls,
    Messages,
}

/// Before anything is measured: connections are made, caches and pools are filled.
const WARM_UP: Duration = Duration::from_millis(300);

/// What one turn took.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) outcome: Outcome,
    /// Of the proxy, where there is one.
    pub(super) cpu: Option<Duration>,
    pub(super) memory: Option<u64>,
}

impl Work {
    /// The load of a part; none of the one that has none.
    pub(super) fn of(part: Part) -> Option<Self> {
        let closed = |connections, callers, bytes| Load::Closed {
            connections,
            callers,
            bytes,
        };
        let (name, unit, load, targets): (_, _, _, &[Target]) = match part {
            Part::Small => (
                "unary 128 B",
                Unit::Calls,
                closed(8, 16, 128),
                &[Target::Share(0.9, "haproxy"), Target::Share(0.2, "envoy")],
            ),
            Part::Middle => ("unary 16 KiB", Unit::Calls, closed(8, 4, 16 << 10), &[]),
            Part::Large => (
                "unary 1 MiB",
                Unit::Calls,
                closed(4, 2, 1 << 20),
                &[Target::Share(0.5, "haproxy")],
            ),
            Part::Bulk => (
                "bulk, 8 streams of 1 KiB messages",
                Unit::Messages,
                Load::Bulk {
                    connections: 8,
                    messages: 5_000,
                    bytes: 1 << 10,
                },
                &[],
            ),
            Part::Tokens => (
                "tokens, 64 streams of 400 a second",
                Unit::Messages,
                Load::Tokens {
                    connections: 8,
                    streams: 8,
                    each: 400,
                },
                &[Target::Share(0.9, "haproxy")],
            ),
            Part::Paced => (
                "unary 128 B, 1,000 a second",
                Unit::Calls,
                Load::Paced {
                    calls: 1_000,
                    bytes: 128,
                },
                &[],
            ),
            Part::Idle => return None,
        };
        Some(Self {
            name,
            unit,
            load,
            targets,
        })
    }

    /// Whether it tells how long each takes.
    pub(super) fn timed(&self) -> bool {
        !matches!(self.load, Load::Bulk { .. })
    }

    pub(super) async fn turn(
        &self,
        proxies: &Proxies,
        proxy: Proxy,
        span: Duration,
    ) -> anyhow::Result<Turn> {
        let running = proxies.start(proxy).await?;
        self.load.run(running.port, WARM_UP).await?;
        let before = running.cpu();
        let outcome = self.load.run(running.port, span).await?;
        let cpu = running.cpu().zip(before);
        anyhow::ensure!(
            outcome.done > 0,
            "nothing was answered rightly: {:?}",
            outcome.why
        );
        Ok(Turn {
            cpu: cpu.map(|(after, before)| after.saturating_sub(before)),
            memory: running.memory(),
            outcome,
        })
    }
}

impl Unit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Messages => "messages",
        }
    }
}
