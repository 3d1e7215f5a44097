//! The BEAM's side of Snakepit: a server for what workers ask of it, and programs started as its ports would be.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
};

use prost_types::Any;
use rustix::process::Signal;
use serde_json::Value;
use tokio::{
    io::AsyncReadExt as _,
    net::TcpListener,
    process::{Child, ChildStdin, Command},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::{
    Cluster, DEADLINE,
    bridge::{
        ExecuteToolRequest, ExecuteToolResponse, HeartbeatRequest, HeartbeatResponse,
        InitializeSessionRequest, InitializeSessionResponse, PingRequest, PingResponse,
        RegisterToolsRequest, RegisterToolsResponse, TelemetryMessage,
        bridge_service_client::BridgeServiceClient,
        bridge_service_server::{BridgeService, BridgeServiceServer},
    },
    eventually, kill, program, python,
};

/// The flags that Snakepit gives every worker of its pool.
pub const ADAPTER: &[&str] = &["--adapter", "pretend.Adapter", "--port", "0"];

/// One life of a BEAM.
#[derive(Debug)]
pub struct Beam {
    name: String,
    address: String,
    runtime: PathBuf,
    gateway: String,
    dir: PathBuf,
    env: Vec<(String, String)>,
    asked: Asked,
    hangs: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

/// What workers have asked of it, by method.
type Asked = Arc<Mutex<Vec<&'static str>>>;

/// One program that it has started.
#[derive(Debug)]
pub struct Port {
    child: Child,
    /// Its end is the BEAM's end.
    stdin: Option<ChildStdin>,
    ready_file: PathBuf,
}

impl Beam {
    /// A BEAM with this name on the machine of a cluster; `env` is its environment.
    ///
    /// # Panics
    /// When it cannot serve.
    pub async fn start(cluster: &Cluster, name: &str, env: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let asked = Asked::default();
        let hangs = watch::Sender::new(false);
        let bridge = Bridge {
            name: name.to_owned(),
            asked: Arc::clone(&asked),
            hangs: hangs.clone(),
        };
        let serving = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let server = Server::builder().add_service(BridgeServiceServer::new(bridge));
            let _ = server.serve_with_incoming(incoming).await;
        });
        Self {
            name: name.to_owned(),
            address: address.to_string(),
            runtime: cluster.runtime(),
            gateway: cluster.gateway(),
            dir: cluster.dir().to_owned(),
            env: env
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            asked,
            hangs,
            serving,
        }
    }

    /// `tether-python` with these arguments and nothing more, not yet started.
    pub fn python(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("tether-python"));
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TETHER_PYTHON", python())
            .env("TETHER_RUNTIME_DIR", &self.runtime)
            .env("TETHER_GATEWAY", &self.gateway)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts a worker as Snakepit does; `number` is its place among this BEAM's workers.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn port(&self, number: usize, script: &str, flags: &[&str]) -> Port {
        let script = script_named(script);
        let ready_file = self.dir.join(format!("{}-{number}.ready", self.name));
        // Snakepit's is another each time.
        let _ = std::fs::remove_file(&ready_file);
        let run_id = format!("{:0>7}", self.name);
        let mut command = self.python(&[&script.display().to_string()]);
        command
            .args(flags)
            .args(["--elixir-address", &self.address, "--snakepit-run-id", &run_id])
            .args(["--snakepit-instance-token", &self.name])
            .env("SNAKEPIT_READY_FILE", &ready_file)
            .env("SNAKEPIT_HEARTBEAT_CONFIG", r#"{"enabled":true,"interval_ms":100,"timeout_ms":1000,"max_missed_heartbeats":2,"dependent":true}"#)
            .env("SNAKEPIT_PROCESS_GROUP", "1")
            .current_dir(script.parent().expect("it is in a directory"));
        let mut child = command.spawn().expect("tether-python can be started");
        Port {
            stdin: child.stdin.take(),
            child,
            ready_file,
        }
    }

    /// Starts so many workers, and waits until all of them are ready.
    pub async fn pool(&self, size: usize) -> Vec<Port> {
        let mut ports: Vec<_> = (0..size)
            .map(|number| self.port(number, "grpc_server.py", ADAPTER))
            .collect();
        for port in &mut ports {
            port.ready().await;
        }
        ports
    }

    /// How often workers have asked this of it.
    pub fn asked(&self, method: &str) -> usize {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.iter().filter(|asked| **asked == method).count()
    }

    /// Where it serves.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Has it answer nothing more to who asks whether it is there.
    pub fn hang(&self) {
        self.hangs.send_replace(true);
    }

    /// Has it answer again.
    pub fn go_on(&self) {
        self.hangs.send_replace(false);
    }

    /// Ends it as SIGKILL would: its server is gone, and every pipe to its ports with it.
    ///
    /// # Panics
    /// When its server does not end.
    pub async fn kill(self, ports: &mut [Port]) {
        self.serving.abort();
        let _ = self.serving.await;
        for port in ports {
            port.close();
        }
    }
}

