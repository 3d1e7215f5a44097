//! Where the addresses of a pool come from that no agent runs: one file for each kind of source, one line each in [`ALL`].
//!
//! A source is a URL such as `dns://workers.internal:50051?ceiling=10s`. Its [`Watch`] gives an [`Answer`] whenever
//! who serves may have changed.
//!
//! # Invariants, for every kind of source
//!
//! - **B1** What cannot be a source is refused before any IO, and the error says what would be one.
//! - **B2** Nobody serving is an answer, and no error; a source that cannot be asked is an error, and no answer.
//! - **B3** A watch never ends. After an error it goes on to ask, with pauses that grow and differ between watches.
//! - **B4** A change is told in the order in which it happened, and a state that is over may be left out.
//! - **B5** An answer is bounded, whatever the source says; entries that cannot be called are left out, each with a word.

mod again;
mod answer;
mod consul;
mod dns;
mod entry;
mod etcd;
mod file;
mod fixed;
mod http;
#[cfg(feature = "kubernetes")]
mod kubernetes;
mod options;

use std::fmt;

use futures::stream::BoxStream;
use tether_types::Address;

pub use answer::{Answer, TARGETS_MAX, Targets, Traits, WEIGHT_MAX};
pub use options::Options;

/// An answer whenever it may have changed, or why there is none right now: that says nothing about who serves, and
/// whoever reads keeps the last answer.
pub type Watch = BoxStream<'static, Result<Answer, String>>;

/// A kind of source that a URL can name.
pub trait Backend: fmt::Debug + Sync {
    /// The part of the URL before `://`.
    fn scheme(&self) -> &'static str;

    /// The URL as an example.
    fn usage(&self) -> &'static str;

    /// Checks `target`, the part between `://` and `?`, and the options it knows, without any IO, and makes a watch
    /// of it.
    ///
    /// # Errors
    /// Says what is wrong with it.
    fn watch(&self, target: &str, options: &mut Options) -> Result<Watch, String>;

    /// Whether its watches tell each answer, also one that says the same as before: what is known is as old as the last
    /// one. Others are told of a change by the source, and what is known is good until they notice that it is away.
    fn tells_each_answer(&self) -> bool {
        false
    }
}

/// Every kind of source, in the order the documentation lists them.
pub static ALL: &[&dyn Backend] = &[
    &fixed::Fixed,
    &file::FromFile,
    &dns::Dns,
    &etcd::Etcd,
    &consul::Consul,
    #[cfg(feature = "kubernetes")]
    &kubernetes::Kubernetes,
];

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
    let (backend, rest) = backend_of(source).ok_or_else(|| Error::UnknownScheme {
        given: source.to_owned(),
    })?;
    let (target, options) = rest.split_once('?').unwrap_or((rest, ""));
    let watch = || {
        let mut options = Options::parse(options)?;
        let watch = backend.watch(target, &mut options)?;
        options.finish()?;
        Ok(watch)
    };
    watch().map_err(|why| Error::Target {
        given: source.to_owned(),
        why,
        usage: backend.usage(),
    })
}

/// Whether a watch of this source tells each answer, and not only those that differ.
pub fn tells_each_answer(source: &str) -> bool {
    backend_of(source).is_some_and(|(backend, _)| backend.tells_each_answer())
}

fn backend_of(source: &str) -> Option<(&'static dyn Backend, &str)> {
    let (scheme, rest) = source.split_once("://")?;
    let backend = ALL.iter().find(|backend| backend.scheme() == scheme)?;
    Some((*backend, rest))
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
