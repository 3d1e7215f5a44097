//! From a template to what the shim is told to start. Pure but for the choice of a free port.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs, io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::io::Errno;
use tether_clock::Tick;
use tether_proto::{
    node::StartWorker,
    pool::{Listen, ResourceLimit, Template},
};
use tether_shim_protocol::{
    Credentials, Identity, Input, Launch, Limit, Logs, PROTOCOL, SpawnFailure, Stage, Terms, Walls,
};
use tether_types::{Address, WorkerId};

use crate::{notify::NOTIFY_FILE, permission};

/// Between SIGTERM and SIGKILL, where the template says nothing.
const GRACE_MS: u64 = 10_000;

/// The resource whose units CUDA is told of too.
const GPU: &str = "gpu";

/// Bytes kept of each output stream, where the template says nothing.
const LOG_LIMIT_BYTES: u64 = 16 << 20;

/// What fits into a pipe before anybody reads it.
const INPUT_MAX_BYTES: usize = 64 << 10;

/// The part of an incarnation's directory that belongs to another user.
const THEIRS: &str = "own";

/// Variables of the agent that a worker needs to find its programs and speak its language.
const INHERITED: &[&str] = &["PATH", "HOME", "LANG", "TZ", "USER", "LOGNAME", "TMPDIR"];

/// Everything about a start that does not come from the order.
pub(crate) struct Circumstances<'a> {
    /// The incarnation's directory, which is the agent's and the shim's.
    pub(crate) dir: &'a Path,
    /// The part of it that is the worker's.
    pub(crate) own_dir: &'a Path,
    pub(crate) address: &'a Address,
    pub(crate) node: &'a str,
    /// Where its agent serves.
    pub(crate) agent: &'a Address,
    pub(crate) walls: Walls,
    pub(crate) passed: &'a Passed,
    pub(crate) credentials: Option<Credentials>,
    pub(crate) owner: Option<Identity>,
    pub(crate) node_deadline: Tick,
    pub(crate) owner_deadline: Tick,
    /// The agent's own environment.
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
}

/// The descriptors that a worker is given beside its standard streams, as it is told of them.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    /// Names of all, those of listening sockets first.
    pub(crate) names: Vec<String>,
    /// How many are listening sockets.
    pub(crate) listening: u32,
    /// Which of those the start waits for.
    pub(crate) wait_for: Vec<u32>,
}

