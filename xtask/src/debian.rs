//! Fetches servers that tests and benches want for real out of their Debian packages, into target/tools.
//!
//! Installing such a package would also start a service on its ports. Unpacking it takes no root. A program that
//! has to be of another release of Debian than the machine's comes from the same mirror, by lists of its own, which
//! apt checks with the machine's keys.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use crate::workspace::Workspace;

/// Debian's keys, where apt is not told of them otherwise.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Tells the archive and the release that this machine gets its packages from.
const SOURCES: &[&str] = &[
    "indextargets",
    "--format",
    "$(ORIGIN) $(REPO_URI) $(RELEASE)",
    "Created-By: Packages",
];

/// A program and where it comes from.
pub(crate) struct Program {
    /// As it is called.
    pub(crate) name: &'static str,
    /// What has it tell its version, in words.
    version: &'static str,
    /// Where its package puts it.
    path: &'static str,
    /// What it has to tell of its version, when any will not do.
    says: Option<&'static str>,
    /// The release of Debian it has to come from, when the machine's own will not do.
    release: Option<&'static str>,
    /// Its package, then the libraries it needs that a plain Debian does not have.
    packages: &'static [&'static str],
}

/// Packages as files, which are installed elsewhere.
pub(crate) struct Packages {
    /// The folder in target/tools that they are in.
    pub(crate) name: &'static str,
    release: &'static str,
    packages: &'static [&'static str],
}

/// Every program that the tests want.
pub(crate) const ALL: &[Program] = &[
    // The store wants at least 3.5.16, which is what this release has; bookworm has 3.4.
    Program {
        name: "etcd",
        version: "--version",
        path: "usr/bin/etcd",
        says: Some("etcd Version: 3.5.16"),
        release: Some("trixie"),
        packages: &["etcd-server"],
    },
    // To be refused.
    Program {
        name: "etcd-3.4",
        version: "--version",
        path: "usr/bin/etcd",
        says: Some("etcd Version: 3.4."),
        release: Some("bookworm"),
        packages: &["etcd-server"],
    },
    Program {
        name: "dnsmasq",
        version: "--version",
        path: "usr/sbin/dnsmasq",
        says: None,
        release: None,
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
        name: "named",
        version: "-v",
        path: "usr/sbin/named",
        says: None,
        release: None,
        packages: &[
            "bind9",
            "bind9-libs",
            "libfstrm0",
            "libicu72",
            "libjemalloc2",
            "libjson-c5",
            "liblmdb0",
            "libmaxminddb0",
            "libnghttp2-14",
            "libprotobuf-c1",
            "libuv1",
            "libxml2",
        ],
    },
    Program {
        name: "nft",
        version: "--version",
        path: "usr/sbin/nft",
        says: None,
        release: None,
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
        says: None,
        release: None,
        packages: &[
            "iproute2", "libbpf1", "libbsd0", "libelf1", "libmd0", "libmnl0",
        ],
    },
];

/// What renders overlays of Kubernetes.
pub(crate) const KUBECTL: Program = Program {
    name: "kubectl",
    version: "version --client",
    path: "usr/bin/kubectl",
    // One that knows components, and says which kustomize it has; bookworm's does neither.
    says: Some("Kustomize Version: "),
    release: Some("trixie"),
    packages: &["kubectl"],
};

/// Supervisors that tests put agents and workers under.
pub(crate) const SUPERVISORS: &[Program] = &[
    Program {
        name: "supervisord",
        version: "--version",
        path: "usr/bin/supervisord",
        says: None,
        release: None,
        packages: &["supervisor", "python3-pkg-resources"],
    },
    // The others of its package have nothing that they would tell and end with status 0.
    Program {
        name: "chpst",
        version: "true",
        path: "usr/bin/chpst",
        says: None,
        release: None,
        packages: &["runit"],
    },
];

/// Programs that come in the package of another one, which stands first.
const BESIDE: &[(&str, &[&str])] = &[
    ("supervisord", &["supervisorctl"]),
    ("chpst", &["runsv", "runsvdir", "sv", "svlogd"]),
];

