//! Elixir's `Port`: what a BEAM application has without a supervisor of processes.

use std::{
    fs,
    io::{Read as _, Write as _},
    time::Duration,
};

use anyhow::Context as _;

use super::{
    Mode, Peer, Rate, Short, Stage, Venue, folders,
    room::{Room, byte},
};
use crate::processes::cpu_below;

/// Debian's `elixir`, with a script that opens ports by `:spawn_executable`.
#[derive(Debug, Clone, Copy)]
pub struct Elixir;

const SCRIPT: &str = include_str!("elixir.exs");

impl Elixir {
    fn open(
        venue: Venue<'_>,
        kind: &str,
        count: usize,
        time: Duration,
        command: &str,
    ) -> anyhow::Result<Room> {
        let folder = folders(venue.ground, "elixir")?;
        fs::write(folder.join("ports.exs"), SCRIPT)?;
        let (count, millis) = (count.to_string(), time.as_millis().to_string());
        let mut line = vec!["elixir", "/bench/elixir/ports.exs", kind, &count, &millis];
        line.extend(command.split(' '));
        Room::open(venue, &line)
    }
}

impl Peer for Elixir {
    fn name(&self) -> &'static str {
        "elixir_port"
    }

    fn start(&self, venue: Venue<'_>, mode: Mode, count: usize) -> anyhow::Result<Stage> {
        let command = format!("/bench/bench-worker {}", mode.word());
        let mut room = Self::open(venue, "hold", count, Duration::ZERO, &command)?;
        let (mut to, mut from) = room.pipes()?;
        byte(&mut from)?;
        to.write_all(b"\n")?;
        let stage = Stage::new(room, venue.ground).settle(mode, count);
        // A BEAM whose standard input ends goes on; it is held until here so that the line is read.
        drop(to);
        stage
    }

    fn rate(
        &self,
        venue: Venue<'_>,
        short: Short,
        in_flight: usize,
        time: Duration,
    ) -> anyhow::Result<Rate> {
        let mut room = Self::open(venue, "rate", in_flight, time, short.command())?;
        let (mut to, mut from) = room.pipes()?;
        byte(&mut from)?;
        let cpu = cpu_below(room.pid());
        to.write_all(b"\n")?;
        let mut said = String::new();
        while !said.ends_with('\n') {
            let mut letter = [0];
            from.read_exact(&mut letter)
                .context("the script ended before its time")?;
            said.push(letter[0].into());
        }
        Ok(Rate {
            per_second: said.trim().parse().context("the script tells no rate")?,
            cpu_seconds: cpu_below(room.pid()).saturating_sub(cpu).as_secs_f64(),
        })
    }

    fn restarts(&self) -> bool {
        false
    }
}
