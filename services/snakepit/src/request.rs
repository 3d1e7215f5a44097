//! What Snakepit asks for: read from arguments and environment, without what differs from one start to the next.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tether_types::stable;

use crate::{Refusal, python};

/// Flags with a value that name one life of the BEAM, or what Tether decides. The worker gets none of them: by
/// the run id a later BEAM would find survivors, and kill them.
const ELIXIR_ADDRESS: &str = "--elixir-address";
const PORT: &str = "--port";
const INSTANCE_NAME: &str = "--snakepit-instance-name";
const RUN_ID: &str = "--snakepit-run-id";
const TAKEN: &[&str] = &[
    ELIXIR_ADDRESS,
    PORT,
    INSTANCE_NAME,
    RUN_ID,
    "--snakepit-instance-token",
];

/// Where a program that owns a worker finds its arguments, as it got them.
pub(crate) const ARGS: &str = "TETHER_SNAKEPIT_ARGS";

const READY_FILE: &str = "SNAKEPIT_READY_FILE";
const HEARTBEAT: &str = "SNAKEPIT_HEARTBEAT_CONFIG";

/// Of the service that the BEAM is, not of its workers: they would speak to its supervisor in its name.
const NOT_PASSED: &[&str] = &[
    ARGS,
    READY_FILE,
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "SYSTEMD_EXEC_PID",
    "MAINPID",
];

/// Tether's own that a worker may have as its BEAM has it. All else says which worker of Tether's the BEAM is, where it
/// is one.
const OF_THE_BEAM: &[&str] = &[
    "TETHER_SNAKEPIT_*",
    "TETHER_PYTHON",
    "TETHER_GATEWAY",
    "TETHER_RUNTIME_DIR",
];

/// Differs between two starts of the same application and means nothing to a worker: of the shell, the terminal and
/// the release. A star stands for any end.
const PASSING: &[&str] = &[
    "_",
    "PWD",
    "OLDPWD",
    "SHLVL",
    "TERM",
    "COLUMNS",
    "LINES",
    "WINDOWID",
    "SSH_*",
    "XDG_SESSION_ID",
    "TETHER_*",
    "RELEASE_*",
    "BINDIR",
    "ROOTDIR",
    "EMU",
    "PROGNAME",
    "ERL_*",
    "TRACEPARENT",
];

/// How long a BEAM may be silent where nobody says: one that was killed is seen at once, and on a machine that is
/// busy with the start of hundreds nobody should die of silence.
const SILENCE: Duration = Duration::from_secs(60);

/// What becomes of a worker whose BEAM is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It ends.
    Coupled,
    /// It waits for the next one.
    Independent,
}

/// What is started: kept in a file of the berth, that this user alone can read, as an environment may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Launch {
    /// The real Python, its options, the script and its flags.
    pub(crate) argv: Vec<OsString>,
    pub(crate) cwd: PathBuf,
    /// By name.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Where it is to listen; any port that is free where there is none.
    pub(crate) port: Option<u16>,
}

/// One worker, as Snakepit wants it.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) launch: Launch,
    /// The same for all workers that can stand in for each other.
    pub(crate) key: u64,
    pub(crate) mode: Mode,
    /// How long after the last sign of life of its BEAM it ends.
    pub(crate) timeout: Duration,
    /// Which life of the BEAM asks; empty where it does not say.
    pub(crate) run_id: String,
    /// Where the BEAM serves what its workers ask of it.
    pub(crate) elixir_address: String,
    pub(crate) ready_file: PathBuf,
    /// What a node must have to get the worker.
    pub(crate) labels: BTreeMap<String, String>,
    /// Whether Snakepit signals process groups: then this process leads one, as its worker would.
    pub(crate) own_group: bool,
}

/// Where it is asked.
#[derive(Debug)]
pub(crate) struct Here {
    pub(crate) python: PathBuf,
    pub(crate) cwd: PathBuf,
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) host: String,
    pub(crate) uid: u32,
}

