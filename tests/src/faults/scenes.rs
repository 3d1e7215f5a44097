//! A machine that runs out of something: the disk, descriptors, processes, memory files, and the power to kill.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use rustix::{
    io::Errno,
    process::{Pid, Resource, Rlimit, getrlimit, prlimit},
};
use tether_proto::{
    common::{DeathCause, WorkerPhase},
    node::WorkerReport,
};
use tether_tests::eventually_within;

use crate::{
    lineage::Pinned,
    lives::{explained, lives, refusal},
    node::{Node, Outcome},
    rows::Rows,
};

/// What every scene that refuses starts is to come to.
const REFUSED: &str = "a start fails with the reason, and works again afterwards; nothing is left";

/// How long nothing may be heard of a death that cannot have happened: longer than a shim tries to kill.
const UNDYING: Duration = Duration::from_secs(30);

/// Plays all whose name holds `only`.
pub(crate) async fn play(only: &str) -> anyhow::Result<Rows> {
    let mut rows = Rows::default();
    let mut row = |name: &str, expected: &str, seen: anyhow::Result<Option<String>>| match seen {
        Ok(Some(seen)) => rows.add(name, expected, Ok(seen)),
        Ok(None) => rows.skip(
            name,
            expected,
            "it takes root, or a cgroup that is not here",
        ),
        Err(error) => rows.add(name, expected, Err(format!("{error:#}"))),
    };
    let wanted = |name: &str| name.contains(only);
    if wanted("full disk") {
        row("full disk", REFUSED, full_disk().await);
    }
    if wanted("descriptor limit of the agent") {
        let seen = descriptors(|node| node.agent.as_ref().map(|agent| agent.pid)).await;
        row("descriptor limit of the agent", REFUSED, seen);
    }
    if wanted("descriptor limit of the zygote") {
        let seen = descriptors(|node| node.zygote().map(|zygote| zygote.pid)).await;
        row("descriptor limit of the zygote", REFUSED, seen);
    }
    if wanted("process limit") {
        row("process limit", REFUSED, processes().await);
    }
    if wanted("no memory file") {
        let expected = "the agent does not start, and says why";
        row("no memory file", expected, memory_file().await);
    }
    let expected = "it is reported as such, and its death only once it is gone";
    if wanted("unkillable worker") {
        let seen = unkillable(Keeper::Lives).await;
        row("unkillable worker", expected, seen);
    }
    if wanted("unkillable worker of a killed shim") {
        let seen = unkillable(Keeper::Killed).await;
        row("unkillable worker of a killed shim", expected, seen);
    }
    Ok(rows)
}

/// The runtime directory has no room left: the dying die nevertheless, and are reported.
async fn full_disk() -> anyhow::Result<Option<String>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    // In a mount namespace of its own, which ends with the agent.
    let script = "exec unshare --mount --propagation private sh -ec \
        'mount -t tmpfs -o size=1m none \"$TF/run\"; exec \"$@\"' sh \"$@\"";
    let mut node = Node::start_by("disk", Some(script)).await?;
    let (number, begun) = node.begin("stubborn").await?;
    anyhow::ensure!(matches!(begun, Outcome::Ready(_)), "{begun:?}");

    let ballast = node.seen("run/ballast");
    fill(&ballast)?;
    let refused = refused(&mut node).await?;
    node.order_stop(number);
    let death = node.death(number).await?;
    anyhow::ensure!(
        death
            .death
            .as_ref()
            .is_some_and(|death| death.cause() == DeathCause::OrderedByOperator),
        "a death on a full disk was reported as {death:?}"
    );
    fs::remove_file(&ballast)?;
    recovered(node, refused).await
}

/// Writes until there is no room for another byte.
fn fill(path: &Path) -> anyhow::Result<()> {
    let mut file = File::create(path)?;
    for piece in [&[0_u8; 4096][..], &[0]] {
        while file.write(piece).is_ok() {}
    }
    let full = file
        .write(&[0])
        .err()
        .and_then(|error| error.raw_os_error());
    anyhow::ensure!(
        full == Some(Errno::NOSPC.raw_os_error()),
        "the disk does not fill up"
    );
    Ok(())
}

/// No descriptor can be opened beyond those that are.
async fn descriptors(whose: impl Fn(&Node) -> Option<u32>) -> anyhow::Result<Option<String>> {
    let mut node = Node::start("files").await?;
    lives(&mut node).await.map_err(anyhow::Error::msg)?;
    let number = whose(&node).context("there is no such process")?;
    let pid = i32::try_from(number).ok().and_then(Pid::from_raw);
    // As many as are polled at once, and fewer than are open: not one more can be had.
    let few = Rlimit {
        current: Some(3),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(pid, Resource::Nofile, few)?;
    let refused = refused(&mut node).await?;
    prlimit(pid, Resource::Nofile, before)?;
    recovered(node, refused).await
}

/// The zygote's cgroup has no room for another process.
async fn processes() -> anyhow::Result<Option<String>> {
    let mut node = Node::start("pids").await?;
    lives(&mut node).await.map_err(anyhow::Error::msg)?;
    node.quiet(None).await.map_err(anyhow::Error::msg)?;
    let zygote = node.zygote().context("there is no zygote")?;
    let Some(group) = Group::of("pids", "pids.max", zygote.pid)? else {
        node.end().await?;
        return Ok(None);
    };
    fs::write(group.0.join("pids.max"), "1")?;
    let refused = refused(&mut node).await?;
    fs::write(group.0.join("pids.max"), "max")?;
    let recovered = recovered(node, refused).await;
    group.remove().await?;
    recovered
}

/// The agent has nothing to run its zygote from.
async fn memory_file() -> anyhow::Result<Option<String>> {
    const MEMFD_CREATE: i32 = 319;

    if !cfg!(target_arch = "x86_64") {
        return Ok(None);
    }
    let mut node = Node::prepare("memfd", None).await?;
    node.arm("agent", MEMFD_CREATE, 1, Errno::PERM.raw_os_error())
        .await?;
    let joined = node.join().await?;
    let words = node.last_words();
    node.end().await?;
    anyhow::ensure!(!joined, "it joined without a zygote's program");
    refusal(&words).map(Some).map_err(anyhow::Error::msg)
}

/// What becomes of the shim of an unkillable worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    Lives,
    Killed,
}

