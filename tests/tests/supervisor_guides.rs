//! The files of `deploy/supervisord` and `deploy/runit` with real supervisors, and the commands of their guides that
//! stand behind a `$`, run as they are written.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{env, fs, os::unix::fs::PermissionsExt as _, path::Path};

use tether_etcd_cluster::Setup;
use tether_tests::{
    Tether, eventually,
    supervisor::{Kind, Services, Supervisor},
};
use tokio::process::Command;

const FOUR: [&str; 4] = [
    "tether-arbiter",
    "tether-discovery",
    "tether-agent",
    "tether-gateway",
];

fn guide(kind: Kind) -> String {
    let page = format!("../docs/how-to/{}.md", kind.name());
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).unwrap()
}

/// The blocks of this language.
fn blocks<'a>(guide: &'a str, language: &str) -> Vec<&'a str> {
    let begin = format!("```{language}\n");
    let blocks = guide.split(begin.as_str()).skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

fn commands(guide: &str) -> Vec<&str> {
    let lines = blocks(guide, "console").into_iter().flat_map(str::lines);
    lines.filter_map(|line| line.strip_prefix("$ ")).collect()
}

async fn node_is_up(supervisor: &Supervisor) {
    let gateway = format!(
        "unix:{}",
        supervisor.dir().join("run/gateway.sock").display()
    );
    let tether = Tether::at(&gateway);
    eventually("the node is up", async || {
        let ran = tether.run(&["--output", "json", "nodes"]).await;
        let nodes: serde_json::Value = serde_json::from_str(&ran.out).ok()?;
        let mut nodes = nodes.as_array()?.iter();
        nodes.any(|node| node["up"] == true).then_some(())
    })
    .await;
}

async fn the_commands_of_the_guide_end_well(kind: Kind) {
    let dir = tempfile::Builder::new()
        .prefix("tether-")
        .tempdir()
        .unwrap();
    let guide = guide(kind);
    let settings = blocks(&guide, "toml")[0];
    let services = Services::new(kind, dir.path()).unwrap();
    let services = services.configure(settings).unwrap();
    let supervisor = services.deploy("tether").unwrap().start().await.unwrap();
    node_is_up(&supervisor).await;
    // Where this supervisor is, which the machine's would know.
    let bin = dir.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let control = supervisor.control(&[]);
    let control = control.as_std();
    let name = control.get_program().to_str().unwrap();
    let found = env::split_paths(&env::var_os("PATH").unwrap())
        .map(|dir| dir.join(name))
        .find(|path| path.exists());
    let arguments: Vec<_> = control
        .get_args()
        .map(|arg| arg.to_str().unwrap())
        .collect();
    let script = format!(
        "#!/bin/sh\nexec {} {} \"$@\"\n",
        found.unwrap().display(),
        arguments.join(" ")
    );
    fs::write(bin.join(name), script).unwrap();
    fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    let variables: Vec<_> = control
        .get_envs()
        .map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned)))
        .collect();

    let commands = commands(&guide);
    assert!(commands.len() >= 4, "{commands:?}");
    for line in commands {
        let mut command = Command::new("sh");
        command.args(["-ec", &format!("PATH={}:$PATH; {line}", bin.display())]);
        for (name, value) in &variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let ended = command.output().await.unwrap();
        assert!(
            ended.status.success(),
            "{line}: {}{}",
            String::from_utf8_lossy(&ended.stdout),
            String::from_utf8_lossy(&ended.stderr)
        );
    }
}

#[tokio::test]
async fn the_commands_of_supervisords_guide_end_well() {
    the_commands_of_the_guide_end_well(Kind::Supervisord).await;
}

#[tokio::test]
async fn the_commands_of_runits_guide_end_well() {
    the_commands_of_the_guide_end_well(Kind::Runit).await;
}

async fn four_services_find_each_other(kind: Kind) {
    let dir = tempfile::Builder::new()
        .prefix("tether-")
        .tempdir()
        .unwrap();
    let etcd = Setup::members(1).start().await;
    let settings = format!(
        "store = \"{}\"\n[listen]\ngateway = [\"unix:/run/tether/gateway.sock\"]\n",
        etcd.url("tether")
    );
    let mut services = Services::new(kind, dir.path()).unwrap();
    services = services.configure(&settings).unwrap();
    for service in FOUR {
        services = services.deploy(service).unwrap();
    }
    let supervisor = services.start().await.unwrap();

    node_is_up(&supervisor).await;
    if kind == Kind::Runit {
        for service in FOUR {
            let checked = supervisor.say(&["check", service]).await.unwrap();
            assert_eq!(checked.code, Some(0), "{}{}", checked.out, checked.err);
        }
    }
    // The agent first, as its last word is for the arbiter.
    let (stop, rest): (&[&str], _) = match kind {
        Kind::Supervisord => (&["stop", "tether-agent"], ["stop", "all"].as_slice()),
        Kind::Runit => (
            &["-w", "60", "down", "tether-agent"],
            &[
                "-w",
                "60",
                "down",
                "tether-gateway",
                "tether-discovery",
                "tether-arbiter",
            ],
        ),
    };
    for words in [stop, rest] {
        let stopped = supervisor.say(words).await.unwrap();
        assert_eq!(stopped.code, Some(0), "{}{}", stopped.out, stopped.err);
    }
    let left = tether_tests::mentioning(&dir.path().join("etc/tether.toml"));
    assert_eq!(left, []);
}

#[tokio::test]
async fn four_services_under_supervisord_find_each_other_and_stop_when_told() {
    four_services_find_each_other(Kind::Supervisord).await;
}

#[tokio::test]
async fn four_services_under_runit_find_each_other_and_stop_when_told() {
    four_services_find_each_other(Kind::Runit).await;
}

/// What runit does of a configuration that is refused: `finish` keeps it down, as it would be refused again.
#[tokio::test]
async fn a_refused_configuration_stays_down_until_somebody_says_otherwise() {
    let dir = tempfile::Builder::new()
        .prefix("tether-")
        .tempdir()
        .unwrap();
    let services = Services::new(Kind::Runit, dir.path()).unwrap();
    let services = services
        .configure("[lease]\nnode_ttl = \"never\"\n")
        .unwrap();
    let supervisor = services.deploy("tether").unwrap().start().await.unwrap();

    eventually("it stays down", async || {
        let said = supervisor.say(&["status", "tether"]).await.unwrap().out;
        (said.starts_with("down") && !said.contains("want up")).then_some(())
    })
    .await;
    assert!(supervisor.log("tether").contains("say `sv up`"));
}