/// A script of the pretend worker's.
///
/// # Panics
/// When it is not there.
pub fn script_named(name: &str) -> PathBuf {
    let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/snakepit"));
    dir.join(name).canonicalize().expect("the script is there")
}

impl Port {
    /// Process id of the program.
    ///
    /// # Panics
    /// When it has ended.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the program runs")
    }

    /// Waits until the program says at which port its worker serves.
    ///
    /// # Panics
    /// When it ends instead.
    pub async fn ready(&mut self) -> u16 {
        let (port, _) = eventually("a program says that its worker is ready", async || {
            if let Ok(text) = std::fs::read_to_string(&self.ready_file) {
                return Some(text.parse().expect("it says a port and nothing else"));
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                let mut said = String::new();
                let stderr = self.child.stderr.as_mut().expect("it is piped");
                let _ = stderr.read_to_string(&mut said).await;
                panic!("tether-python ended with {status}: {said}");
            }
            None
        })
        .await;
        port
    }

    /// What calls its worker, also when the program is gone.
    pub fn caller(&self) -> Caller {
        Caller {
            ready_file: self.ready_file.clone(),
        }
    }

    /// Calls a tool of its worker, once that is ready, and tells what that answered: its result, or its error.
    ///
    /// # Errors
    /// What the tool failed with.
    pub async fn call(&mut self, tool: &str) -> Result<Value, Value> {
        self.ready().await;
        self.caller().call(tool).await
    }

    /// The same, where the worker may end meanwhile.
    ///
    /// # Errors
    /// As gRPC says.
    pub async fn try_call(&mut self, tool: &str) -> Result<ExecuteToolResponse, Status> {
        self.ready().await;
        self.caller().try_call(tool).await
    }

    /// Which life of a worker this is.
    pub async fn identity(&mut self) -> String {
        let who = self.call("who").await.expect("the worker says who it is");
        who["identity"].as_str().unwrap_or_default().to_owned()
    }

    /// Closes its standard input.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// Signals it.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal);
    }

    /// Waits until it has ended; tells its exit status and what it wrote to standard error.
    ///
    /// # Panics
    /// When it does not end, or wrote to standard output.
    pub async fn gone(&mut self) -> (Option<i32>, String) {
        let ended = timeout(DEADLINE, self.child.wait())
            .await
            .expect("the program ends");
        let (mut out, mut err) = (String::new(), String::new());
        if let Some(stdout) = &mut self.child.stdout {
            let _ = stdout.read_to_string(&mut out).await;
        }
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.read_to_string(&mut err).await;
        }
        assert_eq!(out, "", "a worker's standard output is silent");
        (ended.expect("it can be waited for").code(), err)
    }
}

/// What calls a worker as its BEAM does.
#[derive(Debug, Clone)]
pub struct Caller {
    ready_file: PathBuf,
}