/// Where a worker of this template will listen, if no socket is held for it; on TCP at this host.
///
/// # Errors
/// When no TCP port is free there.
pub(crate) fn address(template: &Template, dir: &Path, host: &str) -> std::io::Result<Address> {
    match template.listen() {
        Listen::Unspecified | Listen::Unix => Ok(Address::Unix(dir.join("worker.sock"))),
        Listen::Tcp => {
            // Bound and let go again: the worker binds it itself a moment later. A worker that finds
            // it taken fails to start and is started again on another.
            let port = std::net::TcpListener::bind((host, 0))?.local_addr()?.port();
            Ok(Address::Tcp {
                host: host.to_owned(),
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

/// What of the incarnation's directory is the worker's: all of it, or where it runs as somebody else, a
/// directory in it that is theirs, so that the records of its life stay out of its reach.
///
/// # Errors
/// When it cannot be made or given away.
pub(crate) fn own_directory(
    workers: &Path,
    dir: &Path,
    credentials: Option<&Credentials>,
) -> io::Result<PathBuf> {
    let own = rustix::process::geteuid().as_raw();
    let Some(who) = credentials.filter(|who| who.uid != own) else {
        return Ok(dir.to_owned());
    };
    // They may pass through, and see nothing on the way.
    let runtime = workers.parent().unwrap_or(workers);
    for passage in [runtime, workers, dir] {
        let mode = fs::metadata(passage)?.permissions().mode();
        if mode & 0o111 != 0o111 {
            fs::set_permissions(passage, fs::Permissions::from_mode(mode | 0o111))?;
        }
    }
    let theirs = dir.join(THEIRS);
    fs::DirBuilder::new().mode(0o700).create(&theirs)?;
    std::os::unix::fs::chown(&theirs, Some(who.uid), Some(who.gid))?;
    Ok(theirs)
}

/// What [`own_directory`] was when the worker of this directory was started.
pub(crate) fn known_own_directory(dir: &Path) -> PathBuf {
    let theirs = dir.join(THEIRS);
    if theirs.is_dir() {
        theirs
    } else {
        dir.to_owned()
    }
}

/// What the shim is told.
///
/// # Errors
/// When the template asks for something that does not exist.
pub(crate) fn launch(
    id: &WorkerId,
    order: &StartWorker,
    at: Circumstances<'_>,
) -> io::Result<Launch> {
    let template = order.template.clone().unwrap_or_default();
    let input = template.stdin.clone().unwrap_or_default();
    if input.hold_open && input.data.len() > INPUT_MAX_BYTES {
        return Err(refused(format!(
            "its template holds standard input open after {} bytes, and at most {INPUT_MAX_BYTES} fit into a pipe: \
             shorten `input`, or do not set `hold_input_open`",
            input.data.len()
        )));
    }
    let fill = |text: &str| fill(text, id, at.address, at.own_dir, at.node).into_bytes();

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
        ("TETHER_AGENT", at.agent.to_string()),
        ("TETHER_DIR", at.dir.display().to_string()),
        (
            "NOTIFY_SOCKET",
            at.dir.join(NOTIFY_FILE).display().to_string(),
        ),
    ];
    env.extend(own.map(|(name, value)| (name.to_owned(), value.into_bytes())));
    for resource in &order.resources {
        let units = resource.units.iter().map(u32::to_string);
        let units = units.collect::<Vec<_>>().join(",").into_bytes();
        if resource.name == GPU {
            env.insert("CUDA_VISIBLE_DEVICES".to_owned(), units.clone());
        }
        let name = resource.name.to_ascii_uppercase();
        env.insert(format!("TETHER_RESOURCE_{name}"), units);
    }
    let watchdog_ms = template
        .liveness
        .as_ref()
        .map(|liveness| liveness.watchdog_ms);
    if let Some(ms) = watchdog_ms.filter(|&ms| ms > 0) {
        let usec = ms.saturating_mul(1000).to_string();
        env.insert("WATCHDOG_USEC".to_owned(), usec.into_bytes());
    }
    if !at.passed.names.is_empty() {
        // LISTEN_PID and WATCHDOG_PID are added where the worker's process id is known.
        let count = at.passed.names.len().to_string();
        env.insert("LISTEN_FDS".to_owned(), count.into_bytes());
        let names = at.passed.names.join(":");
        env.insert("LISTEN_FDNAMES".to_owned(), names.into_bytes());
    }
    env.extend(
        template
            .env
            .iter()
            .map(|(name, value)| (name.clone(), fill(value))),
    );

    let cwd = if template.cwd.is_empty() {
        bytes_of(at.own_dir.to_owned())
    } else {
        fill(&template.cwd)
    };
    Ok(Launch {
        protocol: PROTOCOL,
        worker: id.to_string(),
        // What is forked is the interpreter already.
        argv: (at.walls.forked_from.is_none().then_some(&template.command))
            .into_iter()
            .chain(&template.args)
            .map(|text| fill(text))
            .collect(),
        env: env
            .into_iter()
            .map(|(name, value)| (name.into_bytes(), value))
            .collect(),
        cwd,
        dir: at.dir.as_os_str().as_encoded_bytes().to_vec(),
        terms: Terms {
            credentials: at.credentials,
            umask: template.umask,
            nice: template.nice,
            limits: template
                .resource_limits
                .iter()
                .map(limit)
                .collect::<io::Result<_>>()?,
            cpus: template.cpus.clone(),
        },
        input: Input {
            data: input.data,
            hold_open: input.hold_open,
            pty: template.pty,
        },
        stop_signal: template.stop.as_ref().map_or(0, |stop| stop.signal),
        walls: at.walls,
        owner: at.owner,
        on_owner_exit: permission::on_owner_exit(order.kill_on_owner_exit),
        on_link_loss: permission::on_link_loss(order.kill_on_agent_loss),
        kill_grace_ms: order.lease_grace_ms,
        node_deadline_ns: at.node_deadline.as_nanos(),
        owner_deadline_ns: at.owner_deadline.as_nanos(),
        // Known once there is a shim.
        seat: None,
        logs: Logs {
            limit_bytes: if template.log_limit_bytes == 0 {
                LOG_LIMIT_BYTES
            } else {
                template.log_limit_bytes
            },
            max_age_ms: template.log_max_age_ms,
            files: template.log_files,
        },
        sockets: at.passed.listening,
        wait_for: at.passed.wait_for.clone(),
    })
}

/// A path as the shim is told of it.
pub(crate) fn bytes_of(path: PathBuf) -> Vec<u8> {
    path.into_os_string().into_encoded_bytes()
}

/// A path as the shim was told of it.
pub(crate) fn path_of(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// Names of limits, each at the number that `setrlimit(2)` gives it on Linux.
const LIMITS: &[&str] = &[
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

fn limit(limit: &ResourceLimit) -> io::Result<Limit> {
    let place = LIMITS.iter().position(|name| *name == limit.name);
    let resource = place.and_then(|place| u8::try_from(place).ok());
    Ok(Limit {
        resource: resource.ok_or_else(|| {
            refused(format!(
                "its template limits `{}`, which is no limit of this system, expected one of: {}",
                limit.name,
                LIMITS.join(", ")
            ))
        })?,
        soft: limit.soft.unwrap_or(u64::MAX),
        hard: limit.hard.unwrap_or(u64::MAX),
    })
}

/// An error that trying again does not help.
pub(crate) fn refused(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

/// A text of a template with its placeholders filled in; `dir` is the worker's own.
pub(crate) fn fill(text: &str, id: &WorkerId, address: &Address, dir: &Path, node: &str) -> String {
    let (socket, port) = match address {
        Address::Unix(path) => (path.display().to_string(), String::new()),
        Address::Tcp { port, .. } => (String::new(), port.to_string()),
    };
    [
        ("{pool}", id.pool.to_string()),
        ("{slot}", id.slot.to_string()),
        ("{incarnation}", id.incarnation.to_string()),
        ("{address}", address.to_string()),
        ("{socket}", socket),
        ("{port}", port),
        ("{node}", node.to_owned()),
        ("{dir}", dir.display().to_string()),
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
    let (text, lasting) = match stage {
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
        Stage::User => (
            format!(
                "cannot become user `{}` with its groups: {why}; run the agent as root, or remove `user` and `group` from the template",
                template.user
            ),
            true,
        ),
        Stage::Limits => (
            format!(
                "cannot set its limits, niceness or processors: {why}; check `resource_limits`, `nice` and `cpus` of the template, and the agent's rights"
            ),
            true,
        ),
        Stage::Namespace => (
            format!(
                "cannot make its PID namespace or the /proc in it: {why}; look at the limits in /proc/sys/user, or set `agent.no_namespaces`"
            ),
            false,
        ),
        Stage::Fork | Stage::Pipe | Stage::Cgroup => (
            format!(
                "the system has no room for another process: {why}; look at the limits on processes, files and memory"
            ),
            false,
        ),
    };
    (text, lasting && !is_passing(errno))
}

/// The same of a worker that was to be forked, where the last line of its standard error says what its fork
/// server said.
pub(crate) fn explain_unforked(failure: SpawnFailure, stderr_tail: &[u8]) -> (String, bool) {
    let said = String::from_utf8_lossy(stderr_tail);
    let said = said.trim_end().lines().last().unwrap_or_default();
    let why = std::io::Error::from_raw_os_error(failure.errno);
    let text = if said.is_empty() {
        format!("it cannot be forked: {why}")
    } else {
        format!("it cannot be forked: {said}")
    };
    // A server that is gone is followed by another one.
    let gone = [Errno::CONNREFUSED, Errno::CONNRESET, Errno::PIPE];
    let is_gone = gone.map(Errno::raw_os_error).contains(&failure.errno);
    (text, !is_gone && !is_passing(failure.errno))
}

/// Whether the system refused for want of something that it may have again a moment later.
fn is_passing(errno: i32) -> bool {
    let passing = [
        Errno::AGAIN,
        Errno::BUSY,
        Errno::DQUOT,
        Errno::INTR,
        Errno::IO,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOBUFS,
        Errno::NOMEM,
        Errno::NOSPC,
        Errno::TXTBSY,
    ];
    passing.map(Errno::raw_os_error).contains(&errno)
}

#[cfg(test)]
mod tests {
    use tether_proto::node::ResourceUnits;

    use super::*;

    #[test]
    fn a_fork_server_that_is_gone_is_tried_again_and_what_it_refuses_is_not() {
        let explain = |errno: Errno, said: &[u8]| {
            let errno = errno.raw_os_error();
            let stage = Stage::Fork;
            explain_unforked(SpawnFailure { stage, errno }, said)
        };

        let (text, permanent) = explain(Errno::CONNRESET, b"");
        assert!(!permanent && text.contains("reset"), "{text}");
        let (text, permanent) = explain(Errno::NOENT, b"x\ntether-forkserver: no such place\n");
        assert!(
            permanent && text.ends_with("tether-forkserver: no such place"),
            "{text}"
        );
    }

    fn start(template: Template) -> Launch {
        start_with(template, Vec::new())
    }

    fn start_with(template: Template, resources: Vec<ResourceUnits>) -> Launch {
        let id: WorkerId = "digits/2.7".parse().unwrap();
        let order = StartWorker {
            template: Some(template),
            kill_on_owner_exit: true,
            resources,
            ..StartWorker::default()
        };
        launch(
            &id,
            &order,
            Circumstances {
                dir: Path::new("/run/t"),
                own_dir: Path::new("/run/t"),
                address: &Address::Tcp {
                    host: "127.0.0.1".into(),
                    port: 4711,
                },
                node: "n1",
                agent: &Address::Unix("/run/agent.sock".into()),
                walls: Walls::default(),
                passed: &Passed::default(),
                credentials: None,
                owner: None,
                node_deadline: Tick::from_nanos(5),
                owner_deadline: Tick::NEVER,
                env: &|name| (name == "PATH").then(|| "/bin".into()),
            },
        )
        .unwrap()
    }

    #[test]
    fn a_worker_is_told_which_units_of_a_resource_are_its_own() {
        let units = |name: &str, units: &[u32]| ResourceUnits {
            name: name.to_owned(),
            units: units.to_vec(),
        };
        let given = || vec![units("gpu", &[1, 3]), units("licence_x", &[0])];
        let variable = |launch: &Launch, name: &str| {
            let found = launch.env.iter().find(|(key, _)| key == name.as_bytes());
            found.map(|(_, value)| String::from_utf8(value.clone()).unwrap())
        };

        let launch = start_with(Template::default(), given());

        for (name, wanted) in [
            ("TETHER_RESOURCE_GPU", "1,3"),
            ("TETHER_RESOURCE_LICENCE_X", "0"),
            ("CUDA_VISIBLE_DEVICES", "1,3"),
        ] {
            assert_eq!(variable(&launch, name).as_deref(), Some(wanted), "{name}");
        }
        let own = Template {
            env: [("CUDA_VISIBLE_DEVICES".into(), "7".into())].into(),
            ..Template::default()
        };
        let launch = start_with(own, given());
        let shown = variable(&launch, "CUDA_VISIBLE_DEVICES");
        assert_eq!(
            shown.as_deref(),
            Some("7"),
            "the template has the last word"
        );
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
            names.iter().all(|name| name == "PATH"
                || name == "NOTIFY_SOCKET"
                || name.starts_with("TETHER_")),
            "{names:?}"
        );
    }

    #[test]
    fn a_watched_worker_is_told_how_often_to_report_and_another_one_is_not() {
        let told = |watchdog_ms| {
            let launch = start(Template {
                liveness: Some(tether_proto::pool::Liveness {
                    watchdog_ms,
                    ..Default::default()
                }),
                ..Template::default()
            });
            let mut env = launch.env.into_iter();
            env.find_map(|(name, value)| (name == b"WATCHDOG_USEC").then_some(value))
        };

        assert_eq!(told(1500).as_deref(), Some(&b"1500000"[..]));
        assert_eq!(told(0), None);
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

    #[test]
    fn what_the_system_lacks_for_a_moment_is_never_permanent() {
        use rustix::io::Errno;

        for stage in [
            Stage::Exec,
            Stage::Chdir,
            Stage::Directory,
            Stage::User,
            Stage::Limits,
        ] {
            for errno in [Errno::MFILE, Errno::NOMEM, Errno::NOSPC, Errno::IO] {
                let (text, permanent) = explain(stage, errno.raw_os_error(), &Template::default());
                assert!(!permanent, "{text}");
            }
            assert!(explain(stage, Errno::ACCESS.raw_os_error(), &Template::default()).1);
        }
    }
}
