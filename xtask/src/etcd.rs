//! Fetches etcd for the tests that want a real one: the program alone, into target/tools.
//!
//! Installing the distribution's package would also start a service on its ports.

use std::{fs, io, os::unix::fs::symlink, path::Path, process::Command};

use crate::workspace::Workspace;

const PACKAGE: &str = "etcd-server";

/// Makes sure that there is an etcd on the path of [`Workspace::program`].
pub(crate) fn provide(workspace: &Workspace) -> Result<(), String> {
    let there = || {
        let mut etcd = workspace.program("etcd");
        etcd.arg("--version");
        workspace.runs(etcd)
    };
    if there() {
        return Ok(());
    }
    println!("fetching {PACKAGE}");
    let folder = workspace.root().join("target/tools/etcd");
    fetch(workspace, &folder)?;
    link(&folder).map_err(|error| format!("cannot link etcd into `target/tools/bin`: {error}"))?;
    if there() {
        Ok(())
    } else {
        Err("etcd was fetched but does not run; install it and try again".to_owned())
    }
}

fn fetch(workspace: &Workspace, folder: &Path) -> Result<(), String> {
    let cannot =
        |why: &str| format!("no etcd, and {why}; install etcd (Debian: {PACKAGE}) and try again");
    // What an interrupted run left behind would be unpacked in its place.
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)
        .map_err(|error| cannot(&format!("cannot make a folder for it: {error}")))?;
    let within = |program: &str, arguments: &[&str]| {
        let mut command = workspace.program(program);
        command.args(arguments).current_dir(folder);
        command
    };
    let run = |mut command: Command| command.status().is_ok_and(|status| status.success());
    let download = || run(within("apt-get", &["--quiet", "download", PACKAGE]));
    // A fresh machine has no lists of packages; getting them takes root, the download does not.
    let update = || run(within("apt-get", &["--quiet", "update"]));
    if !(download() || update() && download()) {
        return Err(cannot("apt-get cannot download it"));
    }
    if run(within("sh", &["-c", "dpkg-deb --extract ./*.deb ."])) {
        Ok(())
    } else {
        Err(cannot("dpkg-deb cannot unpack it"))
    }
}

fn link(folder: &Path) -> io::Result<()> {
    let bin = folder.with_file_name("bin");
    fs::create_dir_all(&bin)?;
    let link = bin.join("etcd");
    let _ = fs::remove_file(&link);
    symlink("../etcd/usr/bin/etcd", link)
}