impl Caller {
    /// Calls a tool of its worker and tells what that answered: its result, or its error.
    ///
    /// # Errors
    /// What the tool failed with.
    ///
    /// # Panics
    /// When the worker cannot be called.
    pub async fn call(&self, tool: &str) -> Result<Value, Value> {
        let answered = self.try_call(tool).await;
        let answer = answered.expect("a tool that fails is an answer too");
        match answer.success {
            true => Ok(json(&answer.result.expect("it has a result").value)),
            false => Err(json(answer.error_message.as_bytes())),
        }
    }

    /// The same, where the worker may end meanwhile.
    ///
    /// # Errors
    /// As gRPC says.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn try_call(&self, tool: &str) -> Result<ExecuteToolResponse, Status> {
        let port = std::fs::read_to_string(&self.ready_file).unwrap_or_default();
        let connected = BridgeServiceClient::connect(format!("http://127.0.0.1:{port}")).await;
        let mut worker = connected.map_err(|error| Status::unavailable(error.to_string()))?;
        let request = ExecuteToolRequest {
            session_id: "s1".to_owned(),
            tool_name: tool.to_owned(),
            ..ExecuteToolRequest::default()
        };
        let call = timeout(DEADLINE, worker.execute_tool(request)).await;
        Ok(call.expect("the worker answers in time")?.into_inner())
    }
}

fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("it is JSON")
}

/// What the BEAM answers its workers.
#[derive(Debug)]
struct Bridge {
    name: String,
    asked: Asked,
    hangs: watch::Sender<bool>,
}

impl Bridge {
    fn note(&self, method: &'static str) {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(method);
    }
}

#[tonic::async_trait]
impl BridgeService for Bridge {
    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        // Of its workers; their programs ask too.
        if request.get_ref().message == "hello" {
            self.note("Ping");
        }
        let mut hangs = self.hangs.subscribe();
        let _ = hangs.wait_for(|hangs| !hangs).await;
        Ok(Response::new(Default::default()))
    }

    async fn initialize_session(
        &self,
        _: Request<InitializeSessionRequest>,
    ) -> Result<Response<InitializeSessionResponse>, Status> {
        self.note("InitializeSession");
        Ok(Response::new(InitializeSessionResponse { success: true }))
    }

    async fn heartbeat(
        &self,
        _: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        self.note("Heartbeat");
        Ok(Response::new(Default::default()))
    }

    async fn execute_tool(
        &self,
        _: Request<ExecuteToolRequest>,
    ) -> Result<Response<ExecuteToolResponse>, Status> {
        Err(Status::unimplemented("a BEAM has no Python tools"))
    }

    async fn register_tools(
        &self,
        _: Request<RegisterToolsRequest>,
    ) -> Result<Response<RegisterToolsResponse>, Status> {
        self.note("RegisterTools");
        Ok(Response::new(RegisterToolsResponse { success: true }))
    }

    async fn execute_elixir_tool(
        &self,
        request: Request<ExecuteToolRequest>,
    ) -> Result<Response<ExecuteToolResponse>, Status> {
        self.note("ExecuteElixirTool");
        let tool = request.into_inner().tool_name;
        if tool == "hang" {
            std::future::pending::<()>().await;
        }
        let value = serde_json::json!({ "beam": self.name, "size": tool.len() }).to_string();
        Ok(Response::new(ExecuteToolResponse {
            success: true,
            result: Some(Any {
                type_url: "type.googleapis.com/google.protobuf.StringValue".to_owned(),
                value: value.into_bytes(),
            }),
            error_message: String::new(),
        }))
    }

    type StreamTelemetryStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<TelemetryMessage, Status>> + Send>>;

    /// Answers each message with itself, and ends after the word `end`.
    async fn stream_telemetry(
        &self,
        request: Request<Streaming<TelemetryMessage>>,
    ) -> Result<Response<Self::StreamTelemetryStream>, Status> {
        use tokio_stream::StreamExt as _;
        self.note("StreamTelemetry");
        let said = request.into_inner();
        let until_end = said.take_while(|said| said.as_ref().is_ok_and(|said| said.text != "end"));
        Ok(Response::new(Box::pin(until_end)))
    }
}