/// What makes and boots the machines that tests deploy to.
pub(crate) const GROUNDS: &[Program] = &[
    Program {
        name: "debootstrap",
        version: "--version",
        path: "usr/sbin/debootstrap",
        says: None,
        release: None,
        packages: &["debootstrap", "libpcre2-8-0", "libpsl5", "wget"],
    },
    Program {
        name: "systemd-nspawn",
        version: "--version",
        path: "usr/bin/systemd-nspawn",
        says: None,
        release: None,
        packages: &[
            "systemd-container",
            "libsystemd-shared",
            "libapparmor1",
            "libip4tc2",
            "libkmod2",
            "libseccomp2",
        ],
    },
    Program {
        name: "linux.uml",
        version: "--version",
        path: "usr/bin/linux.uml",
        says: None,
        release: None,
        packages: &["user-mode-linux"],
    },
];

/// What runs containers, and what makes the images that they are of.
pub(crate) const DOCKER: &[Program] = &[
    Program {
        name: "dockerd",
        version: "--version",
        path: "usr/sbin/dockerd",
        says: None,
        release: None,
        packages: &[
            "docker.io",
            "containerd",
            "runc",
            "tini",
            "iptables",
            "libdevmapper1.02.1",
            "libip4tc2",
            "libip6tc2",
            "libmnl0",
            "libnetfilter-conntrack3",
            "libnfnetlink0",
            "libnftnl11",
            "libseccomp2",
            "libxtables12",
        ],
    },
    Program {
        name: "docker-compose",
        version: "version",
        path: "usr/bin/docker-compose",
        says: None,
        release: None,
        packages: &[
            "docker-compose",
            "libyaml-0-2",
            "python3-attr",
            "python3-certifi",
            "python3-chardet",
            "python3-charset-normalizer",
            "python3-distro",
            "python3-distutils",
            "python3-docker",
            "python3-dockerpty",
            "python3-docopt",
            "python3-dotenv",
            "python3-idna",
            "python3-jsonschema",
            "python3-lib2to3",
            "python3-packaging",
            "python3-pkg-resources",
            "python3-pyrsistent",
            "python3-requests",
            "python3-six",
            "python3-texttable",
            "python3-urllib3",
            "python3-websocket",
            "python3-yaml",
        ],
    },
    // The generation after it, which this release has.
    Program {
        name: "docker-compose-2",
        version: "version",
        path: "usr/libexec/docker/cli-plugins/docker-compose",
        says: Some("Docker Compose version 2"),
        release: Some("trixie"),
        packages: &["docker-compose"],
    },
];

/// What is installed in machines that tests boot, of their release: supervisors, with what a small Debian lacks for them.
pub(crate) const IN_MACHINES: Packages = Packages {
    name: "supervisors",
    release: "bookworm",
    packages: &[
        "supervisor",
        "python3-pkg-resources",
        "lsb-base",
        "runit",
        "runit-run",
        "runit-helper",
        "sysuser-helper",
    ],
};

/// Proxies that a bench stands beside ours; no test wants them.
pub(crate) const PROXIES: &[Program] = &[
    Program {
        name: "haproxy",
        version: "-v",
        path: "usr/sbin/haproxy",
        says: None,
        release: None,
        packages: &[
            "haproxy",
            "liblua5.3-0",
            "libopentracing-c-wrapper0",
            "libopentracing1",
            "libssl3",
        ],
    },
    Program {
        name: "nginx",
        version: "-v",
        path: "usr/sbin/nginx",
        says: None,
        release: None,
        packages: &["nginx", "libssl3"],
    },
    Program {
        name: "nghttpx",
        version: "--version",
        path: "usr/sbin/nghttpx",
        says: None,
        release: None,
        packages: &[
            "nghttp2-proxy",
            "libc-ares2",
            "libev4",
            "libjemalloc2",
            "libnghttp2-14",
            "libssl3",
        ],
    },
];

