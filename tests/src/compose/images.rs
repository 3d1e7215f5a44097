//! The images, on a machine that reaches no registry: those that others publish are made of Debian's packages.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, ensure};
use tokio::{io::AsyncWriteExt as _, process::Command};

use crate::docker::{Engine, repository};

/// What stands for the images of Rust, Python, Elixir, etcd and Prometheus.
pub(crate) const BASE: &str = "tether-ground:base";

/// The same as another image, for etcd to be upgraded to.
pub(crate) const NEXT_BASE: &str = "tether-ground:next";

/// What is put on Debian: our static programs, the packages of Python that the example's worker wants, etcd.
const RECIPE: &str = "FROM tether-ground:root
COPY programs /programs
COPY python /usr/local/lib/python3.11/dist-packages
COPY etcd /usr/local/bin/etcd
";

/// What is wanted of the environment of Python, by the beginnings of its folders.
const PYTHON: [&str; 6] = [
    "google",
    "grpc",
    "grpc_health",
    "grpc_reflection",
    "numpy",
    "numpy.libs",
];

/// Gives the engine what `docker-compose.yml` names as other people's images; the static programs are in a folder.
pub(crate) async fn provide(engine: &Engine, programs: &Path) -> anyhow::Result<()> {
    let root = Command::new(repository().join("tools/image-root.sh"))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .await?;
    ensure!(root.status.success(), "`tools/image-root.sh` makes no root");
    let root = String::from_utf8_lossy(&root.stdout).trim().to_owned();
    import(engine, &root).await?;
    let folder = tempfile::tempdir()?;
    gather(folder.path(), programs)?;
    fs::write(folder.path().join("Dockerfile"), RECIPE)?;
    let context = folder.path().display().to_string();
    quietly(engine, &["build", "--tag", BASE, &context]).await?;
    quietly(engine, &["tag", BASE, NEXT_BASE]).await
}

async fn import(engine: &Engine, root: &str) -> anyhow::Result<()> {
    let mut pack = Command::new("tar");
    pack.args(["--numeric-owner", "-C", root, "-c", "."])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut pack = pack.spawn()?;
    let mut import = engine.command("docker");
    import
        .args(["import", "-", "tether-ground:root"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut import = import.spawn()?;
    let mut from = pack.stdout.take().context("it is piped")?;
    let mut to = import.stdin.take().context("it is piped")?;
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await?;
    drop(to);
    ensure!(pack.wait().await?.success(), "`{root}` cannot be read");
    ensure!(
        import.wait().await?.success(),
        "`{root}` cannot be imported"
    );
    Ok(())
}

fn gather(folder: &Path, programs: &Path) -> anyhow::Result<()> {
    copy(programs, &folder.join("programs"))
        .context("static programs: `cargo xtask ground` builds them")?;
    let python = folder.join("python");
    fs::create_dir(&python)?;
    let venv = repository().join("target/venv/digits/lib");
    let version = fs::read_dir(&venv)?.flatten().next();
    let packages = version
        .context("no Python environment: `tools/python-env.sh`")?
        .path();
    let packages = packages.join("site-packages");
    for name in PYTHON {
        copy(&packages.join(name), &python.join(name))?;
    }
    let file = "typing_extensions.py";
    fs::copy(packages.join(file), python.join(file))?;
    let etcd = repository().join("target/tools/etcd/usr/bin/etcd");
    let etcd = if etcd.exists() {
        etcd
    } else {
        on_path("etcd").context("no etcd: `cargo xtask ground` fetches it")?
    };
    fs::copy(&etcd, folder.join("etcd"))?;
    Ok(())
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// A folder with all below it.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("`{}`", from.display()))? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy(&entry.path(), &to)?,
            false => drop(fs::copy(entry.path(), to)?),
        }
    }
    Ok(())
}

/// Runs `docker` and wants no more than that it succeeds.
pub(crate) async fn quietly(engine: &Engine, arguments: &[&str]) -> anyhow::Result<()> {
    let output = engine.command("docker").args(arguments).output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "docker {}: {said}",
        arguments.join(" ")
    );
    Ok(())
}
