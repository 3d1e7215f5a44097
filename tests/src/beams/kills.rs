//! BEAMs that are killed and stopped: when their workers were gone, with all that these had shed.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::process::Signal;
use tether_tests::Cluster;

use crate::{
    figures::Times,
    kin::Kin,
    lab::{Beam, Setting},
    world::{Seen, World},
};

/// Of a coupled BEAM that is killed; no lease has part in it.
const LEASE: Duration = Duration::from_secs(20);
const MEDIAN: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_millis(250);

/// Where the machine does other work: far from any lease all the same, and one that is late is no rule.
const BUSY_MEDIAN: Duration = Duration::from_millis(250);
const BUSY_MOST: Duration = Duration::from_secs(1);

/// BEAMs that are got ready at a time, before one after the other is killed.
const BATCH: usize = 3;
const WORKERS: u32 = 2;

/// The lease of those that hang, or that nobody comes back for.
const SHORT: Duration = Duration::from_secs(2);

/// How much later than a lease's end everything is gone at the latest.
const AFTER: Duration = Duration::from_secs(1);

/// A hung BEAM is noticed so much of its timeout earlier at most: a renewal is due each sixth of it, and goes out
/// with the next beat, an eighth.
const EARLIER: f64 = 1.0 / 6.0 + 1.0 / 8.0;

/// And so much of it later: a renewal goes out no later after a beat; and what it takes to kill.
const LATER: f64 = 0.05;
const KILLED: Duration = Duration::from_millis(250);

fn setting(
    world: &World,
    cluster: Option<&Cluster>,
    mode: &'static str,
    timeout: Duration,
    number: usize,
) -> anyhow::Result<Setting> {
    Ok(Setting {
        home: world.lab.home()?,
        gateway: cluster.map(Cluster::gateway),
        mode,
        timeout,
        owner: format!("beam-{number}"),
        pool: format!("lab-{number}"),
        size: WORKERS,
    })
}

async fn cluster(embedded: bool) -> Option<Cluster> {
    match embedded {
        true => None,
        false => Some(Cluster::start().await),
    }
}

/// Has each worker in a call that takes long.
async fn occupy(beam: &mut Beam) -> anyhow::Result<()> {
    let mut busy = std::collections::BTreeSet::new();
    // A worker may be given two of them.
    for number in 0.. {
        beam.say(&format!("nap {number} 40")).await?;
        let napping = beam.until(&format!("napping {number} ")).await?;
        busy.extend(napping.split(' ').nth(2).map(str::to_owned));
        if busy.len() == WORKERS as usize {
            break;
        }
        ensure!(number < 50, "calls go to one worker alone: {busy:?}");
    }
    Ok(())
}

/// A coupled BEAM is killed: everything is gone at once.
pub(crate) async fn killed(world: &World, embedded: bool, busy: bool) -> anyhow::Result<Seen> {
    let cluster = cluster(embedded).await;
    let (mut all, mut workers) = (Times::default(), Times::default());
    let wanted = world.repeat(200);
    while all.count() < wanted {
        let mut batch = Vec::new();
        for number in 0..BATCH.min(wanted - all.count()) {
            let number = all.count() + number;
            batch.push(world.lab.start(&setting(
                world,
                cluster.as_ref(),
                "coupled",
                LEASE,
                number,
            )?)?);
        }
        for beam in &mut batch {
            beam.until_ready().await?;
            if busy {
                occupy(beam).await?;
            }
        }
        let kin: Vec<_> = batch
            .iter()
            .map(|beam| Kin::of(beam, WORKERS))
            .collect::<Result<_, _>>()?;
        for (number, one) in kin.iter().enumerate() {
            let gone = one.kill(LEASE / 2)?;
            all.add(gone.all);
            workers.add(gone.workers);
            ensure!(
                kin[number + 1..].iter().all(Kin::lives),
                "another BEAM's process has ended too"
            );
        }
        world.progress(all.count(), wanted, &all.to_string());
    }
    let holds = is_at_once(&all, world.busy);
    let (median, most) = bounds(world.busy);
    let on = match world.busy {
        true => ", on a machine that does other work",
        false => "",
    };
    Ok(Seen::new(
        format!("0 orphans, gone after {median:?} by the median and {most:?} at most{on}"),
        format!("0 orphans; {all}; workers alone: {workers}"),
        holds,
    ))
}

