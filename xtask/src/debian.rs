//! Fetches servers that tests want for real out of their Debian packages, into target/tools.
//!
//! Installing such a package would also start a service on its ports. Unpacking it takes no root.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use crate::workspace::Workspace;

/// A program and where it comes from.
pub(crate) struct Program {
    /// As it is called.
    pub(crate) name: &'static str,
    /// What has it tell its version.
    version: &'static str,
    /// Where its package puts it.
    path: &'static str,
    /// Its package, then the libraries it needs that a plain Debian does not have.
    packages: &'static [&'static str],
}

/// Every program that the tests want.
pub(crate) const ALL: &[Program] = &[
    Program {
        name: "etcd",
        version: "--version",
        path: "usr/bin/etcd",
        packages: &["etcd-server"],
    },
    Program {
        name: "dnsmasq",
        version: "--version",
        path: "usr/sbin/dnsmasq",
        packages: &[
            "dnsmasq-base",
            "libdbus-1-3",
            "libjansson4",
            "libmnl0",
            "libnetfilter-conntrack3",
            "libnfnetlink0",
            "libnftables1",
            "libnftnl11",
            "libxtables12",
        ],
    },
    Program {
        name: "nft",
        version: "--version",
        path: "usr/sbin/nft",
        packages: &[
            "nftables",
            "libbsd0",
            "libedit2",
            "libgmp10",
            "libjansson4",
            "libmd0",
            "libmnl0",
            "libnftables1",
            "libnftnl11",
            "libxtables12",
        ],
    },
    Program {
        name: "ip",
        version: "-V",
        path: "sbin/ip",
        packages: &[
            "iproute2", "libbpf1", "libbsd0", "libelf1", "libmd0", "libmnl0",
        ],
    },
];

/// Makes sure that the program is on the path of [`Workspace::program`].
pub(crate) fn provide(workspace: &Workspace, wanted: &Program) -> Result<(), String> {
    let Program {
        name,
        version,
        path,
        packages,
    } = wanted;
    let there = || {
        let mut program = workspace.program(*name);
        program.arg(version);
        workspace.runs(program)
    };
    if there() {
        return Ok(());
    }
    let tools = workspace.root().join("target/tools");
    println!("fetching {}", packages.join(" "));
    fetch(workspace, &tools.join(name), packages).map_err(|why| {
        let package = packages[0];
        format!("no {name}, and {why}; install {name} (Debian: {package}) and try again")
    })?;
    install(&tools, name, path)
        .map_err(|error| format!("cannot put {name} into `target/tools/bin`: {error}"))?;
    if there() {
        Ok(())
    } else {
        Err(format!(
            "{name} was fetched but does not run; install it and try again"
        ))
    }
}

/// Unpacks the packages into `folder`.
fn fetch(workspace: &Workspace, folder: &Path, packages: &[&str]) -> Result<(), String> {
    // What an interrupted run left behind would be unpacked in its place.
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).map_err(|error| format!("cannot make a folder for it: {error}"))?;
    let within = |program: &str, arguments: &[&str]| {
        let mut command = workspace.program(program);
        command.args(arguments).current_dir(folder);
        command
    };
    let run = |mut command: Command| command.status().is_ok_and(|status| status.success());
    let download = || {
        let mut download = within("apt-get", &["--quiet", "download"]);
        download.args(packages);
        run(download)
    };
    // A fresh machine has no lists of packages; getting them takes root, the download does not.
    let update = || run(within("apt-get", &["--quiet", "update"]));
    if !(download() || update() && download()) {
        return Err("apt-get cannot download it".to_owned());
    }
    let unpack = "for package in ./*.deb; do dpkg-deb --extract \"$package\" . || exit 1; done";
    if run(within("sh", &["-ec", unpack])) {
        Ok(())
    } else {
        Err("dpkg-deb cannot unpack it".to_owned())
    }
}

/// Puts a script into `TOOLS/bin` that runs `TOOLS/NAME/PATH` with the libraries unpacked beside it.
fn install(tools: &Path, name: &str, path: &str) -> io::Result<()> {
    let bin = tools.join("bin");
    fs::create_dir_all(&bin)?;
    let script = bin.join(name);
    // Writing through a link would write into the program it leads to.
    let _ = fs::remove_file(&script);
    fs::write(
        &script,
        format!(
            "#!/bin/sh\n\
             # Written by `cargo xtask`: {name} out of its Debian package.\n\
             folder=$(dirname \"$0\")/../{name}\n\
             for libraries in \"$folder\"/lib/*-linux-gnu* \"$folder\"/usr/lib/*-linux-gnu*; do\n\
             \tLD_LIBRARY_PATH=$libraries${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n\
             done\n\
             export LD_LIBRARY_PATH\n\
             # A signal to this process is for the program.\n\
             exec \"$folder/{path}\" \"$@\"\n"
        ),
    )?;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755))
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;

    #[test]
    fn every_program_has_a_name_of_its_own_and_a_package() {
        for program in ALL {
            let same = ALL.iter().filter(|other| other.name == program.name);
            assert_eq!(same.count(), 1, "{}", program.name);
            assert!(!program.packages.is_empty(), "{}", program.name);
        }
    }

    #[test]
    fn an_unpacked_program_runs_in_the_place_of_its_script_with_its_libraries() {
        let tools = env::temp_dir().join(format!("xtask-{}", process::id()));
        let program = tools.join("server/usr/bin/server");
        let libraries = tools.join("server/usr/lib/x86_64-linux-gnu");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::create_dir_all(&libraries).unwrap();
        fs::write(&program, "#!/bin/sh\necho $$ $LD_LIBRARY_PATH $1\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();

        install(&tools, "server", "usr/bin/server").unwrap();
        let child = Command::new(tools.join("bin/server"))
            .arg("--here")
            .stdout(process::Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id();
        let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();

        fs::remove_dir_all(&tools).unwrap();
        assert!(said.starts_with(&format!("{pid} ")), "{said}");
        assert!(said.contains("/server/usr/lib/x86_64-linux-gnu:"), "{said}");
        assert!(said.ends_with("--here\n"), "{said}");
    }
}
