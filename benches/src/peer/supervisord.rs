//! supervisord: one Python program for all services.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{Mode, Peer, Rate, Short, Stage, Venue, folders, room::Room, until};
use crate::processes::cpu_below;

/// Debian's `supervisor`.
#[derive(Debug, Clone, Copy)]
pub struct Supervisord;

/// The line of its log for each start.
const STARTED: &str = " INFO spawned: ";

impl Supervisord {
    fn open(venue: Venue<'_>, command: &str, count: usize) -> anyhow::Result<Room> {
        let folder = folders(venue.ground, "supervisord")?;
        fs::write(
            folder.join("conf"),
            format!(
                "[supervisord]\nnodaemon=true\nuser=root\nminfds=8192\nlogfile=/bench/supervisord/log\n\
                 logfile_maxbytes=0\npidfile=/bench/supervisord/pid\n\
                 [program:worker]\ncommand={command}\nnumprocs={count}\nprocess_name=%(process_num)d\n\
                 environment=TETHER_LISTEN=\"unix:/bench/sockets/%(process_num)d\"\n\
                 autorestart=true\nstartsecs=0\nstdout_logfile=NONE\nstderr_logfile=NONE\n"
            ),
        )?;
        Room::open(venue, &["supervisord", "-c", "/bench/supervisord/conf"])
    }
}

impl Peer for Supervisord {
    fn name(&self) -> &'static str {
        "supervisord"
    }

    fn start(&self, venue: Venue<'_>, mode: Mode, count: usize) -> anyhow::Result<Stage> {
        let room = Self::open(
            venue,
            &format!("/bench/bench-worker {}", mode.word()),
            count,
        )?;
        Stage::new(room, venue.ground).settle(mode, count)
    }

    fn rate(
        &self,
        venue: Venue<'_>,
        short: Short,
        in_flight: usize,
        time: Duration,
    ) -> anyhow::Result<Rate> {
        let room = Self::open(venue, short.command(), in_flight)?;
        let log = venue.ground.dir().join("supervisord/log");
        let starts = || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.matches(STARTED).count()
        };
        until(
            || (starts() >= 2 * in_flight).then_some(()),
            Duration::from_millis(20),
        )
        .context("supervisord starts nothing")?;
        let (cpu, before, start) = (cpu_below(room.pid()), starts(), Instant::now());
        // What is measured is a rate over time, so this is the measure itself and waits for nothing.
        std::thread::sleep(time);
        let (count, elapsed) = (starts() - before, start.elapsed());
        Ok(Rate {
            per_second: count as f64 / elapsed.as_secs_f64(),
            cpu_seconds: cpu_below(room.pid()).saturating_sub(cpu).as_secs_f64(),
        })
    }
}
