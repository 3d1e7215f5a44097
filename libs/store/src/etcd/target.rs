//! What a URL says of an etcd cluster.

use std::{env, fmt, fs, path::Path};

use etcd_client::{Certificate, Identity, TlsOptions};
use tether_types::Address;

/// Where our keys are unless the URL says otherwise.
const PREFIX: &str = "/tether/v1/";

/// Every parameter, for error messages.
const PARAMETERS: &str =
    "`ca`, `cert`, `key`, `user`, `password_file`, `password_env`, `allow_old`";

/// A cluster, and how to be let in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    /// `host:port` of each member.
    pub(super) members: Vec<String>,
    /// What every key starts with; ends with `/`.
    pub(super) prefix: String,
    /// The file with the authorities a member's certificate may come from; with it, TLS is spoken.
    ca: Option<String>,
    /// Our own certificate and its key.
    identity: Option<(String, String)>,
    user: Option<(String, Password)>,
    /// Whether an etcd below the floor will do.
    pub(super) allow_old: bool,
}

/// Where the password is. It is never in the URL, which is logged.
#[derive(Debug, PartialEq, Eq)]
enum Password {
    File(String),
    Environment(String),
}

/// What is shown to nobody.
pub(super) struct Secret(pub(super) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Target {
    /// Reads what follows `etcd:`, without looking at any file.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        let rest = rest
            .strip_prefix("//")
            .ok_or("`//` and the members follow `etcd:`")?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (members, path) = rest.split_once('/').unwrap_or((rest, ""));
        if members.contains('@') {
            return Err(
                "a URL is logged, so who we are does not stand before the members; give `?user=NAME&password_file=/path`"
                    .to_owned(),
            );
        }
        let members: Result<Vec<String>, String> = members.split(',').map(member).collect();
        let mut target = Self {
            members: members?,
            prefix: match path.trim_matches('/') {
                "" => PREFIX.to_owned(),
                path => format!("/{path}/"),
            },
            ..Self::default()
        };
        target.read_parameters(query)?;
        Ok(target)
    }

    fn read_parameters(&mut self, query: &str) -> Result<(), String> {
        let (mut user, mut password, mut cert, mut key) = (None, None, None, None);
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if name == "password" {
                return Err(
                    "a URL is logged, so a password does not belong into it; give `password_file=/path` or `password_env=VARIABLE`"
                        .to_owned(),
                );
            }
            if value.is_empty() {
                return Err(format!("`{name}` has no value; write `{name}=VALUE`"));
            }
            let value = value.to_owned();
            let earlier = match name {
                "ca" => self.ca.replace(path(name, value)?).is_some(),
                "cert" => cert.replace(path(name, value)?).is_some(),
                "key" => key.replace(path(name, value)?).is_some(),
                "user" => user.replace(value).is_some(),
                "password_file" => password
                    .replace(Password::File(path(name, value)?))
                    .is_some(),
                "password_env" => password.replace(Password::Environment(value)).is_some(),
                "allow_old" => {
                    self.allow_old = value.parse().map_err(|_| {
                        format!("`allow_old` is `{value}`; write `allow_old=true` or leave it out")
                    })?;
                    false
                }
                _ => {
                    return Err(format!(
                        "`{name}` is no parameter of it, which are {PARAMETERS}"
                    ));
                }
            };
            if earlier {
                return Err(format!(
                    "`{name}` is there twice, or says what another one says"
                ));
            }
        }
        self.user = match (user, password) {
            (Some(user), Some(password)) => Some((user, password)),
            (None, None) => None,
            (Some(_), None) => {
                return Err("`user` needs `password_file` or `password_env`".to_owned());
            }
            (None, Some(_)) => return Err("a password needs a `user`".to_owned()),
        };
        self.identity = match (cert, key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => return Err("`cert` and `key` need each other".to_owned()),
        };
        if self.identity.is_some() && self.ca.is_none() {
            return Err(
                "a certificate is shown over TLS alone; add `ca`, the file with the authorities that members' certificates come from"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// The scheme that members are spoken to with.
    pub(super) fn scheme(&self) -> &'static str {
        if self.ca.is_some() { "https" } else { "http" }
    }

    /// What to add where a member wants to know more of us than it is shown.
    pub(super) fn lacking(&self) -> Option<&'static str> {
        match (&self.ca, &self.identity) {
            (None, _) => Some("where this member speaks TLS, add `ca` to the store's URL"),
            (_, None) => Some(
                "where this member wants a certificate, add `cert` and `key` to the store's URL",
            ),
            (Some(_), Some(_)) => None,
        }
    }

    /// Reads the certificates.
    pub(super) fn tls(&self) -> Result<Option<TlsOptions>, String> {
        let Some(ca) = &self.ca else {
            return Ok(None);
        };
        let ca = pem("ca", ca, "-----BEGIN CERTIFICATE-----")?;
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(ca));
        if let Some((cert, key)) = &self.identity {
            let cert = pem("cert", cert, "-----BEGIN CERTIFICATE-----")?;
            let key = pem("key", key, "PRIVATE KEY-----")?;
            tls = tls.identity(Identity::from_pem(cert, key));
        }
        Ok(Some(tls))
    }

    /// Reads the password, and says whose it is.
    pub(super) fn user(&self) -> Result<Option<(String, Secret)>, String> {
        let Some((user, password)) = &self.user else {
            return Ok(None);
        };
        let (place, password) = match password {
            Password::File(path) => (
                format!("password_file={path}"),
                read("password_file", path)?,
            ),
            Password::Environment(name) => (
                format!("password_env={name}"),
                env::var(name).map_err(|_| {
                    format!("`password_env={name}`: this variable is not set, or is not text; set it to the password")
                })?,
            ),
        };
        let password = password.trim_end_matches(['\r', '\n']);
        if password.is_empty() {
            return Err(format!("`{place}`: there is no password in it"));
        }
        Ok(Some((user.clone(), Secret(password.to_owned()))))
    }
}

