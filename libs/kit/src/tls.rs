//! TLS over a byte stream, on either side, with certificates from files that may change while they are used: a
//! connection that is made after that has the new ones. Files that have become unreadable change nothing.

mod files;

use std::{
    fs,
    io::{self, Error as IoError, ErrorKind},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tether_types::Address;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream, rustls::pki_types::ServerName};

use crate::listen::Stream;

pub use files::{ClientFiles, Error, ServerFiles};

use files::Files;

/// The first byte of every connection with TLS: a record of its handshake.
pub const HANDSHAKE: u8 = 0x16;
/// How often files are looked at, at most.
const SELDOM: Duration = Duration::from_secs(1);

/// Settings that are read again when their files have changed.
#[derive(Debug)]
struct Fresh<F: Files> {
    files: F,
    /// Where they are configured, as `listen.tls`.
    table: String,
    last: Mutex<Last<F::Settings>>,
}

#[derive(Debug)]
struct Last<S> {
    settings: Arc<S>,
    looked: Instant,
    stamps: Vec<Option<(SystemTime, u64)>>,
}

impl<F: Files> Fresh<F> {
    fn new(files: F, table: &str) -> Result<Self, Error> {
        // What is changed while it is read is read again.
        let stamps = stamps(&files);
        let settings = Arc::new(files.load(table)?);
        Ok(Self {
            files,
            table: table.to_owned(),
            last: Mutex::new(Last {
                settings,
                looked: Instant::now(),
                stamps,
            }),
        })
    }

    fn settings(&self, now: Instant) -> Arc<F::Settings> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(last.looked) >= SELDOM {
            last.looked = now;
            let stamps = stamps(&self.files);
            if stamps != last.stamps {
                last.stamps = stamps;
                match self.files.load(&self.table) {
                    Ok(settings) => {
                        last.settings = Arc::new(settings);
                        tracing::info!(
                            table = self.table,
                            "Certificates have changed and are read again"
                        );
                    }
                    Err(error) => {
                        tracing::warn!(%error, "Certificates have changed and cannot be read; those of before stand");
                    }
                }
            }
        }
        Arc::clone(&last.settings)
    }
}

fn stamps(files: &impl Files) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |path: &Path| {
        let about = fs::metadata(path).ok()?;
        Some((about.modified().ok()?, about.len()))
    };
    files.paths().into_iter().map(stamp).collect()
}

/// Takes connections with TLS.
#[derive(Debug)]
pub struct Acceptor(Fresh<ServerFiles>);

impl Acceptor {
    /// One with these certificates, configured in `table`.
    ///
    /// # Errors
    /// Names the setting, the file, and what is wrong.
    pub fn new(files: ServerFiles, table: &str) -> Result<Self, Error> {
        Fresh::new(files, table).map(Self)
    }

    /// Agrees with a client on how to speak.
    ///
    /// # Errors
    /// When the client speaks no TLS, is not let in, or goes.
    pub async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        if let Stream::Tcp(tcp) = &stream {
            let mut first = [HANDSHAKE];
            tcp.peek(&mut first).await?;
            if first[0] != HANDSHAKE {
                let peer = tcp.peer_addr().ok();
                tracing::warn!(
                    ?peer,
                    "A client spoke plain text where TLS is spoken, and was not let in"
                );
                return Err(IoError::new(
                    ErrorKind::InvalidData,
                    "it is plain text, where TLS is spoken",
                ));
            }
        }
        let accepted = TlsAcceptor::from(self.0.settings(Instant::now()))
            .accept(stream)
            .await?;
        Ok(Stream::Tls(Box::new(TlsStream::Server(accepted))))
    }
}

/// Makes connections with TLS.
#[derive(Debug)]
pub struct Connector(Fresh<ClientFiles>);

impl Connector {
    /// One with these certificates, configured in `table`.
    ///
    /// # Errors
    /// Names the setting, the file, and what is wrong.
    pub fn new(files: ClientFiles, table: &str) -> Result<Self, Error> {
        Fresh::new(files, table).map(Self)
    }

    /// Agrees with the server at `address` on how to speak, once that is sure to be it.
    ///
    /// # Errors
    /// When it is not, speaks no TLS, or does not let this client in.
    pub async fn connect(&self, stream: Stream, address: &Address) -> io::Result<Stream> {
        let host = match address {
            Address::Tcp { host, .. } => host.clone(),
            Address::Unix(_) => "localhost".to_owned(),
        };
        let name = ServerName::try_from(host)
            .map_err(|error| IoError::new(ErrorKind::InvalidInput, error))?;
        let connector = TlsConnector::from(self.0.settings(Instant::now()));
        let connected = connector.connect(name, stream).await?;
        Ok(Stream::Tls(Box::new(TlsStream::Client(connected))))
    }
}

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::ServerConfig;

    use super::{
        files::tests::{files, issue},
        *,
    };

    #[test]
    fn what_has_changed_is_read_again_and_half_a_change_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let certificates = issue(folder.path());
        let fresh = Fresh::new(files(&certificates).0, "listen.tls").unwrap();
        let start = Instant::now();
        let at = |looks: u32| fresh.settings(start + 2 * SELDOM * looks);
        let same = |one: &Arc<ServerConfig>, other: &Arc<ServerConfig>| Arc::ptr_eq(one, other);

        let first = at(1);
        assert!(same(&first, &at(2)));
        fs::write(certificates.file("server.pem"), "half of it").unwrap();
        assert!(same(&first, &at(3)));
        issue(folder.path());
        assert!(same(&first, &at(3)), "it was looked at just now");
        assert!(!same(&first, &at(4)));
    }
}
