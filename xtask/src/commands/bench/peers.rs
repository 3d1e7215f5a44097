//! What `bench agent` is given: our agent built for release, a Debian root with the peers' packages, and
//! the Python environment of the examples.

use std::{fs, path::Path, process::Command};

use crate::{debian, run::run, workspace::Workspace};

/// The peers; their services are never started, as nothing boots this root by itself.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "supervisor",
    "runit",
    "s6",
    "elixir",
];

/// What makes the root and boots it, with the package of each.
const TOOLS: &[(&str, &str)] = &[
    ("debootstrap", "debootstrap"),
    ("systemd-nspawn", "systemd-container"),
];

/// Where the root is kept for the next run.
const ROOT: &str = "target/bench/peers";

/// The arguments of `bench-agent`.
pub(super) fn arguments(workspace: &Workspace) -> Result<Vec<String>, String> {
    let agent = "build --release --locked --package tether-agent";
    let floor = "build --release --locked --package tether-benches --bin floor";
    if ![agent, floor]
        .iter()
        .all(|line| run(workspace.cargo(line)).ok)
    {
        return Err("the agent does not build, so there is nothing to measure".to_owned());
    }
    let text = |path: &Path| path.display().to_string();
    let agent = workspace.target().join("release/tether-agent");
    let mut arguments = vec!["--agent".to_owned(), text(&agent)];
    match root(workspace) {
        Ok(()) => arguments.extend(["--peers".to_owned(), text(&workspace.root().join(ROOT))]),
        Err(why) => {
            println!("the peers are skipped: {why}");
            arguments.extend(["--no-peers".to_owned(), why]);
        }
    }
    let python = workspace.root().join("target/venv/digits/bin/python");
    if python.exists() {
        arguments.extend(["--python".to_owned(), text(&python)]);
    }
    Ok(arguments)
}

/// Makes sure of the peers' root.
fn root(workspace: &Workspace) -> Result<(), String> {
    let id = workspace.program("id").arg("-u").output();
    if id.is_ok_and(|id| id.stdout != b"0\n") {
        return Err("making and booting a root with their packages takes root".to_owned());
    }
    for (tool, package) in TOOLS {
        let mut there = workspace.program(*tool);
        there.arg("--version");
        if !workspace.runs(there) {
            install(workspace, package)?;
        }
    }
    let root = workspace.root().join(ROOT);
    if root.exists() {
        return Ok(());
    }
    let (archive, release) = debian::archive(workspace)?;
    // Moved into its place when it is whole: an interrupted run leaves none that looks complete.
    let half = root.with_extension("half");
    let _ = fs::remove_dir_all(&half);
    println!("making a Debian {release} root with {}", PACKAGES.join(" "));
    let mut debootstrap = workspace.program("debootstrap");
    debootstrap
        .args(["--variant=minbase", &release])
        .args([half.as_os_str(), archive.as_ref()]);
    let mut install = workspace.program("chroot");
    install
        .arg(&half)
        .args(["sh", "-ec", INSTALL, "sh"])
        .args(PACKAGES);
    for command in [debootstrap, install] {
        let ended = run(command);
        if !ended.ok {
            return Err(format!("their root cannot be made: {}", ended.last_line));
        }
    }
    fs::rename(&half, &root).map_err(|error| format!("cannot put their root in place: {error}"))
}

const INSTALL: &str = "export DEBIAN_FRONTEND=noninteractive
    apt-get --quiet --yes --no-install-recommends install \"$@\"
    apt-get clean";

fn install(workspace: &Workspace, package: &str) -> Result<(), String> {
    let apt = |arguments: &[&str]| -> Command {
        let mut apt = workspace.program("apt-get");
        apt.args(arguments);
        apt
    };
    let install = || {
        let options = ["--quiet", "--yes", "--no-install-recommends", "install"];
        let mut install = apt(&options);
        run({
            install.arg(package);
            install
        })
        .ok
    };
    // A fresh machine has no lists of packages.
    if install() || run(apt(&["--quiet", "update"])).ok && install() {
        Ok(())
    } else {
        Err(format!("install `{package}` and try again"))
    }
}
