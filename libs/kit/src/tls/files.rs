//! Certificates in files, and the settings that are made of them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};

/// How HTTP/2 is called where a protocol is agreed on.
const HTTP2: &[u8] = b"h2";

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
pub(super) trait Files {
    type Settings;

    fn paths(&self) -> Vec<&Path>;

    /// Reads them; `table` is where they are configured.
    fn load(&self, table: &str) -> Result<Self::Settings, Error>;
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
pub(super) mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use tether_etcd_cluster::Certificates;

    use super::*;

    pub(in super::super) fn issue(folder: &Path) -> Certificates {
        Certificates::make(folder, &[IpAddr::V4(Ipv4Addr::LOCALHOST)])
    }

    pub(in super::super) fn files(of: &Certificates) -> (ServerFiles, ClientFiles) {
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
