//! Stopping: the first signal asks, the second one insists. And what the exit status says.

use std::{io, process};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Everything went well, or it stopped as asked.
pub const EXIT_OK: u8 = 0;
/// Something failed.
pub const EXIT_FAILURE: u8 = 1;
/// The configuration was refused; nothing was started. (`EX_CONFIG` of sysexits.)
pub const EXIT_CONFIG: u8 = 78;

/// Gives a token that the first SIGTERM or SIGINT cancels; the second one ends the process at once.
///
/// # Errors
/// When the signals cannot be caught.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancel = token.clone();
    tokio::spawn(async move {
        for asked_before in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if asked_before {
                tracing::error!("Asked twice to stop, leaving now");
                process::exit(EXIT_FAILURE.into());
            }
            tracing::info!("Asked to stop");
            cancel.cancel();
        }
    });
    Ok(token)
}
