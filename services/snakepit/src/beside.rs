//! The process beside a worker, for as long as that lives: the worker's parent, and where it finds the BEAM, whoever
//! that is at the moment.
//!
//! It is in the worker's tree and ends with it, so that neither the end of the BEAM, nor of the program that owned the
//! worker, nor of the agent takes the worker's `--elixir-address` away.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use tokio::{
    net::{TcpListener, UnixListener},
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
};

use crate::{
    berth,
    ports::{self, Reserved},
    relay::{self, Owners},
    request::Launch,
    upstream::Upstream,
};

/// Made in the worker's directory once it serves where nobody else does: what its agent waits for.
pub(crate) const READY: &str = "ready";

/// What the worker itself makes.
const ITS_READY: &str = "port";

/// Between two looks whether it did.
const PAUSE_MIN: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Whether this is of the agent, and of this incarnation: the worker finds it as any worker of Tether's does. Where
/// such a worker is to listen is taken: there the relay serves.
fn is_ours(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name == b"NOTIFY_SOCKET" || name.starts_with(b"TETHER_") && name != b"TETHER_LISTEN"
}

/// Starts the worker of a berth and stands beside it to its end: `BERTH DIR SOCKET`. Tells its exit code.
///
/// # Errors
/// When it cannot be started, or not be told from another.
pub(crate) fn stand(args: &[OsString]) -> anyhow::Result<u8> {
    let [berth, dir, socket] = args else {
        bail!("`--tether-beside` is for Tether's own use");
    };
    let launch = berth::launch(berth.as_ref()).with_context(|| {
        format!("cannot read what to start in `{}`: the worker has to run on the machine of its BEAM, see TETHER_SNAKEPIT_LABELS", berth.display())
    })?;
    let runtime = crate::runtime().context("cannot begin")?;
    let ended = runtime.block_on(beside(
        &launch,
        berth.as_ref(),
        dir.as_ref(),
        socket.as_ref(),
    ))?;
    Ok(pass_on(ended))
}

/// Ends as the worker did.
fn pass_on(ended: ExitStatus) -> u8 {
    // Told apart from an exit, because only of a kill it is asked whether memory was short. This process has no
    // handler for it; what else there is may have.
    if ended.signal() == Some(Signal::KILL.as_raw())
        && let Ok(own) = pidfd_open(getpid(), PidfdFlags::empty())
    {
        let _ = pidfd_send_signal(&own, Signal::KILL);
    }
    let code = ended.code().or_else(|| Some(128 + ended.signal()?));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX)
}

async fn beside(
    launch: &Launch,
    berth: &Path,
    dir: &Path,
    socket: &Path,
) -> anyhow::Result<ExitStatus> {
    // The shim signals the whole tree: when to end is for the worker to say, and this process ends after it.
    let _terminate = signal(SignalKind::terminate())?;
    let _interrupt = signal(SignalKind::interrupt())?;

    let owners = Arc::new(Owners::default());
    let callbacks = TcpListener::bind(("127.0.0.1", 0))
        .await
        .context("no port is free for the relay")?;
    let relay = callbacks.local_addr()?;
    let listener = bind_anew(&berth::relay(berth))?;
    let port = Reserved::take(launch.port)
        .with_context(|| format!("the worker cannot have port {}", launch.port.unwrap_or(0)))?;
    tokio::spawn(relay::serve_callbacks(callbacks, Arc::clone(&owners)));
    tokio::spawn(relay::serve_owners(listener, Arc::clone(&owners)));

    let its_ready = dir.join(ITS_READY);
    let mut worker = start(launch, relay.to_string(), port.number(), &its_ready)?;
    let served_at = tokio::select! {
        ended = worker.wait() => return Ok(ended?),
        served_at = port_in(&its_ready) => served_at?,
    };
    if let Err(error) = ports::is_of_children_alone(served_at) {
        let _ = worker.start_kill();
        let _ = worker.wait().await;
        return Err(crate::Refusal::Lost(format!("port {served_at}: {error}")).into());
    }
    // Where gateways reach it, as any worker of a pool.
    let serving = bind_anew(socket)?;
    let own = Arc::new(Upstream::new(format!("127.0.0.1:{served_at}")));
    tokio::spawn(relay::serve_calls(serving, own));
    owners.serves(served_at);
    fs::write(dir.join(READY), "").context("cannot say that the worker is ready")?;
    Ok(worker.wait().await?)
}

fn bind_anew(path: &Path) -> anyhow::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
    .with_context(|| format!("cannot listen at `{}`", path.display()))
}

fn start(launch: &Launch, relay: String, port: u16, ready: &Path) -> anyhow::Result<Child> {
    let (python, args) = launch
        .argv
        .split_first()
        .context("there is nothing to start")?;
    let ours = env::vars_os().filter(|(name, _)| is_ours(name));
    Command::new(python)
        .args(args)
        .args(["--port", &port.to_string(), "--elixir-address", &relay])
        .env_clear()
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        .envs(ours)
        .env("SNAKEPIT_READY_FILE", ready)
        .current_dir(&launch.cwd)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| {
            format!(
                "cannot start `{}` in `{}`",
                python.display(),
                launch.cwd.display()
            )
        })
}

/// The port that the worker says it serves at, once it says so.
async fn port_in(file: &PathBuf) -> anyhow::Result<u16> {
    let mut pause = PAUSE_MIN;
    loop {
        match fs::read_to_string(file) {
            Ok(text) => {
                let port = text.trim().parse();
                return port.with_context(|| {
                    format!("the worker says that it is ready at `{text}`, which is no port")
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