/// Makes sure that the program is on the path of [`Workspace::program`].
pub(crate) fn provide(workspace: &Workspace, wanted: &Program) -> Result<(), String> {
    let Program {
        name,
        version,
        path,
        says,
        release,
        packages,
    } = wanted;
    let there = || {
        let mut program = workspace.program(*name);
        program.args(version.split(' ')).stderr(Stdio::null());
        let output = program.output();
        output.is_ok_and(|output| {
            let said = String::from_utf8_lossy(&output.stdout);
            output.status.success() && says.is_none_or(|wanted| said.contains(wanted))
        })
    };
    if there() {
        return Ok(());
    }
    let tools = workspace.root().join("target/tools");
    println!("fetching {}", packages.join(" "));
    fetch(workspace, &tools.join(name), *release, packages).map_err(|why| {
        let package = packages[0];
        format!("no {name}, and {why}; install {name} (Debian: {package}) and try again")
    })?;
    let put = |program: &str, path: &str| {
        install(&tools, name, program, path)
            .map_err(|error| format!("cannot put {program} into `target/tools/bin`: {error}"))
    };
    put(name, path)?;
    let beside = BESIDE.iter().filter(|(first, _)| first == name);
    for program in beside.flat_map(|(_, programs)| *programs) {
        put(program, &path.replace(name, program))?;
    }
    if there() {
        Ok(())
    } else {
        Err(format!(
            "{name} was fetched but does not run; install it and try again"
        ))
    }
}

/// Makes sure that the packages are in their folder.
pub(crate) fn collect(workspace: &Workspace, wanted: &Packages) -> Result<(), String> {
    let Packages {
        name,
        release,
        packages,
    } = wanted;
    let folder = workspace.root().join("target/tools").join(name);
    if folder.exists() {
        return Ok(());
    }
    println!("fetching {}", packages.join(" "));
    // Whole, or not there.
    let new = folder.with_extension("new");
    download(workspace, &new, Some(release), packages)?;
    fs::rename(&new, &folder).map_err(|error| format!("cannot make a folder for it: {error}"))
}

/// Unpacks the packages into `folder`.
fn fetch(
    workspace: &Workspace,
    folder: &Path,
    release: Option<&str>,
    packages: &[&str],
) -> Result<(), String> {
    download(workspace, folder, release, packages)?;
    let unpack = "for package in ./*.deb; do dpkg-deb --extract \"$package\" . || exit 1; done";
    let mut unpacked = workspace.program("sh");
    unpacked.args(["-ec", unpack]).current_dir(folder);
    if unpacked.status().is_ok_and(|status| status.success()) {
        Ok(())
    } else {
        Err("dpkg-deb cannot unpack it".to_owned())
    }
}

/// Puts the packages into `folder`, and nothing else.
fn download(
    workspace: &Workspace,
    folder: &Path,
    release: Option<&str>,
    packages: &[&str],
) -> Result<(), String> {
    // What an interrupted run left behind would be unpacked in its place.
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).map_err(|error| format!("cannot make a folder for it: {error}"))?;
    let lists = match release {
        None => Vec::new(),
        Some(release) => {
            let (archive, _) = archive(workspace)?;
            own_lists(folder, &line(&archive, release))
                .map_err(|error| format!("cannot make a folder for its lists: {error}"))?
        }
    };
    let within = |program: &str, arguments: &[&str]| {
        let mut command = workspace.program(program);
        command.args(arguments).current_dir(folder);
        command
    };
    let run = |mut command: Command| command.status().is_ok_and(|status| status.success());
    let download = || {
        let mut download = within("apt-get", &["--quiet", "download"]);
        download.args(&lists).args(packages);
        run(download)
    };
    // A fresh machine has no lists of packages; getting them takes root, but for lists of our own.
    let update = || {
        let mut update = within("apt-get", &["--quiet", "update"]);
        update.args(&lists);
        run(update)
    };
    let first = lists.is_empty() && download();
    if !(first || update() && download()) {
        return Err("apt-get cannot download it".to_owned());
    }
    let _ = fs::remove_dir_all(folder.join("apt"));
    Ok(())
}