impl Request {
    /// # Errors
    /// Says what is missing, or cannot be understood.
    pub(crate) fn read(args: &[OsString], here: Here) -> Result<Self, Refusal> {
        let text = |name: &str| {
            here.env
                .get(OsStr::new(name))
                .map(|value| value.to_string_lossy())
        };
        let refused = |what: String| Err(Refusal::Config(what));
        let Some(ready_file) = here.env.get(OsStr::new(READY_FILE)) else {
            return refused(format!(
                "`{READY_FILE}` is not set, and without it nobody hears on which port the worker serves; Snakepit 0.13 sets it"
            ));
        };
        let (kept, taken) = without(args, TAKEN);
        let Some(elixir_address) = taken.get(ELIXIR_ADDRESS) else {
            return refused(format!("`{ELIXIR_ADDRESS}` has no value"));
        };
        let port = match taken.get(PORT).map(String::as_str) {
            None | Some("0") => None,
            Some(port) => match port.parse() {
                Ok(port) => Some(port),
                Err(_) => return refused(format!("`{PORT} {port}` is no port")),
            },
        };
        let mode = mode(text("TETHER_SNAKEPIT_MODE").as_deref())?;
        let timeout = silence(text("TETHER_SNAKEPIT_HEARTBEAT_TIMEOUT").as_deref())?;
        let labels = labels(
            text("TETHER_SNAKEPIT_LABELS")
                .as_deref()
                .unwrap_or_default(),
        )?;
        let passing = text("TETHER_SNAKEPIT_IGNORE_ENV")
            .unwrap_or_default()
            .into_owned();
        let own_group = text("SNAKEPIT_PROCESS_GROUP").as_deref() == Some("1");

        let mut env = here.env.clone();
        env.retain(|name, _| {
            let is_in = |names: &[&'static str]| matches(name, names.iter().copied());
            !is_in(NOT_PASSED) && (is_in(OF_THE_BEAM) || !is_in(&["TETHER_*"]))
        });
        // Where nobody says, a worker depends.
        let config = env.remove(OsStr::new(HEARTBEAT));
        let config = independent(config.as_deref().unwrap_or_else(|| OsStr::new("{}")));
        env.insert(HEARTBEAT.into(), config);
        let argv = kept.into_iter().map(|arg| match arg.to_str() {
            // When it must go is for its lease to say, which the worker cannot break.
            Some("--heartbeat-dependent") => "--heartbeat-independent".into(),
            _ => arg,
        });
        let launch = Launch {
            argv: std::iter::once(here.python.into_os_string())
                .chain(argv)
                .collect(),
            cwd: here.cwd,
            env: env.into_iter().collect(),
            port,
        };
        let who = [
            here.host.as_str(),
            &here.uid.to_string(),
            taken.get(INSTANCE_NAME).map_or("", String::as_str),
        ]
        .map(str::to_owned);
        Ok(Self {
            key: key(&launch, &who, &passing),
            launch,
            mode,
            timeout,
            run_id: taken.get(RUN_ID).cloned().unwrap_or_default(),
            elixir_address: elixir_address.clone(),
            ready_file: ready_file.into(),
            labels,
            own_group,
        })
    }
}

/// A number that is the same where all of this is.
fn key(launch: &Launch, who: &[String], passing: &str) -> u64 {
    let ignored = || {
        PASSING
            .iter()
            .copied()
            .chain(passing.split(',').map(str::trim))
    };
    let env = launch
        .env
        .iter()
        .filter(|(name, _)| !matches(name, ignored()));
    let port = launch.port.map(|port| port.to_string()).unwrap_or_default();
    let parts = (launch.argv.iter().map(OsString::as_os_str))
        .chain([launch.cwd.as_os_str(), OsStr::new(&port)])
        .chain(who.iter().map(OsStr::new))
        .chain(env.flat_map(|(name, value)| [name.as_os_str(), value.as_os_str()]));
    // None of them can hold a NUL.
    let bytes = parts.flat_map(|part| part.as_bytes().iter().copied().chain([0]));
    stable::finish(stable::fnv1a(bytes))
}

fn matches<'a>(name: &OsStr, mut patterns: impl Iterator<Item = &'a str>) -> bool {
    let name = name.as_bytes();
    patterns.any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start.as_bytes()),
        None => name == pattern.as_bytes(),
    })
}

