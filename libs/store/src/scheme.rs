//! The one list of stores, and how a URL finds its store.

use std::{fmt, sync::Arc};

use futures::future::BoxFuture;

use crate::{Error, Store, file, memory};

/// A kind of store that a URL can name.
pub trait Scheme: fmt::Debug + Sync {
    /// The part of the URL before the first colon.
    fn name(&self) -> &'static str;

    /// The URL as an example.
    fn usage(&self) -> &'static str;

    /// Judges `rest`, the part after the first colon, without opening anything.
    ///
    /// # Errors
    /// Says what is wrong with it.
    fn check(&self, rest: &str) -> Result<(), Error>;

    /// Opens the store that `rest`, the part after the first colon, describes.
    fn open<'a>(&self, rest: &'a str) -> BoxFuture<'a, Result<Arc<dyn Store>, Error>>;
}

/// Every kind of store, in the order the documentation lists them.
pub static ALL: &[&dyn Scheme] = &[
    &memory::Memory,
    &file::Redb,
    #[cfg(feature = "etcd")]
    &crate::etcd::Etcd,
];

/// Opens the store a URL names, such as `redb:/var/lib/tether/state.redb`.
///
/// An etcd store also opens when no member answers: a service may start before etcd does.
///
/// # Errors
/// Says what is wrong with the URL, or why the store cannot be opened.
pub async fn open(url: &str) -> Result<Arc<dyn Store>, Error> {
    let (scheme, rest) = find(url)?;
    scheme.open(rest).await
}

/// Judges a URL without opening anything.
///
/// # Errors
/// Says what is wrong with it.
pub fn check(url: &str) -> Result<(), Error> {
    let (scheme, rest) = find(url)?;
    scheme.check(rest)
}

fn find(url: &str) -> Result<(&'static dyn Scheme, &str), Error> {
    let (name, rest) = url.split_once(':').unwrap_or((url, ""));
    let scheme = ALL
        .iter()
        .find(|scheme| scheme.name() == name && url.contains(':'))
        .ok_or_else(|| Error::UnknownScheme {
            given: masked(url).escape_debug().to_string(),
        })?;
    Ok((*scheme, rest))
}

/// Every usage, for error messages.
pub(crate) fn usages() -> String {
    let usages: Vec<String> = ALL.iter().map(|s| format!("`{}`", s.usage())).collect();
    usages.join(", ")
}

/// The URL with what may be a password made unreadable.
pub(crate) fn masked(url: &str) -> String {
    let (rest, query) = url.split_once('?').unwrap_or((url, ""));
    let mut shown = match (rest.split_once("//"), rest.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, members))) => format!("{scheme}//***@{members}"),
        _ => rest.to_owned(),
    };
    for (number, parameter) in query.split('&').enumerate() {
        let hidden = match parameter.split_once('=') {
            Some(("password", _)) => "password=***",
            _ => parameter,
        };
        if !query.is_empty() {
            shown.push(if number == 0 { '?' } else { '&' });
            shown.push_str(hidden);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for url in [
            "etcd://root:geheim@a:2379/x/",
            "etcd://root:ge@heim@a:2379",
            "etcd://a:2379/?user=root&password=geheim",
            "etcds://root:geheim@a:2379/?password=geheim",
        ] {
            let shown = masked(url);
            assert!(!shown.contains("heim"), "{shown}");
            assert!(shown.contains("a:2379"), "{shown}");
        }
        assert_eq!(masked("redb:/a@b"), "redb:/a@b");
        assert_eq!(
            masked("etcd://a:1/?ca=/x&key=/y"),
            "etcd://a:1/?ca=/x&key=/y"
        );
    }
}
