//! A look around: what `auto` goes by, as far as one process can see it.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{Access, access};
use tether_lifecycle::{Scheduler, Surroundings, Systemd};

/// How long whoever answers on this machine may take to.
const PATIENCE: Duration = Duration::from_secs(2);

const SERVICE_ACCOUNT: &str = "var/run/secrets/kubernetes.io/serviceaccount";

/// Where this process finds itself.
pub fn surroundings() -> Surroundings {
    Look {
        root: Path::new("/"),
        env: &|name| std::env::var(name).ok(),
        pid: std::process::id(),
        uid: rustix::process::geteuid().as_raw(),
    }
    .around()
}

/// From where one looks; another root is for trying it out.
pub struct Look<'a> {
    /// Where files are.
    pub root: &'a Path,
    /// Variables of the environment.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// This process.
    pub pid: u32,
    /// As whom.
    pub uid: u32,
}

impl std::fmt::Debug for Look<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { root, pid, uid, .. } = self;
        let mut debug = f.debug_struct("Look");
        debug.field("root", root).field("pid", pid);
        debug.field("uid", uid).finish_non_exhaustive()
    }
}

impl Look<'_> {
    /// What is to be seen. What only nodes know is left open.
    pub fn around(&self) -> Surroundings {
        let cgroups = self.read("proc/self/cgroup");
        Surroundings {
            kubernetes: self.kubernetes(&cgroups),
            nomad: self.nomad(&cgroups),
            systemd: self.systemd(),
            embedded: false,
            in_session: cgroups.lines().any(is_session),
            first: self.pid == 1,
            delegated: self.is_delegated(&cgroups),
            launchers: Vec::new(),
            owner: None,
        }
    }

    fn kubernetes(&self, cgroups: &str) -> Scheduler {
        // A kubelet mounts a pod's /etc/hosts from a file of that name of its own, whatever cgroups it shows.
        let mounts = self.read("proc/self/mountinfo");
        Scheduler {
            claimed: self.is_set("KUBERNETES_SERVICE_HOST"),
            given: self.root.join(SERVICE_ACCOUNT).join("namespace").exists(),
            placed: cgroups.contains("kubepods") || mounts.contains("/etc-hosts /etc/hosts "),
        }
    }

    fn nomad(&self, cgroups: &str) -> Scheduler {
        let alloc = (self.env)("NOMAD_ALLOC_ID").filter(|id| !id.is_empty());
        let dir = (self.env)("NOMAD_ALLOC_DIR").filter(|dir| !dir.is_empty());
        let is_dir = |dir: String| self.below(Path::new(&dir)).is_dir();
        Scheduler {
            placed: alloc.as_ref().is_some_and(|id| cgroups.contains(id)),
            claimed: alloc.is_some(),
            given: dir.is_some_and(is_dir),
        }
    }

    /// systemd's own socket is its owner's alone: for others it does nothing without asking somebody, who is not
    /// there where a service starts.
    fn systemd(&self) -> Systemd {
        if !self.root.join("run/systemd/system").is_dir() {
            return Systemd::Absent;
        }
        let mine = (self.env)("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        let socket = match (self.uid, mine) {
            (0, _) => PathBuf::from("/run/systemd/private"),
            (_, Some(dir)) => Path::new(&dir).join("systemd/private"),
            (_, None) => {
                return Systemd::Refused(
                    "this user has no XDG_RUNTIME_DIR, so no systemd of its own: run as root, or `loginctl enable-linger`"
                        .to_owned(),
                );
            }
        };
        match greet(&self.below(&socket), self.uid) {
            Ok(()) => Systemd::Usable(socket.display().to_string()),
            Err(why) => Systemd::Refused(format!("`{}`: {why}", socket.display())),
        }
    }

    fn is_delegated(&self, cgroups: &str) -> bool {
        let Some(own) = cgroups.lines().find_map(|line| line.strip_prefix("0::/")) else {
            return false;
        };
        let dir = self.root.join("sys/fs/cgroup").join(own);
        let writable = |file| access(dir.join(file), Access::WRITE_OK).is_ok();
        // The root of all cgroups has neither limits nor a kill of its own: it is nobody's to delegate.
        dir.join("cgroup.type").exists()
            && ["cgroup.procs", "cgroup.subtree_control"]
                .into_iter()
                .all(writable)
    }

    fn is_set(&self, name: &str) -> bool {
        (self.env)(name).is_some_and(|value| !value.is_empty())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_default()
    }

    fn below(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Whether a line of /proc/PID/cgroup is one of a login session: of a terminal, or of a desktop's application.
fn is_session(line: &str) -> bool {
    line.contains("/user.slice/") && line.ends_with(".scope")
}

/// Begins to talk as D-Bus does, which says whether somebody is there and takes us for who we are.
fn greet(socket: &Path, uid: u32) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let who: String = uid
        .to_string()
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    stream.write_all(format!("\0AUTH EXTERNAL {who}\r\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match answer.starts_with("OK ") {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "it answers `{}`",
            answer.trim().escape_default()
        ))),
    }
}

#[cfg(test)]
mod tests;