/// By the median and at most.
fn bounds(busy: bool) -> (Duration, Duration) {
    match busy {
        true => (BUSY_MEDIAN, BUSY_MOST),
        false => (MEDIAN, MOST),
    }
}

/// Whether everything was gone at once after each kill, workers included.
fn is_at_once(all: &Times, busy: bool) -> bool {
    let (median, most) = bounds(busy);
    all.at(50) < median && all.most() <= most
}

/// A BEAM is stopped: its workers are gone when its timeout is over, and it is told once it goes on.
pub(crate) async fn stopped(
    world: &World,
    embedded: bool,
    mode: &'static str,
) -> anyhow::Result<Seen> {
    let cluster = cluster(embedded).await;
    let mut times = Times::default();
    let wanted = world.repeat(20);
    for number in 0..wanted {
        let mut beam = world
            .lab
            .ready(&setting(world, cluster.as_ref(), mode, SHORT, number)?)
            .await?;
        // At another moment between two beats each time.
        let phase = SHORT.mul_f64(f64::from(u32::try_from(number % 8)?) / 16.0);
        tokio::time::sleep(phase).await;
        let kin = Kin::of(&beam, WORKERS)?;
        times.add(kin.stop(5 * SHORT)?.workers);
        beam.until_logged("The session is lost").await?;
        beam.signal(Signal::CONT);
        beam.until("event lease_lost :lease_expired").await?;
        beam.until("tether_down {:shutdown, :lease_expired}")
            .await?;
        world.progress(times.count(), wanted, &times.to_string());
    }
    let earliest = SHORT.mul_f64(1.0 - EARLIER);
    let latest = SHORT.mul_f64(1.0 + LATER) + KILLED;
    let late = match world.busy {
        true => latest + AFTER,
        false => latest,
    };
    let holds = times.least() >= earliest && times.most() <= late;
    let expected = format!(
        "gone {earliest:?} to {latest:?} after it was stopped, where its timeout is {SHORT:?}; it is told"
    );
    Ok(Seen::new(expected, times.to_string(), holds))
}

/// An independent BEAM is killed and nobody comes back: its workers are gone when its timeout is over.
pub(crate) async fn left_alone(world: &World) -> anyhow::Result<Seen> {
    let cluster = cluster(false).await;
    let mut times = Times::default();
    let wanted = world.repeat(20);
    for number in 0..wanted {
        let mut beam = world
            .lab
            .ready(&setting(
                world,
                cluster.as_ref(),
                "independent",
                SHORT,
                number,
            )?)
            .await?;
        if number % 2 == 1 {
            let spec = r#"{"until":"/nowhere","seconds":0.05,"save_every":10}"#;
            beam.ask(&format!("job alone-{number} {spec}"), "job ")
                .await?;
        }
        let kin = Kin::of(&beam, WORKERS)?;
        let start = Instant::now();
        beam.kill().await?;
        times.add(kin.watch_workers(start, 5 * SHORT)?.workers);
        world.progress(times.count(), wanted, &times.to_string());
    }
    let (earliest, latest) = (SHORT.mul_f64(1.0 - EARLIER), SHORT + AFTER);
    let holds = times.least() >= earliest && times.most() <= latest;
    let expected = format!(
        "gone {earliest:?} to {latest:?} after the kill, where the timeout is {SHORT:?} after the last beat"
    );
    Ok(Seen::new(expected, times.to_string(), holds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kill_that_took_long_is_too_many_on_any_machine_and_so_is_a_rule_of_slow_ones() {
        let of = |millis: [u64; 3]| {
            let mut times = Times::default();
            for millis in millis {
                times.add(Duration::from_millis(millis));
            }
            times
        };

        assert!(is_at_once(&of([20, 30, 240]), false));
        assert!(!is_at_once(&of([20, 30, 260]), false));
        assert!(!is_at_once(&of([20, 60, 70]), false));
        assert!(is_at_once(&of([20, 30, 900]), true));
        assert!(!is_at_once(&of([20, 300, 900]), true));
        assert!(!is_at_once(&of([20, 30, 10_000]), true));
    }
}
