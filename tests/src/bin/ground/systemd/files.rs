//! What is put on a machine: what the page on systemd says, and pools to try it with.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use tether_tests::{
    ground::{Ground, program_of_package},
    program,
};

/// As they are called where they are installed.
const PROGRAMS: [&str; 5] = [
    "tether",
    "tether-gateway",
    "tether-arbiter",
    "tether-discovery",
    "tether-agent",
];

/// Runs a pool for as long as it runs, as an application would.
const APPLICATION: &str = "
[Service]
ExecStart=/usr/bin/tether run --file /opt/%i.toml --owner beam
";

/// A store that several services can read.
const ETCD: &str = "
[Service]
Type=notify
ExecStart=/usr/bin/etcd --data-dir=/run/etcd/data --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 --initial-cluster=default=http://127.0.0.1:2380
RuntimeDirectory=etcd
";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Pools by the names of their files, each with one worker.
const POOLS: [(&str, &str, &str, &str); 6] = [
    ("coupled", "unix", "mode = 'coupled'", ""),
    ("independent", "unix", "mode = 'independent'", ""),
    (
        "unit",
        "unix",
        "mode = 'supervised'\npolicy = { launcher = 'systemd' }",
        "",
    ),
    ("tcp", "tcp", "mode = 'independent'", ""),
    (
        "bound",
        "unix",
        "mode = 'independent'\npolicy = { on_agent_loss = 'kill' }",
        "",
    ),
    (
        "greedy",
        "unix",
        "mode = 'independent'",
        "limits = { memory = '96MiB' }",
    ),
];

/// Puts everything there but what the page installs.
pub(super) fn put(ground: &mut Ground) {
    ground.bind(&repository().join("deploy"), "/src/deploy");
    for name in PROGRAMS {
        ground.bind(&program(name), &format!("/src/target/release/{name}"));
    }
    if let Ok(etcd) = program_of_package("etcd") {
        ground.bind(&etcd, "/usr/bin/etcd");
        ground.write("etc/systemd/system/etcd.service", ETCD);
    }
    ground.write("opt/worker.py", include_str!("worker.py"));
    ground.write("opt/greedy.py", include_str!("greedy.py"));
    ground.write("opt/caller.py", include_str!("caller.py"));
    ground.write("etc/systemd/system/beam@.service", APPLICATION);
    for (name, listen, mode, limits) in POOLS {
        let script = match name {
            "greedy" => "greedy.py",
            _ => "worker.py",
        };
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "[template.w]\ncommand = '/usr/bin/python3'\nargs = ['/opt/{script}']\nlisten = '{listen}'\n\
             readiness = {{ kind = 'connect' }}\n{limits}\n[pool.w]\ntemplate = 'w'\nsize = 1\n{mode}\n"
        );
        ground.write(&format!("opt/{name}.toml"), text);
    }
}

/// The commands below a heading of the page.
pub(super) fn commands(heading: &str) -> String {
    let path = repository().join("docs/how-to/systemd.md");
    let page = fs::read_to_string(path).expect("the page is there");
    let below = page.split(&format!("\n## {heading}\n")).nth(1);
    let block = below.and_then(|below| below.split("```sh\n").nth(1));
    let block = block.and_then(|block| block.split("```").next());
    let block = block.unwrap_or_else(|| panic!("no commands below `{heading}`"));
    block.to_owned()
}

/// The commands that install it, where the programs are not copied but shown.
pub(super) fn install() -> String {
    format!("cd /src\n{}", commands("Install"))
}
