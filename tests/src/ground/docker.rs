//! A Docker engine to deploy to: the one that answers, or one of the test's own.
//!
//! An engine of our own runs in namespaces of its own. Its bridges, rules and mounts are nobody else's, its containers
//! are not among the machine's processes, and all of it is gone with its first process. What the packages of Debian
//! unpack to is enough for it; nothing is installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tether_tests::eventually_within;
use tokio::process::{Child, Command};

/// Longest time for an engine to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Prepares the namespaces and becomes the engine. Files it writes below `/etc`, `/opt` and `/run` go with them.
const ENGINE: &str = r#"
folder=$1 group=$2
for own in etc opt; do
    mkdir -p "$folder/$own" "$folder/$own.work"
    mount -t overlay -o "lowerdir=/$own,upperdir=$folder/$own,workdir=$folder/$own.work" ground "/$own"
done
mount -t tmpfs ground /run
ip link set lo up
# Debian's package is complete only once it is installed.
mkdir "$folder/bin"
for name in iptables ip6tables; do
    command -v "$name" >/dev/null || ln -s "$(command -v xtables-nft-multi)" "$folder/bin/$name"
done
PATH=$PATH:$folder/bin
exec dockerd --log-level warn --host "unix://$folder/docker.sock" --data-root "$folder/data" --exec-root "$folder/exec" \
    --pidfile "$folder/pid" --cgroup-parent "/$group"
"#;

/// An engine. Dropping it ends it, where it is ours, with all that runs on it.
#[derive(Debug)]
pub(crate) struct Engine {
    own: Option<Own>,
}

#[derive(Debug)]
struct Own {
    /// Who made the namespaces.
    child: Child,
    /// The first process in them.
    first: String,
    folder: tempfile::TempDir,
    group: String,
}

impl Engine {
    /// The machine's, where one answers, or one of our own.
    ///
    /// # Errors
    /// Says what this machine refuses.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let theirs = Self { own: None };
        if theirs.answers().await {
            return Ok(theirs);
        }
        if !rustix::process::geteuid().is_root() {
            bail!("no Docker engine answers, and only root can start one");
        }
        let folder = tempfile::Builder::new()
            .prefix("tether-docker-")
            .tempdir()?;
        let group = format!("tether-docker-{}", std::process::id());
        let log = fs::File::create(folder.path().join("log"))?;
        // Ends with this process, however that ends.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "unshare"])
            .args([
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
            ])
            .args(["--propagation", "private", "sh", "-ec", ENGINE, "engine"])
            .arg(folder.path())
            .arg(&group)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        with_tools(&mut command);
        let mut child = command.spawn().context("`setpriv` cannot be run")?;
        let maker = child.id().context("it ended at once")?;
        let children = format!("/proc/{maker}/task/{maker}/children");
        let first = eventually_within(PATIENCE, async || {
            let ended = child.try_wait().ok().flatten();
            let listed = fs::read_to_string(&children).unwrap_or_default();
            let first = listed.split_whitespace().next().map(str::to_owned);
            first.or_else(|| ended.map(|_| String::new()))
        });
        let (first, _) = first.await.context("no process in the namespaces")?;
        let own = Own {
            child,
            first,
            folder,
            group,
        };
        let mut engine = Self { own: Some(own) };
        let answered = eventually_within(PATIENCE, async || {
            let ended = engine.has_ended();
            (ended || engine.answers().await).then_some(ended)
        });
        match answered.await {
            Some((false, _)) => Ok(engine),
            _ => bail!("dockerd does not start:\n{}", engine.log()),
        }
    }

    fn has_ended(&mut self) -> bool {
        let own = self.own.as_mut();
        own.is_some_and(|own| matches!(own.child.try_wait(), Ok(Some(_)) | Err(_)))
    }

    async fn answers(&self) -> bool {
        let mut version = self.command("docker");
        version.args(["version", "--format", "{{.Server.Version}}"]);
        let output = version.output().await;
        output.is_ok_and(|output| output.status.success())
    }

    fn log(&self) -> String {
        let log = self.own.as_ref().map(|own| own.folder.path().join("log"));
        log.and_then(|log| fs::read_to_string(log).ok())
            .unwrap_or_default()
    }

    /// Whether it is the test's own, so that nobody else's containers are on it.
    pub(crate) fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// A command that finds the engine, its processes and its ports, at the top of the checkout.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = match &self.own {
            None => Command::new(program),
            Some(own) => {
                let mut enter = Command::new("nsenter");
                enter.args(["--target", &own.first, "--net", "--mount", "--pid"]);
                enter.arg(format!("--wd={}", repository().display()));
                enter.args(["--", program]);
                let socket = own.folder.path().join("docker.sock");
                enter.env("DOCKER_HOST", format!("unix://{}", socket.display()));
                enter
            }
        };
        with_tools(&mut command);
        command
            .current_dir(repository())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Ends it, and sees it gone with everything that it had. Tells what is left of it.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        let Some(own) = &mut self.own else {
            return Vec::new();
        };
        let _ = own.child.start_kill();
        let _ = own.child.wait().await;
        let (group, folder) = (own.group.clone(), own.folder.path().to_owned());
        drop(self);
        let left = async || {
            let mut left: Vec<_> = cgroups(&group)
                .map(|path| path.display().to_string())
                .collect();
            let named = tether_tests::mentioning(&folder);
            left.extend(named.iter().map(|process| format!("{process:?}")));
            left
        };
        let none = eventually_within(Duration::from_secs(10), async || {
            left().await.is_empty().then_some(())
        });
        match none.await {
            Some(_) => Vec::new(),
            None => left().await,
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        while matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Those that were killed with the first process need a moment to leave their cgroups.
        for _ in 0..200 {
            cgroups(&self.group).for_each(|group| remove(&group));
            if cgroups(&self.group).next().is_none() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// What the engine made for its containers, in every hierarchy.
fn cgroups(name: &str) -> impl Iterator<Item = PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = hierarchies.map(|entry| entry.path());
    let folders = folders.chain([root.to_owned()]);
    folders
        .map(move |folder| folder.join(name))
        .filter(|path| path.exists())
}

fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// The top of the checkout.
pub(crate) fn repository() -> PathBuf {
    let here = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    here.canonicalize().unwrap_or_else(|_| here.to_owned())
}

/// The `PATH` on which everything is found that `cargo xtask` fetched: the engine with all it calls, and docker-compose.
pub(crate) fn path() -> Vec<PathBuf> {
    let tools = repository().join("target/tools");
    let parts = ["dockerd/usr/sbin", "dockerd/usr/bin", "bin"].map(|part| tools.join(part));
    let path = std::env::var_os("PATH").unwrap_or_default();
    parts
        .into_iter()
        .chain(std::env::split_paths(&path))
        .collect()
}

fn with_tools(command: &mut Command) {
    if let Ok(path) = std::env::join_paths(path()) {
        command.env("PATH", path);
    }
    let unpacked = repository().join("target/tools/dockerd");
    let libraries = ["usr/lib", "lib"].map(|part| unpacked.join(part).join("x86_64-linux-gnu"));
    if unpacked.exists() {
        command.env("XTABLES_LIBDIR", libraries[0].join("xtables"));
        if let Ok(path) = std::env::join_paths(&libraries) {
            command.env("LD_LIBRARY_PATH", path);
        }
    }
}
