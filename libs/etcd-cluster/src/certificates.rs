//! A certificate authority with a server's and a client's certificate, in files.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};

/// Where the files are.
#[derive(Debug, Clone)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes all of them in `folder`, for servers on these addresses.
    ///
    /// # Panics
    /// When a file cannot be written.
    pub fn make(folder: &Path, addresses: &[IpAddr]) -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key can be made");
        let issuer = CertifiedIssuer::self_signed(authority, key).expect("it signs itself");
        write(folder, "ca.pem", &issuer.pem());
        for (name, purposes) in [
            // A member is also a client of its peers, and of itself through its gateway.
            (
                "server",
                vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ],
            ),
            ("client", vec![ExtendedKeyUsagePurpose::ClientAuth]),
        ] {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = purposes;
            params.subject_alt_names = addresses.iter().copied().map(SanType::IpAddress).collect();
            let key = KeyPair::generate().expect("a key can be made");
            let certificate = params
                .signed_by(&key, &issuer)
                .expect("the authority signs it");
            write(folder, &format!("{name}.pem"), &certificate.pem());
            write(folder, &format!("{name}.key"), &key.serialize_pem());
        }
        Self {
            folder: folder.to_owned(),
        }
    }

    /// One of `ca.pem`, `server.pem`, `server.key`, `client.pem` and `client.key`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// A pair of keys to sign tokens with: the public one, and the private one.
pub(crate) fn token_keys(folder: &Path) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().expect("a key can be made");
    write(folder, "token.pub", &key.public_key_pem());
    write(folder, "token.key", &key.serialize_pem());
    (folder.join("token.pub"), folder.join("token.key"))
}

fn write(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join(name), text).expect("a certificate can be written");
}
