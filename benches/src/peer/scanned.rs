//! runit and s6: a folder per service, scanned by one program that starts a supervisor for each.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use super::{Mode, Peer, Rate, Short, Stage, Venue, folders, room::Room};

/// A supervisor of this kind.
#[derive(Debug, Clone, Copy)]
pub struct Scanned {
    name: &'static str,
    scan: &'static [&'static str],
    supervisor: &'static str,
}

/// `runsvdir` and `runsv`.
pub const RUNIT: Scanned = Scanned {
    name: "runit",
    scan: &["runsvdir", "/bench/runit"],
    supervisor: "runsv",
};

/// `s6-svscan` and `s6-supervise`.
pub const S6: Scanned = Scanned {
    name: "s6",
    scan: &["s6-svscan", "-c", "1000", "/bench/s6"],
    supervisor: "s6-supervise",
};

impl Peer for Scanned {
    fn name(&self) -> &'static str {
        self.name
    }

    fn start(&self, venue: Venue<'_>, mode: Mode, count: usize) -> anyhow::Result<Stage> {
        let folder = folders(venue.ground, self.name)?;
        for slot in 0..count {
            let service = folder.join(slot.to_string());
            fs::create_dir(&service)?;
            let run = service.join("run");
            fs::write(
                &run,
                format!(
                    "#!/bin/sh\nTETHER_LISTEN=unix:/bench/sockets/{slot}\nexport TETHER_LISTEN\n\
                     exec /bench/bench-worker {}\n",
                    mode.word()
                ),
            )?;
            fs::set_permissions(&run, fs::Permissions::from_mode(0o755))?;
        }
        let room = Room::open(venue, self.scan)?;
        Stage::new(room, venue.ground).settle(mode, count)
    }

    fn rate(&self, _: Venue<'_>, _: Short, _: usize, _: Duration) -> anyhow::Result<Rate> {
        anyhow::bail!(
            "`{}` waits a second between two starts of a service, which is no figure of speed",
            self.supervisor
        )
    }
}