/// The archive and the release that this machine gets Debian's packages from.
pub(crate) fn archive(workspace: &Workspace) -> Result<(String, String), String> {
    let listed = || {
        let listed = workspace.program("apt-get").args(SOURCES).output();
        let listed = listed.map_err(|error| format!("cannot run `apt-get`: {error}"))?;
        Ok::<_, String>(source(&String::from_utf8_lossy(&listed.stdout)))
    };
    if let Some(known) = listed()? {
        return Ok(known);
    }
    // Whose an archive is stands in its lists, which a fresh machine has not got.
    let _ = workspace
        .program("apt-get")
        .args(["--quiet", "update"])
        .status();
    listed()?.ok_or_else(|| "apt-get knows no Debian archive".to_owned())
}

/// The first of Debian's archives among these lines, and its release.
fn source(listed: &str) -> Option<(String, String)> {
    listed.lines().find_map(|line| {
        let (archive, release) = line.strip_prefix("Debian ")?.split_once(' ')?;
        Some((archive.to_owned(), release.to_owned()))
    })
}

/// The line of a list of sources that names `release` in `archive`.
fn line(archive: &str, release: &str) -> String {
    let keys = if Path::new(KEYS).exists() {
        format!("[signed-by={KEYS}] ")
    } else {
        String::new()
    };
    format!("deb {keys}{archive} {release} main\n")
}

/// What makes apt use this source alone, and keep what it learns in `folder`.
fn own_lists(folder: &Path, source: &str) -> io::Result<Vec<String>> {
    let lists = folder.join("apt/lists");
    let cache = folder.join("apt/cache");
    fs::create_dir_all(lists.join("partial"))?;
    fs::create_dir_all(cache.join("archives/partial"))?;
    let sources = folder.join("apt/sources.list");
    fs::write(&sources, source)?;
    let set = [
        ("Dir::Etc::SourceList", sources.display().to_string()),
        ("Dir::Etc::SourceParts", "/dev/null".to_owned()),
        ("Dir::State::Lists", lists.display().to_string()),
        // Nor does it count what is installed, which may be of others and newer.
        ("Dir::State::Status", "/dev/null".to_owned()),
        ("Dir::Cache", cache.display().to_string()),
        // Run by root, apt would download as a user who may not write here.
        ("APT::Sandbox::User", "root".to_owned()),
    ];
    Ok(set
        .iter()
        .map(|(key, value)| format!("-o{key}={value}"))
        .collect())
}

/// Puts a script into `TOOLS/bin` that runs `TOOLS/FOLDER/PATH` with the libraries unpacked beside it.
fn install(tools: &Path, folder: &str, name: &str, path: &str) -> io::Result<()> {
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
             folder=$(dirname \"$0\")/../{folder}\n\
             for libraries in \"$folder\"/lib/*-linux-gnu* \"$folder\"/usr/lib/*-linux-gnu* \"$folder\"/usr/lib/*-linux-gnu*/systemd; do\n\
             \tLD_LIBRARY_PATH=$libraries${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n\
             done\n\
             export LD_LIBRARY_PATH\n\
             # Where one of them looks for its own parts.\n\
             export DEBOOTSTRAP_DIR=\"$folder/usr/share/debootstrap\"\n\
             for modules in \"$folder/usr/lib/python3/dist-packages\" \"$folder/usr/lib/python3.11\"; do\n\
             [ ! -d \"$modules\" ] || export PYTHONPATH=\"$modules${{PYTHONPATH:+:$PYTHONPATH}}\"\n\
             done\n\
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
        let all = || {
            ALL.iter()
                .chain([&KUBECTL])
                .chain(SUPERVISORS)
                .chain(GROUNDS)
                .chain(DOCKER)
                .chain(PROXIES)
        };
        for program in all() {
            let same = all().filter(|other| other.name == program.name);
            assert_eq!(same.count(), 1, "{}", program.name);
            assert!(!program.packages.is_empty(), "{}", program.name);
        }
    }

    #[test]
    fn packages_come_from_where_this_machine_gets_debians() {
        let listed = "Other http://other.test/apt/ main\n\
                      Debian http://near.test/debian/ trixie\n\
                      Debian http://near.test/debian/ trixie-updates\n";

        let found = source(listed);

        let near = ("http://near.test/debian/".to_owned(), "trixie".to_owned());
        assert_eq!(found, Some(near));
        assert_eq!(source("Other http://other.test/apt/ main\n"), None);
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

        install(&tools, "server", "server", "usr/bin/server").unwrap();
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
