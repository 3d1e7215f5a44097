//! supervisord and runit out of their Debian packages, with Tether put there as their pages say, by root: each row goes on
//! where the last one ended.

use anyhow::{Context as _, ensure};

use super::{files::Page, machine::Deployed, rows::Row};

/// The heading below which both pages have all of it.
const HEADING: &str = "Put it there";

/// Programs are where the pages have them; what supervises is installed.
const SUPERVISORD: &str = "
ln -s /src/target/release/* /usr/local/bin/
dpkg --install /supervisors/supervisor_*.deb /supervisors/python3-*.deb /supervisors/lsb-base_*.deb
";
const RUNIT: &str = "
ln -s /src/target/release/* /usr/local/bin/
dpkg --install /supervisors/runit*.deb /supervisors/sysuser-helper_*.deb
";

/// What both pages say, and root needs: the runtime directory is another user's.
const GATEWAY: &str = "export TETHER_GATEWAY=unix:/run/tether/gateway.sock";

/// What Tether says, and what it has logged.
const WORDS: &str = "
tether nodes 2>&1 || true
tail --lines=8 /var/log/supervisor/tether*.log /var/log/runit/tether*/current 2>/dev/null || true
";

const SERVICES: [&str; 4] = ["arbiter", "discovery", "agent", "gateway"];

/// Rows that are played together, and what makes their machine.
type Scene = (&'static str, &'static [Row], &'static str);

pub(super) const ALL: [Scene; 2] = [
    (
        "In a container, under supervisord",
        &[
            Row {
                name: "the commands of supervisord's page put all of Tether there, as root",
                expected: "its user's processes, a call answered",
                play: |deployed| Box::pin(whole(deployed, "supervisord")),
            },
            Row {
                name: "the commands of supervisord's page put four services there, as root",
                expected: "its user's processes, a call answered",
                play: |deployed| Box::pin(apart(deployed, "supervisord")),
            },
        ],
        SUPERVISORD,
    ),
    (
        "In a container, under runit",
        &[
            Row {
                name: "the commands of runit's page put all of Tether there, as root",
                expected: "its user's processes, a call answered",
                play: |deployed| Box::pin(whole(deployed, "runit")),
            },
            Row {
                name: "the commands of runit's page put four services there, as root",
                expected: "its user's processes, a call answered",
                play: |deployed| Box::pin(apart(deployed, "runit")),
            },
        ],
        RUNIT,
    ),
];

/// The first two blocks: a user and directories, and all of it as one program; with the settings between them.
async fn whole(deployed: &Deployed, name: &str) -> anyhow::Result<String> {
    let page = Page::read(name);
    let [common, whole, _] = blocks(&page)?;
    let settings = page.blocks(HEADING, "toml").concat();
    deployed.machine.write("/src/tether.toml", settings).await?;
    deployed.sh(&format!("cd /src\n{common}{whole}")).await?;
    for line in console(&page)? {
        ends_well(deployed, &line).await?;
    }
    serves(deployed, &["tether"]).await
}

/// The third block, in the place of the second, on an etcd.
async fn apart(deployed: &Deployed, name: &str) -> anyhow::Result<String> {
    let page = Page::read(name);
    let [_, _, apart] = blocks(&page)?;
    let away = match name {
        "supervisord" => "rm /etc/supervisor/conf.d/tether.conf; supervisorctl update",
        _ => "rm /etc/service/tether",
    };
    deployed.sh(away).await?;
    deployed
        .until("nothing of it runs", async || {
            deployed.sh("! pgrep -u tether").await.ok()
        })
        .await?;
    let store = "sed 's|^store.*|store = \"etcd://127.0.0.1:2379\"|' -i /etc/tether/tether.toml";
    deployed
        .sh(&format!("systemctl start etcd.service\n{store}"))
        .await?;
    deployed.sh(&format!("cd /src\n{apart}")).await?;
    let names = SERVICES.map(|service| format!("tether-{service}"));
    for line in console(&page)? {
        // Of four services each is asked, and restarted.
        let lines = match line.strip_suffix(" tether") {
            Some(before) => names.iter().map(|it| format!("{before} {it}")).collect(),
            None => vec![line],
        };
        for line in lines {
            ends_well(deployed, &line).await?;
        }
    }
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    serves(deployed, &names).await
}

/// The blocks that root runs.
fn blocks(page: &Page) -> anyhow::Result<[String; 3]> {
    let blocks = page.blocks(HEADING, "sh").try_into();
    blocks.map_err(|all| anyhow::anyhow!("the page has {all:?}"))
}

/// What stands behind a `$`, with the gateway that the page names.
fn console(page: &Page) -> anyhow::Result<Vec<String>> {
    let blocks = page.blocks(HEADING, "console").concat();
    let lines = blocks.lines().filter_map(|line| line.strip_prefix("$ "));
    let lines: Vec<_> = lines.map(|line| format!("{GATEWAY}; {line}")).collect();
    ensure!(!lines.is_empty(), "the page has no command behind a `$`");
    Ok(lines)
}

/// Has a command end well, once what was put there is up.
async fn ends_well(deployed: &Deployed, line: &str) -> anyhow::Result<()> {
    let tried = deployed.until(line, async || deployed.sh(line).await.ok());
    if let Err(error) = tried.await {
        let last = deployed.sh(&format!("exec 2>&1; {line}")).await;
        let words = deployed.sh(&format!("{GATEWAY}; {WORDS}")).await?;
        return Err(error.context(format!("{last:?}\n{words}")));
    }
    Ok(())
}

/// Sees that these programs run as the user of the page, and that a worker of theirs answers, which is told.
async fn serves(deployed: &Deployed, programs: &[&str]) -> anyhow::Result<String> {
    let up = deployed.until("a node is up", async || {
        let said = deployed
            .sh(&format!("{GATEWAY}; tether nodes"))
            .await
            .ok()?;
        said.contains(" up ").then_some(())
    });
    if let Err(error) = up.await {
        let words = deployed.sh(&format!("{GATEWAY}; {WORDS}")).await?;
        return Err(error.context(words));
    }
    for program in programs {
        let line = format!("ps -o user= -C {program} | sort -u");
        let user = deployed.sh(&line).await?;
        ensure!(user == "tether", "{program} runs as `{user}`");
    }
    deployed
        .sh(&format!(
            "{GATEWAY}; tether pool apply --file /opt/independent.toml --owner me"
        ))
        .await?;
    let worker = worker(deployed).await?;
    deployed.call().await?;
    let user = deployed.sh(&format!("ps -o user= -p {worker}")).await;
    let user = user.context("the worker is gone")?;
    ensure!(user == "tether", "its worker runs as `{user}`");
    deployed.sh(&format!("{GATEWAY}; tether pool rm w")).await?;
    deployed.gone(worker).await?;
    Ok(format!(
        "{} as tether, a call answered",
        programs.join(", ")
    ))
}

/// The process of the worker, once it is ready.
async fn worker(deployed: &Deployed) -> anyhow::Result<u64> {
    let line = format!("{GATEWAY}; tether --output json ps w");
    deployed
        .until("the worker is ready", async || {
            let said = deployed.sh(&line).await.ok()?;
            let workers: serde_json::Value = serde_json::from_str(&said).ok()?;
            let worker = workers.as_array()?.first()?;
            let is_ready = worker["phase"] == "ready";
            worker["pid"].as_u64().filter(|_| is_ready)
        })
        .await
}
