//! Configuration as people write it, right and wrong.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use tether_kit::config::{self, Loaded};
use tether_types::Address;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    gateway: Gateway,
    pools: BTreeMap<String, Pool>,
    name: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Gateway {
    #[serde(with = "config::text")]
    listen: Address,
    #[serde(with = "config::text::option")]
    upstream: Option<Address>,
    #[serde(with = "config::duration", rename = "idle-timeout")]
    idle_timeout: Duration,
    #[serde(with = "config::size")]
    buffer: u64,
    insecure: bool,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            listen: "unix:/run/t.sock".parse().unwrap(),
            upstream: None,
            idle_timeout: Duration::from_secs(15),
            buffer: 64 << 10,
            insecure: false,
        }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Pool {
    size: u32,
    command: String,
}

fn file(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    file
}

fn load(
    file: Option<&Path>,
    env: &[(&str, &str)],
    sets: &[&str],
) -> miette::Result<Loaded<Config>> {
    let env = env
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()));
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    config::load(file, env, &sets)
}

/// The report as it is printed.
fn refusal(file: Option<&Path>, env: &[(&str, &str)], sets: &[&str]) -> String {
    format!("{:?}", load(file, env, sets).unwrap_err())
}

#[test]
fn a_later_layer_wins_and_every_key_remembers_where_it_was_set() {
    let file =
        file("[gateway]\nlisten = \"127.0.0.1:1\"\nbuffer = \"1MiB\"\nidle-timeout = \"1m 30s\"\n");
    let env = [
        ("TETHER_GATEWAY__LISTEN", "127.0.0.1:2"),
        ("TETHER_GATEWAY__IDLE_TIMEOUT", "2s"),
        ("TETHER_NAME", "17"),
        ("TETHER_LOG", "debug"),
        ("PATH", "/bin"),
    ];
    let sets = ["gateway.listen=127.0.0.1:3", "pools.\"train.er\".size=4"];

    let loaded = load(Some(file.path()), &env, &sets).unwrap();

    let config = loaded.value;
    assert_eq!(config.gateway.listen.to_string(), "127.0.0.1:3");
    assert_eq!(config.gateway.idle_timeout, Duration::from_secs(2));
    assert_eq!(config.gateway.buffer, 1 << 20);
    assert_eq!(config.name.as_deref(), Some("17"));
    assert_eq!(config.pools["train.er"].size, 4);
    let origins: Vec<String> = loaded
        .origins
        .iter()
        .map(|(key, origin)| format!("{key} {origin}"))
        .collect();
    let path = file.path().display();
    assert_eq!(
        origins,
        [
            format!("gateway.buffer file {path}:3"),
            "gateway.idle-timeout env TETHER_GATEWAY__IDLE_TIMEOUT".to_owned(),
            "gateway.listen --set".to_owned(),
            "name env TETHER_NAME".to_owned(),
            "pools.\"train.er\".size --set".to_owned(),
        ]
    );
}

#[test]
fn a_typo_in_the_file_is_pointed_at_with_what_was_probably_meant() {
    let file = file("[gateway]\nlisten = \"127.0.0.1:1\"\nbufer = \"1MiB\"\n");

    let report = refusal(Some(file.path()), &[], &[]);

    let line = format!("{}:3:1", file.path().display());
    for part in [
        "unknown field `bufer`",
        "did you mean `buffer`?",
        &line,
        "here",
    ] {
        assert!(report.contains(part), "{part} is missing in\n{report}");
    }
}

#[test]
fn a_mistake_outside_the_file_names_the_variable_or_the_flag() {
    let file = file("[gateway]\nbuffer = \"1MiB\"\n");

    let report = refusal(
        Some(file.path()),
        &[
            ("TETHER_GATEWAY__BUFFER", "2MiB"),
            ("TETHER_GATEWAY__INSECURE", "perhaps"),
        ],
        &[],
    );
    assert!(
        report.contains("TETHER_GATEWAY__INSECURE=perhaps"),
        "{report}"
    );
    assert!(report.contains("environment"), "{report}");

    let report = refusal(None, &[], &["gateway.listne=x"]);
    assert!(report.contains("did you mean `listen`?"), "{report}");
    assert!(report.contains("--set gateway.listne=x"), "{report}");
    assert!(refusal(None, &[], &["gateway.listen"]).contains("key.path=value"));
}

