//! Sources of addresses for pools that no agent runs: one file each, one line each in [`ALL`].

mod dns;
mod fixed;

use std::{collections::BTreeSet, fmt};

use futures::stream::BoxStream;
use tether_types::Address;

/// A set of addresses whenever it may have changed, or why there is none right now. Goes on after an
/// error, which says nothing about the addresses: whoever reads keeps the last set. An empty set says
/// that nothing serves.
pub type Watch = BoxStream<'static, Result<BTreeSet<Address>, String>>;

/// A kind of source that a URL can name.
pub trait Backend: fmt::Debug + Sync {
    /// The part of the URL before `://`.
    fn scheme(&self) -> &'static str;

    /// The URL as an example.
    fn usage(&self) -> &'static str;

    /// Checks `rest`, the part after `://`, without any IO, and makes a watch of it.
    ///
    /// # Errors
    /// Says what is wrong with it.
    fn watch(&self, rest: &str) -> Result<Watch, String>;
}

/// Every kind of source, in the order the documentation lists them.
pub static ALL: &[&dyn Backend] = &[&fixed::Fixed, &dns::Dns];

/// Why a text is not a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No backend has this scheme.
    #[error(
        "no discovery backend understands `{given}`, expected one of: {}",
        usages()
    )]
    UnknownScheme {
        /// The source as given.
        given: String,
    },
    /// Its backend refuses it.
    #[error("`{given}` is not a source: {why}; expected for example `{usage}`")]
    Target {
        /// The source as given.
        given: String,
        /// What is wrong with it.
        why: String,
        /// A good one.
        usage: &'static str,
    },
}

/// Makes a watch of a source such as `static://10.0.0.4:50051`.
///
/// # Errors
/// Says what is wrong with it, before any IO.
pub fn open(source: &str) -> Result<Watch, Error> {
    let known = source.split_once("://").and_then(|(scheme, rest)| {
        let backend = ALL.iter().find(|backend| backend.scheme() == scheme)?;
        Some((backend, rest))
    });
    let (backend, rest) = known.ok_or_else(|| Error::UnknownScheme {
        given: source.to_owned(),
    })?;
    backend.watch(rest).map_err(|why| Error::Target {
        given: source.to_owned(),
        why,
        usage: backend.usage(),
    })
}

fn usages() -> String {
    let usages: Vec<String> = ALL.iter().map(|b| format!("`{}`", b.usage())).collect();
    usages.join(", ")
}

/// Reads an address one can connect to.
fn target(text: &str) -> Result<Address, String> {
    match text.parse::<Address>() {
        Ok(Address::Tcp { port: 0, .. }) => Err(format!("nobody serves at port 0 of `{text}`")),
        Ok(address) => Ok(address),
        Err(error) => Err(error.to_string()),
    }
}
