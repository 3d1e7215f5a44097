//! How long a fork server is waited for that died: longer each time, and not for ever. Pure.

use std::time::Duration;

use tether_clock::Tick;
use tether_proto::pool::Template;

/// First delay and longest.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);

/// One that was ready for that long died of something new.
const STEADY: Duration = Duration::from_secs(10);

/// Deaths of servers, by what they were to run.
#[derive(Debug, Default)]
pub(super) struct Setbacks(Vec<Setback>);

#[derive(Debug)]
struct Setback {
    template: Template,
    deaths: u32,
    until: Tick,
}

impl Setbacks {
    /// A server died at `now` that had been ready for `steady`; zero where it never was.
    pub(super) fn on_death(&mut self, template: &Template, steady: Duration, now: Tick) {
        // One whose time is long over is no reason to wait any more.
        self.0.retain(|setback| now < setback.until + LONGEST);
        let at = self
            .0
            .iter()
            .position(|setback| setback.template == *template);
        let before = at.map_or(0, |at| self.0.swap_remove(at).deaths);
        let deaths = if steady >= STEADY { 1 } else { before + 1 };
        let delay = FIRST * 2_u32.saturating_pow((deaths - 1).min(16));
        self.0.push(Setback {
            template: template.clone(),
            deaths,
            until: now + delay.min(LONGEST),
        });
    }

    /// How long is still to be waited at `now`.
    pub(super) fn wait(&self, template: &Template, now: Tick) -> Duration {
        let of = self.0.iter().find(|setback| setback.template == *template);
        of.map_or(Duration::ZERO, |setback| setback.until.since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_death_doubles_the_wait_up_to_a_bound_and_a_steady_life_begins_anew() {
        let (mut setbacks, mut now) = (Setbacks::default(), Tick::ZERO);
        let (template, other) = (
            Template::default(),
            Template {
                nice: Some(1),
                ..Template::default()
            },
        );
        let mut waits = Vec::new();

        for _ in 0..12 {
            setbacks.on_death(&template, Duration::ZERO, now);
            let wait = setbacks.wait(&template, now);
            waits.push(wait.as_millis());
            now = now + wait;
        }

        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[11], 30_000);
        assert_eq!(setbacks.wait(&template, now), Duration::ZERO);
        assert_eq!(setbacks.wait(&other, now), Duration::ZERO);
        setbacks.on_death(&template, STEADY, now);
        assert_eq!(setbacks.wait(&template, now), FIRST);
        setbacks.on_death(&other, Duration::ZERO, now + LONGEST * 2);
        assert_eq!(setbacks.0.len(), 1);
    }
}
