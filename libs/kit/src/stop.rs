//! Stopping: the first signal asks, the second one insists. And what the exit status says.

use std::{io, process, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Everything went well, or it stopped as asked.
pub const EXIT_OK: u8 = 0;
/// Something failed.
pub const EXIT_FAILURE: u8 = 1;
/// What was waited for has not come about in time; nothing is lost, and it may still.
pub const EXIT_LATE: u8 = 3;
/// The process that started this one has ended, and this one with it as it was told to. (`EX_UNAVAILABLE` of
/// sysexits.)
pub const EXIT_PARENT: u8 = 69;
/// The session in whose name it acted is over, or was taken over: nothing more may be done in that name.
/// Worth trying again with a new one. (`EX_TEMPFAIL` of sysexits.)
pub const EXIT_LOST: u8 = 75;
/// The configuration was refused; nothing was started. (`EX_CONFIG` of sysexits.)
pub const EXIT_CONFIG: u8 = 78;

/// Signals this close together are one request: a terminal, `timeout` and service managers send theirs
/// to the process and to its group.
const ONE_REQUEST: Duration = Duration::from_millis(500);

/// Gives a token that the first SIGTERM or SIGINT cancels; another one, a moment later, ends the
/// process at once.
///
/// # Errors
/// When the signals cannot be caught.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        let mut first = None;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            match first {
                None => {
                    first = Some(Instant::now());
                    tracing::info!("Asked to stop");
                    cancel.cancel();
                }
                Some(first) if first.elapsed() < ONE_REQUEST => {}
                Some(_) => {
                    tracing::error!("Asked twice to stop, leaving now");
                    process::exit(EXIT_FAILURE.into());
                }
            }
        }
    });
    Ok(token)
}
