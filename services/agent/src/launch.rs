//! From a template to what the shim is told to start. Pure but for the choice of a free port.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use tether_clock::Tick;
use tether_proto::{
    node::StartWorker,
    pool::{Listen, Template},
};
use tether_shim_protocol::{Identity, Launch, OnLinkLoss, OnOwnerExit, PROTOCOL, Stage};
use tether_types::{Address, WorkerId};

/// Between SIGTERM and SIGKILL, where the template says nothing.
const GRACE_MS: u64 = 10_000;

/// Bytes kept of each output stream, where the template says nothing.
const LOG_LIMIT_BYTES: u64 = 16 << 20;

/// Variables of the agent that a worker needs to find its programs and speak its language.
const INHERITED: &[&str] = &["PATH", "HOME", "LANG", "TZ", "USER", "LOGNAME", "TMPDIR"];

/// Everything about a start that does not come from the order.
pub(crate) struct Circumstances<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) address: &'a Address,
    pub(crate) node: &'a str,
    pub(crate) cgroup: Option<PathBuf>,
    pub(crate) owner: Option<Identity>,
    pub(crate) node_deadline: Tick,
    pub(crate) owner_deadline: Tick,
    /// The agent's own environment.
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
}

/// Where a worker of this template will listen.
///
/// # Errors
/// When no TCP port is free.
pub(crate) fn address(template: &Template, dir: &Path) -> std::io::Result<Address> {
    match template.listen() {
        Listen::Unspecified | Listen::Unix => Ok(Address::Unix(dir.join("worker.sock"))),
        Listen::Tcp => {
            // Bound and let go again: the worker binds it itself a moment later. A worker that finds
            // it taken fails to start and is started again on another.
            let port = std::net::TcpListener::bind(("127.0.0.1", 0))?
                .local_addr()?
                .port();
            Ok(Address::Tcp {
                host: "127.0.0.1".into(),
                port,
            })
        }
    }
}

/// Time between SIGTERM and SIGKILL that a template asks for.
pub(crate) fn grace_ms(template: &Template) -> u64 {
    template
        .stop
        .as_ref()
        .and_then(|stop| stop.grace_ms)
        .unwrap_or(GRACE_MS)
}

/// What the shim is told.
pub(crate) fn launch(id: &WorkerId, order: &StartWorker, at: Circumstances<'_>) -> Launch {
    let template = order.template.clone().unwrap_or_default();
    let fill = |text: &str| fill(text, id, &at).into_bytes();

    let mut env: BTreeMap<String, Vec<u8>> = INHERITED
        .iter()
        .filter_map(|&name| Some((name.to_owned(), (at.env)(name)?.into_bytes())))
        .collect();
    let own = [
        ("TETHER_WORKER", id.to_string()),
        ("TETHER_POOL", id.pool.to_string()),
        ("TETHER_SLOT", id.slot.to_string()),
        ("TETHER_INCARNATION", id.incarnation.to_string()),
        ("TETHER_LISTEN", at.address.to_string()),
        ("TETHER_NODE", at.node.to_owned()),
        ("TETHER_DIR", at.dir.display().to_string()),
    ];
    env.extend(own.map(|(name, value)| (name.to_owned(), value.into_bytes())));
    env.extend(
        template
            .env
            .iter()
            .map(|(name, value)| (name.clone(), fill(value))),
    );

    Launch {
        protocol: PROTOCOL,
        worker: id.to_string(),
        argv: std::iter::once(&template.command)
            .chain(&template.args)
            .map(|text| fill(text))
            .collect(),
        env: env
            .into_iter()
            .map(|(name, value)| (name.into_bytes(), value))
            .collect(),
        cwd: fill(&template.cwd),
        dir: at.dir.as_os_str().as_encoded_bytes().to_vec(),
        cgroup: at
            .cgroup
            .as_ref()
            .map(|path| path.as_os_str().as_encoded_bytes().to_vec()),
        owner: at.owner,
        on_owner_exit: on_owner_exit(order),
        on_link_loss: if order.kill_on_agent_loss {
            OnLinkLoss::Kill
        } else {
            OnLinkLoss::Hold
        },
        kill_grace_ms: order.lease_grace_ms,
        node_deadline_ns: at.node_deadline.as_nanos(),
        owner_deadline_ns: at.owner_deadline.as_nanos(),
        log_limit_bytes: if template.log_limit_bytes == 0 {
            LOG_LIMIT_BYTES
        } else {
            template.log_limit_bytes
        },
    }
}

/// What the end of the owner's process means for a worker.
pub(crate) fn on_owner_exit(order: &StartWorker) -> OnOwnerExit {
    if order.kill_on_owner_exit {
        OnOwnerExit::Kill
    } else {
        OnOwnerExit::Ignore
    }
}

