//! TLS over a byte stream, on either side, with certificates from files that may change while they are used: a
//! connection that is made after that has the new ones. Files that have become unreadable change nothing.

use std::{
    fs,
    io::{self, Error as IoError, ErrorKind},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use tether_types::Address;
use tokio_rustls::{
    TlsAcceptor, TlsConnector, TlsStream,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

use crate::listen::Stream;

/// How HTTP/2 is called where a protocol is agreed on.
const HTTP2: &[u8] = b"h2";
/// The first byte of every connection with TLS: a record of its handshake.
pub const HANDSHAKE: u8 = 0x16;
/// How often files are looked at, at most.
const SELDOM: Duration = Duration::from_secs(1);

/// What a server shows, and whom it lets in. Files are in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerFiles {
    /// Its certificate, and after it those that lead to an authority that clients trust.
    pub certificate: PathBuf,
    /// The private key of that.
    pub key: PathBuf,
    /// The authorities whose clients are let in; all are where this is not set.
    #[serde(default)]
    pub client_ca: Option<PathBuf>,
}

/// Whom a client trusts, and what it shows. Files are in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFiles {
    /// The authorities whose servers are trusted.
    pub ca: PathBuf,
    /// Its own certificate, where servers ask for one.
    #[serde(default)]
    pub certificate: Option<PathBuf>,
    /// The private key of that.
    #[serde(default)]
    pub key: Option<PathBuf>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`{key}`: `{}` {why}", file.display())]
pub struct Error {
    key: String,
    file: PathBuf,
    why: String,
}

/// The settings of one side, made of files.
trait Files {
    type Settings;

    fn paths(&self) -> Vec<&Path>;

    /// Reads them; `table` is where they are configured.
    fn load(&self, table: &str) -> Result<Self::Settings, Error>;
}

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

impl Files for ServerFiles {
    type Settings = ServerConfig;

    fn paths(&self) -> Vec<&Path> {
        let ours = [self.certificate.as_path(), &self.key];
        ours.into_iter().chain(self.client_ca.as_deref()).collect()
    }

    fn load(&self, table: &str) -> Result<ServerConfig, Error> {
        let at = |key| format!("{table}.{key}");
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(at("certificate"), &self.certificate, error))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(file) => {
                let roots = Arc::new(authorities(file, &at("client_ca"))?);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                    .build()
                    .map_err(|error| wrong(at("client_ca"), file, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let chain = certificates(&self.certificate, &at("certificate"))?;
        let key = private_key(&self.key, &at("key"))?;
        let mut settings = builder
            .with_single_cert(chain, key)
            .map_err(|error| wrong(at("key"), &self.key, error))?;
        settings.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(settings)
    }
}

impl Files for ClientFiles {
    type Settings = ClientConfig;

    fn paths(&self) -> Vec<&Path> {
        let own = [&self.certificate, &self.key].into_iter().flatten();
        [self.ca.as_path()]
            .into_iter()
            .chain(own.map(PathBuf::as_path))
            .collect()
    }

    fn load(&self, table: &str) -> Result<ClientConfig, Error> {
        let at = |key| format!("{table}.{key}");
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong(at("ca"), &self.ca, error))?
            .with_root_certificates(authorities(&self.ca, &at("ca"))?);
        let mut settings = match (&self.certificate, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(file), Some(key_file)) => {
                let chain = certificates(file, &at("certificate"))?;
                let key = private_key(key_file, &at("key"))?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|error| wrong(at("key"), key_file, error))?
            }
            (Some(file), None) => {
                return Err(wrong(
                    at("certificate"),
                    file,
                    "is of no use without its `key` beside it",
                ));
            }
            (None, Some(file)) => {
                return Err(wrong(
                    at("key"),
                    file,
                    "is of no use without its `certificate` beside it",
                ));
            }
        };
        settings.alpn_protocols = vec![HTTP2.to_vec()];
        Ok(settings)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn authorities(file: &Path, key: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file, key)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(key.to_owned(), file, error))?;
    }
    Ok(roots)
}

fn certificates(file: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bytes = read(file, key)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found =
        read.map_err(|error| wrong(key.to_owned(), file, format!("is not PEM: {error}")))?;
    match found.is_empty() {
        true => Err(wrong(key.to_owned(), file, "has no certificate in it")),
        false => Ok(found),
    }
}

fn private_key(file: &Path, key: &str) -> Result<PrivateKeyDer<'static>, Error> {
    let bytes = read(file, key)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| {
        wrong(
            key.to_owned(),
            file,
            format!("has no private key in it: {error}"),
        )
    })
}

fn read(file: &Path, key: &str) -> Result<Vec<u8>, Error> {
    fs::read(file).map_err(|error| wrong(key.to_owned(), file, format!("cannot be read: {error}")))
}

fn wrong(key: String, file: &Path, why: impl ToString) -> Error {
    Error {
        key,
        file: file.to_owned(),
        why: why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use tether_etcd_cluster::Certificates;

    use super::*;

    fn issue(folder: &Path) -> Certificates {
        Certificates::make(folder, &[IpAddr::V4(Ipv4Addr::LOCALHOST)])
    }

    fn files(of: &Certificates) -> (ServerFiles, ClientFiles) {
        let server = ServerFiles {
            certificate: of.file("server.pem"),
            key: of.file("server.key"),
            client_ca: Some(of.file("ca.pem")),
        };
        let client = ClientFiles {
            ca: of.file("ca.pem"),
            certificate: Some(of.file("client.pem")),
            key: Some(of.file("client.key")),
        };
        (server, client)
    }

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

    #[test]
    fn what_cannot_be_used_is_named_with_its_setting_and_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let certificates = issue(folder.path());
        let (server, client) = files(&certificates);
        let none = folder.path().join("none.pem");
        let empty = folder.path().join("empty.pem");
        fs::write(&empty, "").unwrap();
        let server = |change: fn(&mut ServerFiles, &Path), to: &Path| {
            let mut files = server.clone();
            change(&mut files, to);
            files.load("t").unwrap_err().to_string()
        };
        let client = |change: fn(&mut ClientFiles, &Path), to: &Path| {
            let mut files = client.clone();
            change(&mut files, to);
            files.load("t").unwrap_err().to_string()
        };
        let foreign = certificates.file("client.key");

        for (said, key, why) in [
            (
                server(|files, to| files.certificate = to.into(), &none),
                "certificate",
                "cannot be read",
            ),
            (
                server(|files, to| files.certificate = to.into(), &empty),
                "certificate",
                "has no certificate in it",
            ),
            (
                server(|files, to| files.key = to.into(), &empty),
                "key",
                "has no private key in it",
            ),
            (
                server(|files, to| files.key = to.into(), &foreign),
                "key",
                "",
            ),
            (
                server(|files, to| files.client_ca = Some(to.into()), &none),
                "client_ca",
                "cannot be read",
            ),
            (
                client(|files, to| files.ca = to.into(), &none),
                "ca",
                "cannot be read",
            ),
            (
                client(|files, _| files.key = None, &none),
                "certificate",
                "is of no use without its `key`",
            ),
            (
                client(|files, _| files.certificate = None, &none),
                "key",
                "is of no use without its `certificate`",
            ),
        ] {
            assert!(said.starts_with(&format!("`t.{key}`: `/")), "{said}");
            assert!(said.contains(why), "{said}");
        }
    }
}
