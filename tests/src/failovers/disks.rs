//! Disks that stall: file systems of their own on loop devices, frozen by the kernel.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tokio::process::Command;

/// Room for the write-ahead log of an etcd, which claims 64 MB at once and twice that when it goes on to the next.
const SIZE: u64 = 400 << 20;

/// A program that does not end within this is stuck on what it should have thawed.
const PATIENCE: Duration = Duration::from_secs(30);

/// How disks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disks {
    /// Each a file system of its own.
    Own,
    /// Folders of one file system, where a machine mounts none; nothing freezes them.
    Shared,
}

/// A file system on a loop device. Unmounted by [`crate::leftovers::clear`], with all others of its world.
#[derive(Debug)]
pub(crate) struct Disk {
    mount: PathBuf,
}

impl Disk {
    /// Makes one in a folder.
    pub(crate) async fn make(folder: &Path, name: &str, disks: Disks) -> anyhow::Result<Self> {
        let mount = folder.join(name);
        fs::create_dir(&mount)?;
        if disks == Disks::Shared {
            return Ok(Self { mount });
        }
        let image = folder.join(format!("{name}.img"));
        File::create(&image)?.set_len(SIZE)?;
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image)).await?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&mount))
        .await?;
        Ok(Self { mount })
    }

    /// Why there can be none here, if there cannot.
    pub(crate) async fn impossible(folder: &Path) -> Option<String> {
        let tried = async {
            let disk = Self::make(folder, "tried", Disks::Own).await?;
            disk.freeze().await?;
            disk.thaw().await
        };
        tried.await.err().map(|error| format!("{error:#}"))
    }

    /// Where its files are.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    /// From now on whoever writes to it waits.
    pub(crate) async fn freeze(&self) -> anyhow::Result<()> {
        run(Command::new("fsfreeze").arg("-f").arg(&self.mount)).await
    }

    /// Whoever waits goes on.
    pub(crate) async fn thaw(&self) -> anyhow::Result<()> {
        run(Command::new("fsfreeze").arg("-u").arg(&self.mount)).await
    }
}

async fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.as_std().get_program().to_os_string();
    let name = name.display();
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output())
        .await
        .with_context(|| format!("`{name}` does not end"))?
        .with_context(|| format!("`{name}` cannot be run"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{name}`: {}", said.trim());
    Ok(())
}

/// The file systems that are mounted below a folder.
pub(crate) fn mounted(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let points = points.map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(folder)).collect())
}