fn fill(text: &str, id: &WorkerId, at: &Circumstances<'_>) -> String {
    let (socket, port) = match at.address {
        Address::Unix(path) => (path.display().to_string(), String::new()),
        Address::Tcp { port, .. } => (String::new(), port.to_string()),
    };
    [
        ("{pool}", id.pool.to_string()),
        ("{slot}", id.slot.to_string()),
        ("{incarnation}", id.incarnation.to_string()),
        ("{address}", at.address.to_string()),
        ("{socket}", socket),
        ("{port}", port),
        ("{dir}", at.dir.display().to_string()),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (name, value)| {
        text.replace(name, &value)
    })
}

/// Says in one sentence why a worker could not be started, and what to do; the second value tells
/// whether trying again cannot help.
pub(crate) fn explain(stage: Stage, errno: i32, template: &Template) -> (String, bool) {
    let why = std::io::Error::from_raw_os_error(errno);
    let command = &template.command;
    let not_there = errno == rustix::io::Errno::NOENT.raw_os_error();
    let not_allowed = errno == rustix::io::Errno::ACCESS.raw_os_error();
    match stage {
        Stage::Exec if not_there && command.contains('/') => (
            format!(
                "command `{command}` not found (seen from the directory `{}`), or the interpreter in its first line is not there: check `command` and `cwd` of the template",
                template.cwd
            ),
            true,
        ),
        Stage::Exec if not_there => (
            format!(
                "command `{command}` not found on PATH: install it, or give its full path as `command` of the template"
            ),
            true,
        ),
        Stage::Exec if not_allowed => (
            format!(
                "no permission to run `{command}`: make it executable (chmod +x) for the agent's user"
            ),
            true,
        ),
        Stage::Exec => (format!("cannot run `{command}`: {why}"), true),
        Stage::Chdir => (
            format!(
                "cannot use `{}` as working directory: {why}; check `cwd` of the template",
                template.cwd
            ),
            true,
        ),
        Stage::Directory => (
            format!("the worker's runtime directory cannot be used: {why}"),
            true,
        ),
        Stage::Fork | Stage::Pipe | Stage::Cgroup => (
            format!(
                "the system has no room for another process: {why}; look at the limits on processes, files and memory"
            ),
            false,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(template: Template) -> Launch {
        let id: WorkerId = "digits/2.7".parse().unwrap();
        let order = StartWorker {
            template: Some(template),
            kill_on_owner_exit: true,
            ..StartWorker::default()
        };
        launch(
            &id,
            &order,
            Circumstances {
                dir: Path::new("/run/t"),
                address: &Address::Tcp {
                    host: "127.0.0.1".into(),
                    port: 4711,
                },
                node: "n1",
                cgroup: None,
                owner: None,
                node_deadline: Tick::from_nanos(5),
                owner_deadline: Tick::NEVER,
                env: &|name| (name == "PATH").then(|| "/bin".into()),
            },
        )
    }

    #[test]
    fn placeholders_are_filled_in_everywhere() {
        let launch = start(Template {
            command: "{dir}/run".into(),
            args: vec![
                "--port={port}".into(),
                "{pool}-{slot}-{incarnation}".into(),
                "{address}".into(),
            ],
            env: [("WHERE".into(), "{address}".into())].into(),
            ..Template::default()
        });

        let argv: Vec<_> = launch
            .argv
            .iter()
            .map(|arg| String::from_utf8_lossy(arg))
            .collect();
        assert_eq!(
            argv,
            ["/run/t/run", "--port=4711", "digits-2-7", "127.0.0.1:4711"]
        );
        assert!(
            launch
                .env
                .contains(&(b"WHERE".to_vec(), b"127.0.0.1:4711".to_vec()))
        );
    }

    #[test]
    fn nothing_of_the_agent_is_inherited_but_what_is_listed() {
        let launch = start(Template {
            command: "x".into(),
            ..Template::default()
        });

        let names: Vec<_> = launch
            .env
            .iter()
            .map(|(name, _)| String::from_utf8_lossy(name))
            .collect();
        assert!(
            names
                .iter()
                .all(|name| name == "PATH" || name.starts_with("TETHER_")),
            "{names:?}"
        );
    }

    #[test]
    fn a_missing_command_is_permanent_and_a_full_process_table_is_not() {
        let template = Template {
            command: "nope".into(),
            ..Template::default()
        };

        let (text, permanent) = explain(
            Stage::Exec,
            rustix::io::Errno::NOENT.raw_os_error(),
            &template,
        );
        assert!(
            permanent && text.contains("`nope` not found on PATH"),
            "{text}"
        );
        let (_, permanent) = explain(
            Stage::Fork,
            rustix::io::Errno::AGAIN.raw_os_error(),
            &template,
        );
        assert!(!permanent);
    }
}
