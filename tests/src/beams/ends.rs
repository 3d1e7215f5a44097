//! Coupled BEAMs that end in any other way than by a lone kill: in good order, by a crash of their own, and together with
//! the agent of their workers.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::process::Signal;
use tether_tests::{Site, tidy};

use crate::{
    figures::Times,
    kin::{Gone, Kin},
    lab::{Beam, Setting},
    lineage::Pinned,
    world::{Seen, World},
};

/// No lease has part in any of it.
const LEASE: Duration = Duration::from_secs(20);
const WORKERS: u32 = 2;

/// Workers are asked first, and one of each has a daemon that does not listen: half a second of grace.
const IN_ORDER: Duration = Duration::from_secs(3);

/// Of what is not asked.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Between two presses of Ctrl-C.
const PRESS: Duration = Duration::from_millis(50);

/// How a BEAM ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// `System.stop/0`.
    Stop,
    /// SIGTERM, upon which OTP stops in good order.
    Terminate,
    /// `Application.stop/1`, and the BEAM goes on without it.
    Leave,
    /// `:erlang.halt(:abort)`.
    Abort,
    /// SIGSEGV, as of a broken NIF.
    Fault,
    /// Ctrl-C until it is over.
    Break,
}

impl Way {
    pub(crate) const IN_ORDER: &'static [Self] = &[Self::Stop, Self::Terminate, Self::Leave];
    pub(crate) const AT_ONCE: &'static [Self] = &[Self::Abort, Self::Fault, Self::Break];

    /// Ends a BEAM, and sees all of it gone.
    async fn end(self, beam: &mut Beam, kin: &Kin) -> anyhow::Result<Gone> {
        let start = Instant::now();
        match self {
            Self::Stop => beam.say("stop").await?,
            Self::Leave => beam.say("leave").await?,
            Self::Abort => beam.say("abort").await?,
            Self::Terminate => beam.signal(Signal::TERM),
            Self::Fault => beam.signal(Signal::SEGV),
            Self::Break => {
                while kin.beam_lives() {
                    ensure!(start.elapsed() < LEASE / 2, "Ctrl-C does not end it");
                    beam.signal(Signal::INT);
                    tokio::time::sleep(PRESS).await;
                }
            }
        }
        match self {
            Self::Leave => kin.watch_others(start, LEASE / 2),
            _ => kin.watch_all(start, LEASE / 2),
        }
    }
}

/// With everything in its port, unless there is a gateway.
fn setting(world: &World, gateway: Option<String>, number: usize) -> anyhow::Result<Setting> {
    Ok(Setting {
        home: world.lab.home()?,
        gateway,
        mode: "coupled",
        timeout: LEASE,
        owner: format!("beam-{number}"),
        pool: format!("lab-{number}"),
        size: WORKERS,
    })
}

/// A coupled BEAM ends in one of these ways.
pub(crate) async fn ended(world: &World, ways: &[Way]) -> anyhow::Result<Seen> {
    let in_order = ways.iter().all(|way| Way::IN_ORDER.contains(way));
    let mut times = Times::default();
    let wanted = world.repeat(20).max(ways.len());
    for (number, way) in ways.iter().cycle().take(wanted).enumerate() {
        let mut beam = world.lab.ready(&setting(world, None, number)?).await?;
        let kin = Kin::of(&beam, WORKERS)?;
        times.add(way.end(&mut beam, &kin).await?.all);
        world.progress(times.count(), wanted, &format!("{way:?}: {times}"));
    }
    let most = if in_order { IN_ORDER } else { AT_ONCE };
    Ok(gone(world, &times, most))
}

/// A coupled BEAM and the agent of its workers are killed in one instant: that in its port, and one of its own.
pub(crate) async fn with_agent(world: &World) -> anyhow::Result<Seen> {
    let mut times = Times::default();
    let wanted = world.repeat(20).max(2);
    for number in 0..wanted {
        let site = match number % 2 {
            0 => None,
            _ => Some(Site::with_second_alone().await),
        };
        let gateway = site.as_ref().map(|site| site.cluster.gateway());
        let beam = world.lab.ready(&setting(world, gateway, number)?).await?;
        let kin = Kin::of(&beam, WORKERS)?;
        let agent = match &site {
            None => kin.program()?,
            Some(site) => Pinned::new(site.agent_pid())?,
        };
        times.add(kin.kill_with(&[agent], LEASE / 2)?.all);
        // A killed agent cannot remove its cgroups.
        beam.runtime().iter().for_each(|own| tidy(own));
        world.progress(times.count(), wanted, &times.to_string());
    }
    Ok(gone(world, &times, AT_ONCE))
}

fn gone(world: &World, times: &Times, most: Duration) -> Seen {
    let most = world.leeway(most);
    Seen::new(
        format!("0 orphans, gone after {most:?} at most"),
        format!("0 orphans; {times}"),
        times.most() <= most,
    )
}