/// A worker that no signal reaches, as one in a hung driver: frozen by a cgroup of version 1, it dies only
/// when it is thawed.
async fn unkillable(keeper: Keeper) -> anyhow::Result<Option<String>> {
    let mut node = Node::start("undying").await?;
    let (number, begun) = node.begin("stubborn").await?;
    let Outcome::Ready(ready) = begun else {
        anyhow::bail!("{begun:?}");
    };
    let Some(group) = Group::of("freezer", "freezer.state", ready.pid)? else {
        node.end().await?;
        return Ok(None);
    };
    fs::write(group.0.join("freezer.state"), "FROZEN")?;
    let frozen = eventually_within(Duration::from_secs(5), async || {
        let state = fs::read_to_string(group.0.join("freezer.state")).ok()?;
        (state.trim() == "FROZEN").then_some(())
    });
    frozen.await.context("it does not freeze")?;

    match keeper {
        Keeper::Lives => node.order_stop(number),
        Keeper::Killed => {
            let shim = node.keepers(ready.pid)?.0;
            anyhow::ensure!(Pinned::new(shim)?.kill(), "its shim cannot be killed");
        }
    }
    let said = reported_undying(&mut node, number).await;
    fs::write(group.0.join("freezer.state"), "THAWED")?;
    let said = said?;
    let death = node.death(number).await?;
    anyhow::ensure!(explained(&death).is_ok(), "{death:?}");
    let recovered = recovered(node, said).await;
    group.remove().await?;
    recovered
}

/// What is said of a worker that does not die; its death is not among it.
async fn reported_undying(node: &mut Node, number: u64) -> anyhow::Result<String> {
    let reported = async {
        loop {
            let report: WorkerReport = node.report(number).await?;
            anyhow::ensure!(
                report.phase() != WorkerPhase::Dead,
                "it is said to be dead while it cannot die: {report:?}"
            );
            if report.status.contains("cannot be killed") {
                return Ok(report.status);
            }
        }
    };
    tokio::time::timeout(UNDYING, reported)
        .await
        .context("nobody says that it cannot be killed")?
}

/// A start that cannot succeed: why.
async fn refused(node: &mut Node) -> anyhow::Result<String> {
    match node.begin("stubborn").await?.1 {
        Outcome::Ready(report) => anyhow::bail!("it started nevertheless: {report:?}"),
        Outcome::Dead(report) => {
            anyhow::ensure!(!report.permanent, "nobody would start it again: {report:?}");
            explained(&report).map_err(anyhow::Error::msg)
        }
    }
}

/// Everything works again, and nothing is left.
async fn recovered(mut node: Node, seen: String) -> anyhow::Result<Option<String>> {
    let went = lives(&mut node).await.map_err(anyhow::Error::msg)?;
    anyhow::ensure!(went == "worked", "and afterwards: {went}");
    node.quiet(None).await.map_err(anyhow::Error::msg)?;
    node.end().await?;
    Ok(Some(format!("{seen}; then worked")))
}

/// A cgroup with one process in it.
struct Group(PathBuf);

impl Group {
    /// Makes one with this file in a hierarchy of version 1, or below that of version 2, and moves a process
    /// into it; none where that cannot be done.
    fn of(controller: &str, file: &str, pid: u32) -> anyhow::Result<Option<Self>> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        for line in mounts.lines() {
            let fields: Vec<&str> = line.split(' ').collect();
            let fits = fields.get(2) == Some(&"cgroup2")
                || (fields.get(2) == Some(&"cgroup")
                    && fields.get(3).is_some_and(|options| {
                        options.split(',').any(|option| option == controller)
                    }));
            let Some(mount) = fields.get(1).filter(|_| fits) else {
                continue;
            };
            let group = Self(Path::new(mount).join(format!("tether-faults-{pid}")));
            if fs::create_dir(&group.0).is_err() {
                continue;
            }
            let moved = group.0.join(file).exists()
                && fs::write(group.0.join("cgroup.procs"), pid.to_string()).is_ok();
            if moved {
                return Ok(Some(group));
            }
            let _ = fs::remove_dir(&group.0);
        }
        Ok(None)
    }

    /// Removes it once it is empty.
    async fn remove(self) -> anyhow::Result<()> {
        let gone = async || fs::remove_dir(&self.0).is_ok().then_some(());
        eventually_within(Duration::from_secs(5), gone)
            .await
            .map(drop)
            .context("a cgroup of the test cannot be removed")
    }
}