fn member(text: &str) -> Result<String, String> {
    match text.parse::<Address>() {
        Ok(Address::Tcp { .. }) => Ok(text.to_owned()),
        Ok(Address::Unix(_)) => Err("etcd is reached by `host:port`".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// A service may run in another directory than the one who wrote the URL.
fn path(name: &str, path: String) -> Result<String, String> {
    if Path::new(&path).is_absolute() {
        Ok(path)
    } else {
        Err(format!("`{name}={path}` is no path that starts with `/`"))
    }
}

fn read(name: &str, path: &str) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| {
        format!("`{name}={path}` cannot be read: {error}; check the path, and that this user may read it")
    })
}

fn pem(name: &str, path: &str, mark: &str) -> Result<String, String> {
    let text = read(name, path)?;
    if text.contains(mark) {
        Ok(text)
    } else {
        Err(format!(
            "`{name}={path}` has no `{mark}` in it; give a file in PEM form"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_members_and_optionally_a_prefix() {
        let target = Target::parse("//a:2379,[::1]:2379").unwrap();
        assert_eq!((target.members.len(), target.prefix.as_str()), (2, PREFIX));
        assert_eq!(target.scheme(), "http");

        let target = Target::parse("//a:2379/team/one").unwrap();
        assert_eq!(target.prefix, "/team/one/");

        for bad in ["a:2379", "//", "//a", "//a:2379,", "//unix:/a"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_url_says_how_to_be_let_in() {
        let target =
            Target::parse("//a:1/?ca=/ca&cert=/c&key=/k&user=u&password_file=/p&allow_old=true")
                .unwrap();

        assert_eq!(target.scheme(), "https");
        assert_eq!(target.identity, Some(("/c".to_owned(), "/k".to_owned())));
        assert_eq!(
            target.user,
            Some(("u".to_owned(), Password::File("/p".to_owned())))
        );
        assert!(target.allow_old);
    }

    #[test]
    fn each_wrong_parameter_is_refused_with_the_cause_and_the_fix() {
        for (query, cause) in [
            ("caa=/x", "`caa` is no parameter of it, which are `ca`"),
            ("ca=", "`ca` has no value"),
            ("ca=x", "no path that starts with `/`"),
            ("ca=/x&ca=/y", "twice"),
            ("ca=/x&cert=/y", "`cert` and `key` need each other"),
            ("cert=/x&key=/y", "add `ca`"),
            ("user=x", "needs `password_file` or `password_env`"),
            ("password_env=X", "needs a `user`"),
            ("user=x&password_env=X&password_file=/x", "another one says"),
            ("allow_old=yes", "write `allow_old=true`"),
            ("password=geheim", "give `password_file=/path`"),
        ] {
            let error = Target::parse(&format!("//a:1/?{query}")).unwrap_err();
            assert!(error.contains(cause), "{query}: {error}");
            assert!(!error.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn what_the_files_lack_is_said_with_their_parameter() {
        let folder = tempfile::tempdir().unwrap();
        let empty = folder.path().join("empty");
        fs::write(&empty, "\n").unwrap();
        let empty = empty.display();
        let target = |query: &str| Target::parse(&format!("//a:1/?{query}")).unwrap();

        let error = target("ca=/not/there").tls().unwrap_err();
        assert!(error.contains("`ca=/not/there` cannot be read"), "{error}");
        let error = target(&format!("ca={empty}")).tls().unwrap_err();
        assert!(error.contains("PEM"), "{error}");
        let error = target(&format!("user=u&password_file={empty}"));
        let error = error.user().unwrap_err();
        assert!(error.contains("no password in it"), "{error}");
        let error = target("user=u&password_env=TETHER_NOT_SET").user();
        assert!(error.unwrap_err().contains("not set"));
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret("geheim".to_owned())), "***");
    }
}
