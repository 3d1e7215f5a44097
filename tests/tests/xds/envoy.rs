//! Envoy, told everything but its own listener by discovery.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};
use tether_tests::eventually;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, Command},
};

/// How it asks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    StateOfTheWorld,
    Increments,
}

/// Envoy's program; where it was not installed, says so and why: `cargo xtask test` counts that as skipped. One that was
/// installed has to be there and to run.
#[expect(
    clippy::print_stderr,
    reason = "a test that is left out has no other way to say so"
)]
pub(crate) async fn program() -> Option<PathBuf> {
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv/envoy");
    // What is written last of all.
    if !installed.join(".requirements.sha256").exists() {
        eprintln!(
            "SKIPPED: nothing was tested with Envoy, which is not installed: run `tools/python-env.sh envoy`, it says why it cannot be"
        );
        return None;
    }
    let pythons = std::fs::read_dir(installed.join("lib")).into_iter();
    let places = pythons
        .flatten()
        .flatten()
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    let program = places.into_iter().find(|path| path.is_file());
    let program = program.unwrap_or_else(|| panic!("there is no Envoy in {installed:?}"));
    let version = Command::new(&program).arg("--version").output().await;
    let version = version.expect("Envoy can be started");
    assert!(version.status.success(), "Envoy does not run: {version:?}");
    Some(program)
}

pub(crate) struct Envoy {
    dir: PathBuf,
    _child: Child,
}

impl Envoy {
    /// Starts one that sends all calls to `pool`, and waits until it takes them.
    pub(crate) async fn start(
        program: &Path,
        dir: &Path,
        xds: SocketAddr,
        form: Form,
        pool: &str,
    ) -> Self {
        let config = dir.join("envoy.json");
        let text = configuration(dir, xds, form, pool).to_string();
        std::fs::write(&config, text).unwrap();
        let log = std::fs::File::create(dir.join("envoy.log")).unwrap();
        let child = Command::new(program)
            .arg("-c")
            .arg(&config)
            .args(["--concurrency", "1", "--disable-hot-restart"])
            .args(["--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut envoy = Self {
            dir: dir.to_owned(),
            _child: child,
        };
        eventually("Envoy has all it waits for", async || {
            if let Ok(Some(ended)) = envoy._child.try_wait() {
                let log = std::fs::read_to_string(dir.join("envoy.log"));
                panic!("Envoy ended with {ended}: {log:?}");
            }
            let ready = get(&dir.join("admin.sock"), "/ready").await?;
            ready.contains("LIVE").then_some(())
        })
        .await;
        envoy
    }

    /// Where it takes calls.
    pub(crate) fn target(&self) -> String {
        format!("unix:{}", self.dir.join("envoy.sock").display())
    }

    /// Waits until it has a stream to discovery, or has none any more.
    pub(crate) async fn is_connected(&self, wanted: bool) {
        let what = format!("whether Envoy has a stream to discovery is {wanted}");
        eventually(&what, async || {
            let connected = self.number("control_plane.connected_state").await?;
            (connected == u64::from(wanted)).then_some(())
        })
        .await;
    }

    /// How often it has refused what it was told, wherever that was not 0.
    pub(crate) async fn refused(&self) -> Vec<u64> {
        let admin = self.dir.join("admin.sock");
        let stats = get(&admin, "/stats?filter=update_rejected").await.unwrap();
        let numbers = stats.lines().filter_map(|line| line.rsplit_once(": "));
        let mut numbers: Vec<u64> = numbers.filter_map(|(_, n)| n.parse().ok()).collect();
        assert!(!numbers.is_empty(), "it counts them: {stats}");
        numbers.retain(|number| *number != 0);
        numbers
    }

    async fn number(&self, name: &str) -> Option<u64> {
        let path = format!("/stats?filter=^{name}$");
        let stats = get(&self.dir.join("admin.sock"), &path).await?;
        let line = stats.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(": ").trim().parse().ok()
    }
}

/// What its admin interface answers.
async fn get(socket: &Path, path: &str) -> Option<String> {
    let mut stream = UnixStream::connect(socket).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

fn configuration(dir: &Path, xds: SocketAddr, form: Form, pool: &str) -> Value {
    let pipe = |name: &str| json!({"pipe": {"path": dir.join(name)}});
    let ads = json!({"ads": {}, "resource_api_version": "V3"});
    let http2 = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "calls",
        "rds": {"route_config_name": pool, "config_source": ads},
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
    });
    let discovery = json!({
        "name": "discovery",
        "type": "STATIC",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
        "load_assignment": {"cluster_name": "discovery", "endpoints": [{"lb_endpoints": [{"endpoint": {
            "address": {"socket_address": {"address": xds.ip(), "port_value": xds.port()}},
        }}]}]},
    });
    json!({
        "node": {"id": "envoy", "cluster": "test"},
        "admin": {"address": pipe("admin.sock")},
        "dynamic_resources": {
            "ads_config": {
                "api_type": match form {
                    Form::StateOfTheWorld => "GRPC",
                    Form::Increments => "DELTA_GRPC",
                },
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "discovery"}}],
            },
            "cds_config": ads,
            "lds_config": ads,
        },
        "static_resources": {
            "listeners": [{
                "name": "calls",
                "address": pipe("envoy.sock"),
                "filter_chains": [{"filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": manager,
                }]}],
            }],
            "clusters": [discovery],
        },
    })
}