/// The arguments as everybody may see them.
pub(crate) fn shown(args: &[OsString]) -> Vec<OsString> {
    without(args, TAKEN).0
}

/// The arguments without these flags of the script, and the values they had.
fn without(
    args: &[OsString],
    flags: &[&'static str],
) -> (Vec<OsString>, BTreeMap<&'static str, String>) {
    let script = python::script(args).unwrap_or(args.len());
    let (mut kept, mut taken) = (args[..script].to_vec(), BTreeMap::new());
    let mut rest = args[script..].iter();
    while let Some(arg) = rest.next() {
        let (flag, value) = match arg.to_str().and_then(|arg| arg.split_once('=')) {
            Some((flag, value)) => (Some(flag), Some(value.to_owned())),
            None => (arg.to_str(), None),
        };
        match flags.iter().find(|known| flag == Some(known)) {
            Some(known) => {
                let next = || {
                    rest.next()
                        .map(|value| value.to_string_lossy().into_owned())
                };
                taken.extend(value.or_else(next).map(|value| (*known, value)));
            }
            None => kept.push(arg.clone()),
        }
    }
    (kept, taken)
}

/// How a worker is to heart-beat: it must not end itself because its BEAM is away.
fn independent(config: &OsStr) -> OsString {
    let parsed = config.to_str().map(serde_json::from_str);
    match parsed {
        Some(Ok(serde_json::Value::Object(mut config))) => {
            config.insert("dependent".to_owned(), false.into());
            serde_json::Value::Object(config).to_string().into()
        }
        // What cannot be read is for the worker to complain of.
        _ => config.to_owned(),
    }
}

fn silence(text: Option<&str>) -> Result<Duration, Refusal> {
    match text {
        None | Some("") => Ok(SILENCE),
        Some(text) => humantime::parse_duration(text).map_err(|error| {
            Refusal::Config(format!(
                "`TETHER_SNAKEPIT_HEARTBEAT_TIMEOUT` is `{text}`: {error}; write for example 60s"
            ))
        }),
    }
}

fn mode(word: Option<&str>) -> Result<Mode, Refusal> {
    match word {
        None | Some("" | "coupled") => Ok(Mode::Coupled),
        Some("independent") => Ok(Mode::Independent),
        Some(word) => Err(Refusal::Config(format!(
            "`TETHER_SNAKEPIT_MODE` is `{word}`, expected one of: coupled, independent"
        ))),
    }
}

fn labels(text: &str) -> Result<BTreeMap<String, String>, Refusal> {
    let pairs = text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| match pair.split_once('=') {
            Some((name, value)) => Ok((name.trim().to_owned(), value.trim().to_owned())),
            None => Err(Refusal::Config(format!(
                "`TETHER_SNAKEPIT_LABELS` has `{pair}`, expected NAME=VALUE, several separated by commas"
            ))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "-u /app/grpc_server.py --adapter m.A --port 0 --elixir-address localhost:5051 --snakepit-run-id abc1234 --snakepit-instance-name web --snakepit-instance-token=t1 --heartbeat-dependent";

    fn read(line: &str, env: &[(&str, &str)]) -> Result<Request, Refusal> {
        let args: Vec<_> = line.split_whitespace().map(OsString::from).collect();
        let ready = [("SNAKEPIT_READY_FILE", "/tmp/r1")];
        let env = ready.iter().chain(env);
        Request::read(
            &args,
            Here {
                python: "/usr/bin/python3".into(),
                cwd: "/app".into(),
                env: env
                    .map(|(name, value)| ((*name).into(), (*value).into()))
                    .collect(),
                host: "h".to_owned(),
                uid: 7,
            },
        )
    }

    fn key(line: &str, env: &[(&str, &str)]) -> u64 {
        read(line, env).unwrap().key
    }

    #[test]
    fn the_worker_gets_nothing_by_which_a_later_beam_could_find_it() {
        let request = read(
            LINE,
            &[
                (
                    "SNAKEPIT_HEARTBEAT_CONFIG",
                    r#"{"dependent":true,"interval_ms":5}"#,
                ),
                ("NOTIFY_SOCKET", "/n"),
                ("TETHER_AGENT", "unix:/a"),
                ("TETHER_GATEWAY", "unix:/g"),
                ("X", "y"),
            ],
        )
        .unwrap();

        assert_eq!(
            request.launch.argv,
            [
                "/usr/bin/python3",
                "-u",
                "/app/grpc_server.py",
                "--adapter",
                "m.A",
                "--heartbeat-independent"
            ]
        );
        assert_eq!(request.elixir_address, "localhost:5051");
        assert_eq!(request.run_id, "abc1234");
        assert_eq!((request.launch.port, request.mode), (None, Mode::Coupled));
        assert_eq!(request.timeout, SILENCE);
        let env: Vec<_> = request
            .launch
            .env
            .iter()
            .map(|(name, value)| (name.to_str().unwrap(), value.to_str().unwrap()))
            .collect();
        assert_eq!(
            env,
            [
                (
                    "SNAKEPIT_HEARTBEAT_CONFIG",
                    r#"{"dependent":false,"interval_ms":5}"#
                ),
                ("TETHER_GATEWAY", "unix:/g"),
                ("X", "y")
            ]
        );
    }

    #[test]
    fn a_worker_of_which_nobody_says_how_it_beats_does_not_end_itself_either() {
        let launch = read(LINE, &[]).unwrap().launch;

        let config = (HEARTBEAT.into(), r#"{"dependent":false}"#.into());
        assert_eq!(launch.env, [config]);
    }

    #[test]
    fn another_life_of_the_same_application_has_the_same_key() {
        let first = key(
            LINE,
            &[
                ("PWD", "/a"),
                ("RELEASE_TMP", "/1"),
                ("TOKEN_OF_TODAY", "1"),
            ],
        );
        let later = LINE
            .replace("abc1234", "zyx9876")
            .replace("5051", "6061")
            .replace("t1", "t2");

        assert_eq!(
            key(&later, &[("PWD", "/b"), ("TOKEN_OF_TODAY", "1")]),
            first
        );
        let ignoring = |day| {
            key(
                LINE,
                &[
                    ("TOKEN_OF_TODAY", day),
                    ("TETHER_SNAKEPIT_IGNORE_ENV", "A, TOKEN_*"),
                ],
            )
        };
        assert_eq!(ignoring("1"), ignoring("2"));
    }

    #[test]
    fn what_makes_it_another_worker_makes_another_key() {
        let own = key(LINE, &[]);

        for (line, env) in [
            (LINE.replace("m.A", "m.B"), None),
            (LINE.replace("web", "batch"), None),
            (LINE.replace("--port 0", "--port 5000"), None),
            (LINE.to_owned(), Some(("MODEL", "large"))),
        ] {
            assert_ne!(key(&line, env.as_slice()), own, "{line} {env:?}");
        }
    }

    #[test]
    fn what_cannot_be_understood_is_said() {
        let refused = |env: &[(&str, &str)]| read(LINE, env).unwrap_err().to_string();

        assert!(refused(&[("TETHER_SNAKEPIT_MODE", "both")]).contains("coupled, independent"));
        assert!(refused(&[("TETHER_SNAKEPIT_HEARTBEAT_TIMEOUT", "x")]).contains("60s"));
        assert!(refused(&[("TETHER_SNAKEPIT_LABELS", "zone")]).contains("NAME=VALUE"));
    }

    #[test]
    fn how_long_a_beam_may_be_silent_holds_in_each_mode() {
        for (word, mode) in [
            ("", Mode::Coupled),
            ("coupled", Mode::Coupled),
            ("independent", Mode::Independent),
        ] {
            let env = [
                ("TETHER_SNAKEPIT_MODE", word),
                ("TETHER_SNAKEPIT_HEARTBEAT_TIMEOUT", "90s"),
            ];
            let request = read(LINE, &env).unwrap();

            assert_eq!(
                (request.mode, request.timeout),
                (mode, Duration::from_secs(90))
            );
        }
    }
}
