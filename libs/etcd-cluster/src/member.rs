//! One member: a process of etcd on a data directory.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// What etcd calls its count of requests, [`Member::counted`].
pub const REQUESTS: &str = "grpc_server_started_total";

/// What it calls its count of bytes told to clients.
pub const SENT: &str = "etcd_network_client_grpc_sent_bytes_total";

/// The etcd that Tether is made for.
pub const PROGRAM: &str = "etcd";

/// One that is too old for it.
pub const OLD: &str = "etcd-3.4";

/// Below the ports that the kernel gives out, two for each member.
static NEXT_PORT: AtomicU16 = AtomicU16::new(20_000);

/// Where a member lives.
#[derive(Debug, Clone)]
pub struct Seat {
    /// Where it listens for clients.
    pub client: SocketAddr,
    /// Where it listens for the other members.
    pub peer: SocketAddr,
    /// Its data directory; one that goes with the cluster when none is given.
    pub data: Option<PathBuf>,
    /// What runs it, before the program and its arguments: `["ip", "netns", "exec", "NAME"]`. It must become
    /// the program, as `exec` does.
    pub wrapper: Vec<String>,
}

impl Seat {
    /// A seat on a loopback address of this process: ports on it are nobody else's, also while the member
    /// is down.
    pub fn loopback() -> Self {
        let [_, a, b, c] = std::process::id().to_be_bytes();
        let address = IpAddr::V4(Ipv4Addr::new(127, a.saturating_add(1), b, c));
        let port = NEXT_PORT.fetch_add(2, Ordering::Relaxed);
        Self {
            client: SocketAddr::new(address, port),
            peer: SocketAddr::new(address, port + 1),
            data: None,
            wrapper: Vec::new(),
        }
    }
}

/// One member of a cluster. Killed when dropped.
#[derive(Debug)]
pub struct Member {
    seat: Seat,
    data: PathBuf,
    log: PathBuf,
    program: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Member {
    pub(crate) fn new(
        seat: Seat,
        folder: &Path,
        name: &str,
        program: &str,
        mut arguments: Vec<String>,
    ) -> Self {
        let data = seat.data.clone().unwrap_or_else(|| folder.join(name));
        arguments.extend(["--name".to_owned(), name.to_owned()]);
        arguments.extend(["--data-dir".to_owned(), data.display().to_string()]);
        Self {
            seat,
            data,
            log: folder.join(format!("{name}.log")),
            program: find(program),
            arguments,
            child: None,
        }
    }

    /// Where it listens for clients, as `host:port`.
    pub fn address(&self) -> String {
        self.seat.client.to_string()
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// What it said, for when a test fails.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The sum of all that it counts under this name since it was started.
    ///
    /// # Panics
    /// When it does not answer, or asks for TLS.
    pub async fn counted(&self, name: &str) -> f64 {
        let asked = async {
            let mut stream = TcpStream::connect(self.seat.client).await?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok::<_, std::io::Error>(text)
        };
        let text = asked.await.expect("the member tells its metrics");
        let counts = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let value = rest.rsplit_once(' ')?.1;
            rest.starts_with(['{', ' '])
                .then(|| value.parse::<f64>().ok())?
        });
        counts.sum()
    }

    /// Whether it was started and not killed since. One that is stopped runs.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the member runs").id()
    }

    /// Starts it, on the data it has. It may take seconds until it serves.
    ///
    /// # Panics
    /// When there is no etcd.
    pub fn start(&mut self) {
        let mut words: Vec<String> = self.seat.wrapper.clone();
        words.push(self.program.display().to_string());
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .expect("its log can be written");
        let child = Command::new(&words[0])
            .args(&words[1..])
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap_or_else(|error| {
            panic!(
                "cannot run `{}`: {error}; `cargo xtask test` fetches it",
                words[0]
            )
        }));
    }

    /// Kills it as a power cut would; its data stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends it a signal: [`Signal::STOP`] makes it hang, [`Signal::CONT`] ends that.
    ///
    /// # Panics
    /// When it does not run.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        // A child that nobody has waited for keeps its pid.
        let pidfd = pidfd_open(pid.expect("a pid is positive"), PidfdFlags::empty());
        pidfd_send_signal(pidfd.expect("the member is there"), signal)
            .expect("it can be signalled");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What `cargo xtask test` fetched comes before what the system has, which may be older.
fn find(program: &str) -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin");
    let fetched = tools.join(program);
    if fetched.exists() {
        fetched
    } else {
        PathBuf::from(program)
    }
}
