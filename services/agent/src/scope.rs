//! A scope of systemd that holds zygote, shims and workers apart from the agent's own unit: systemd ends all processes of a
//! unit with it, and workers are to outlive their agent.
//!
//! There is one for each runtime directory: the next agent's zygote comes into it too. It is there for as long as
//! something runs in it, and delegated: what is below it is the agent's.
//!
//! ```text
//! tether-workers.slice
//! `- tether-NODE-INODE.scope          what systemd knows
//!    |- shims                         zygotes and shims
//!    `- tether-NODE-INODE             one leaf for each worker
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tether_systemd::{Bus, Systemd};
use tokio::time::timeout;

use crate::limits;

/// No processes may be where controllers are handed on.
const SHIMS: &str = "shims";

/// How long systemd may take to make a scope.
const MADE: Duration = Duration::from_secs(20);

/// What systemd tells of a scope may be lost with the bus.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// One that may not be there yet.
#[derive(Debug)]
pub(crate) struct Scope {
    unit: String,
    slice: String,
    /// What the parent of the workers' leaves is called.
    name: String,
}

impl Scope {
    /// The scope in `slice` of the agent whose cgroups have this name.
    pub(crate) fn new(slice: &str, name: &str) -> Self {
        Self {
            unit: format!("{name}.scope"),
            slice: slice.to_owned(),
            name: name.to_owned(),
        }
    }

    /// Puts a process into it, and tells where in the hierarchy of version 2 that is.
    ///
    /// # Errors
    /// When systemd does not make it, or there is no such hierarchy.
    pub(crate) async fn take(&self, pid: u32) -> io::Result<PathBuf> {
        let refused = |why: String| io::Error::other(format!("`{}`: {why}", self.unit));
        let mount =
            limits::unified_mount().ok_or_else(|| refused("no cgroup2 is mounted".to_owned()))?;
        match timeout(MADE, self.try_take(&mount, pid)).await {
            Ok(taken) => taken.map_err(|error| refused(error.to_string())),
            Err(_) => Err(refused(format!("it is not there after {MADE:?}"))),
        }
    }

    async fn try_take(&self, mount: &Path, pid: u32) -> Result<PathBuf, tether_systemd::Error> {
        let systemd = Systemd::connect(Bus::System).await?;
        let mut watch = systemd.watch(&self.unit).await?;
        let mut asked = false;
        loop {
            // The last worker of an earlier agent may end in between, and the scope with it.
            if let Some(cgroup) = systemd.cgroup_of_scope(&self.unit).await?
                && let path = mount.join(cgroup.trim_start_matches('/'))
                && path.is_dir()
                && self.enter(&path, pid).is_ok()
            {
                return Ok(path);
            }
            if !asked {
                systemd.start_scope(&self.unit, &self.around(pid)).await?;
                asked = true;
            }
            let _ = timeout(LOOK_AGAIN, watch.changed()).await;
        }
    }

    fn around(&self, pid: u32) -> tether_systemd::Scope {
        tether_systemd::Scope {
            description: "Workers of Tether".to_owned(),
            pid,
            slice: self.slice.clone(),
        }
    }

    /// Moves a process below the scope, and has controllers handed on to the leaves beside it.
    fn enter(&self, scope: &Path, pid: u32) -> io::Result<()> {
        let (shims, leaves) = (scope.join(SHIMS), scope.join(&self.name));
        make_dir(&shims)?;
        fs::write(shims.join("cgroup.procs"), pid.to_string())?;
        // Not there any more where the scope ended with the last zygote.
        make_dir(&leaves)?;
        limits::hand_on(scope);
        limits::hand_on(&leaves);
        Ok(())
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
