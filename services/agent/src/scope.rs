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
    process::{Command, Output, Stdio},
    time::Duration,
};

use tether_clock::{BootClock, Clock as _};

use crate::limits;

/// No processes may be where controllers are handed on.
const SHIMS: &str = "shims";

/// How long systemd may take to make a scope.
const MADE: Duration = Duration::from_secs(20);

/// How long each program that asks systemd waits for an answer; by itself it would for longer.
const ANSWERS_WITHIN: &str = "5s";

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Where systemd takes orders.
const MANAGER: [&str; 7] = [
    "--system",
    "call",
    "org.freedesktop.systemd1",
    "/org/freedesktop/systemd1",
    "org.freedesktop.systemd1.Manager",
    "StartTransientUnit",
    "ssa(sv)a(sa(sv))",
];

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
    pub(crate) fn take(&self, pid: u32) -> io::Result<PathBuf> {
        let refused = |why: String| io::Error::other(format!("`{}`: {why}", self.unit));
        let mount =
            limits::unified_mount().ok_or_else(|| refused("no cgroup2 is mounted".to_owned()))?;
        let deadline = BootClock.now() + MADE;
        let mut asked = false;
        loop {
            // The last worker of an earlier agent may end in between, and the scope with it.
            if let Some(path) = self.path(&mount)?
                && self.enter(&path, pid).is_ok()
            {
                return Ok(path);
            }
            if !asked {
                self.make(pid).map_err(refused)?;
                asked = true;
            }
            if BootClock.now() > deadline {
                return Err(refused(format!("it is not there after {MADE:?}")));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Where it is, once it is there.
    fn path(&self, mount: &Path) -> io::Result<Option<PathBuf>> {
        let words = ["show", "--property=ControlGroup", "--value", &self.unit];
        let shown = run("systemctl", &words)?;
        let group = String::from_utf8_lossy(&shown.stdout).trim().to_owned();
        let path = mount.join(group.trim_start_matches('/'));
        Ok((!group.is_empty() && path.is_dir()).then_some(path))
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

    /// Has systemd make it around a process.
    fn make(&self, pid: u32) -> Result<(), String> {
        let pid = pid.to_string();
        let properties = [
            &["Description", "s", "Workers of Tether"][..],
            &["PIDs", "au", "1", &pid],
            &["Slice", "s", &self.slice],
            &["Delegate", "b", "true"],
        ];
        // From systemd 253 on, the end of one worker for want of memory would otherwise be the end of all.
        let spares_others: &[&str] = &["OOMPolicy", "s", "continue"];
        let with = [&properties[..], &[spares_others]].concat();
        self.ask(&with).or_else(|_| self.ask(&properties))
    }

    fn ask(&self, properties: &[&[&str]]) -> Result<(), String> {
        let count = properties.len().to_string();
        let mut words = MANAGER.to_vec();
        words.extend([self.unit.as_str(), "fail", &count]);
        words.extend(properties.concat());
        words.push("0");
        let answer = run("busctl", &words).map_err(|error| error.to_string())?;
        match answer.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&answer.stderr).trim().to_owned()),
        }
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn run(program: &str, words: &[&str]) -> io::Result<Output> {
    let output = Command::new(program)
        .args(words)
        .env("SYSTEMD_BUS_TIMEOUT", ANSWERS_WITHIN)
        .stdin(Stdio::null())
        .output();
    output.map_err(|error| io::Error::new(error.kind(), format!("`{program}`: {error}")))
}
