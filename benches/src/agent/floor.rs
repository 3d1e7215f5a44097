//! What the kernel alone takes for a guarded start: see `floor`.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use tether_clock::{BootClock, Clock as _};

use crate::{
    ground::Ground,
    peer::Rate,
    processes::{cpu_below, kernel_bytes, settled},
};

/// Bytes that the kernel holds for each of so many workers behind the same walls, their keepers included.
pub(super) fn kernel_bytes_each(
    ground: &Ground,
    worker: &str,
    count: usize,
) -> anyhow::Result<f64> {
    let cgroup = ground
        .unified()
        .context("there is no cgroup of version 2 to make others in")?;
    let program = std::env::current_exe()?.with_file_name("floor");
    // What was there before is let go of a moment after its end.
    let held = || settled(|| kernel_bytes().map_or(f64::NAN, |bytes| bytes as f64));
    let before = held();
    let mut line = Command::new(&program);
    line.args(["hold", &count.to_string()])
        .arg(cgroup)
        .args([worker, "wait"])
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut floor = ground
        .start(&mut line)
        .with_context(|| format!("cannot start `{}`", program.display()))?;
    let mut there = [0];
    let said = floor.stdout.take().context("it has no output")?;
    let said = { said }.read_exact(&mut there);
    said.context("it ended before all were there")?;
    let grown = held() - before;
    drop(floor.stdin.take());
    anyhow::ensure!(floor.wait()?.success(), "not all of them were there");
    Ok(grown / count as f64)
}

/// Lives per second of as many bare loops as there are processors.
pub(super) fn rate(
    ground: &Ground,
    command: &str,
    args: &[String],
    time: Duration,
) -> anyhow::Result<Rate> {
    let cgroup = ground
        .unified()
        .context("there is no cgroup of version 2 to make others in")?;
    let program = std::env::current_exe()?.with_file_name("floor");
    let cpu = cpu_below(std::process::id());
    let start = BootClock.now();
    let loops = (0..std::thread::available_parallelism()?.get()).map(|_| {
        let mut line = Command::new(&program);
        line.arg("rate")
            .arg(time.as_millis().to_string())
            .arg(cgroup)
            .arg(command)
            .args(args)
            .env_clear()
            .stdout(Stdio::piped());
        ground
            .start(&mut line)
            .with_context(|| format!("cannot start `{}`", program.display()))
    });
    let loops = loops.collect::<anyhow::Result<Vec<_>>>()?;
    let mut lives = 0;
    for one in loops {
        let ended = one.wait_with_output()?;
        let said = String::from_utf8_lossy(&ended.stdout);
        lives += said
            .trim()
            .parse::<u32>()
            .context("a bare loop ended before its time")?;
    }
    Ok(Rate {
        per_second: f64::from(lives) / BootClock.now().since(start).as_secs_f64(),
        cpu_seconds: cpu_below(std::process::id())
            .saturating_sub(cpu)
            .as_secs_f64(),
    })
}