#[test]
fn a_variable_with_too_few_underscores_is_told_its_right_name() {
    let env = [
        ("TETHER_GATEWAY_IDLE_TIMEOUT", "2s"),
        ("TETHER_GATEWAY_IDEL_TIMEOUT", "2s"),
        ("TETHER_GATEWAY_PORT_7437_TCP", "tcp://10.0.0.1:7437"),
        ("TETHER_GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("TETHER_GATEWAY", "unix:/run/t.sock"),
        ("TETHER_RUNTIME_DIR", "/run/t"),
        ("TETHER_LOG_FORMAT", "json"),
    ];

    let warnings = load(None, &env, &[]).unwrap().warnings;

    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].ends_with("as in `TETHER_GATEWAY__IDEL_TIMEOUT`"));
    assert!(warnings[1].contains("`TETHER_GATEWAY_IDLE_TIMEOUT` sets nothing"));
    assert!(warnings[1].ends_with("as in `TETHER_GATEWAY__IDLE_TIMEOUT`"));
}

#[test]
fn what_cannot_be_used_is_pointed_at_where_it_was_set() {
    let file = file("name = \"a\"\n\n[gateway]\nbuffer = \"1MiB\"\n");
    let env = [("TETHER_NAME", "b")];
    let loaded = load(Some(file.path()), &env, &["gateway.insecure=true"]).unwrap();
    let report = |keys: &[&str]| {
        let keys: Vec<String> = keys.iter().map(|&key| key.to_owned()).collect();
        format!("{:?}", loaded.refuse(&keys, "it is of no use"))
    };

    let in_file = report(&["gateway.listen", "gateway.buffer"]);
    let line = format!("{}:4:1", file.path().display());
    assert!(
        in_file.contains(&line) && in_file.contains("it is of no use"),
        "{in_file}"
    );
    assert!(report(&["name"]).contains("TETHER_NAME sets name"));
    assert!(report(&["gateway.insecure"]).contains("--set gateway.insecure"));
    assert!(report(&["nowhere"]).contains("it is of no use"));
}

#[test]
fn a_number_without_a_unit_is_refused() {
    for (text, advice) in [
        ("idle-timeout = 15", "write for example \"15s\""),
        ("idle-timeout = \"15\"", "`15` has no unit"),
        ("idle-timeout = \"15 lightyears\"", "is not a duration"),
        ("buffer = 1024", "write for example \"1024MiB\""),
        ("buffer = \"1 parsec\"", "the units are"),
        ("buffer = \"99999999999TiB\"", "too large"),
        ("listen = \"7437\"", "the port is missing"),
    ] {
        let file = file(&format!("[gateway]\n{text}\n"));
        let report = refusal(Some(file.path()), &[], &[]);
        let words = report.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words.contains(advice) && words.contains(":2:"), "{report}");
    }
}

#[test]
fn what_is_written_reads_back_the_same() {
    let mut written = Config::default();
    written.gateway.buffer = 3 << 20;
    written.gateway.idle_timeout = Duration::from_millis(90_500);

    let file = file(&toml::to_string(&written).unwrap());
    let read = load(Some(file.path()), &[], &[]).unwrap().value;

    assert_eq!(read.gateway.buffer, written.gateway.buffer);
    assert_eq!(read.gateway.idle_timeout, written.gateway.idle_timeout);
    assert_eq!(read.gateway.listen, written.gateway.listen);
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let report = refusal(Some(Path::new("/nowhere/tether.toml")), &[], &[]);
    assert!(report.contains("/nowhere/tether.toml"), "{report}");
    assert!(load(None, &[], &[]).is_ok());
}
