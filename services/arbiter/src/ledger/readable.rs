//! Whether what is in the store is ours and can be read, looked at before anything is decided by it. What others
//! wrote under our keys is left alone; a record of ours that cannot be read is no reason to forget what it said.

use prost::{DecodeError, Message};
use tether_proto::{discovery::NodeLoss, job::Job};
use tether_store::{Entry, Listing, keys::ServeKey};
use tether_types::{InstanceName, NodeName, OwnerName, PoolName};

use crate::{
    effects::keys,
    record::{
        CordonRecord, HoldRecord, IncarnationRecord, NodeRecord, OwnerRecord, PoolRecord,
        RegistrationRecord,
    },
};

/// A record without which no decision is safe.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot read `{key}` in the store, without which {risk}; restore it from a backup, or delete it when no worker of before lives"
)]
pub(crate) struct Unreadable {
    key: String,
    risk: &'static str,
    source: DecodeError,
}

/// Reads a record that must not be guessed; `risk` is what could happen if it was.
///
/// # Errors
/// When it cannot be read.
fn must<T: Message + Default>(entry: &Entry, risk: &'static str) -> Result<T, Unreadable> {
    T::decode(&*entry.value).map_err(|source| Unreadable {
        key: entry.key.clone(),
        risk,
        source,
    })
}

/// How far incarnations have been given out.
///
/// # Errors
/// When it cannot be read.
pub(super) fn incarnation(entry: &Entry) -> Result<IncarnationRecord, Unreadable> {
    must(entry, "an incarnation number could be given out twice")
}

/// Looks at every record, and names what is not ours in a warning.
///
/// # Errors
/// When a record of ours cannot be read.
pub(super) fn check(listing: &Listing) -> Result<(), Unreadable> {
    for entry in &listing.entries {
        if !look_at(entry)? {
            tracing::warn!(
                key = %entry.key.escape_debug(),
                "A key in the store is not one of ours, and is ignored"
            );
        }
    }
    Ok(())
}

/// Whether it is one of ours. Its name says so: a value is only read where the name is right.
fn look_at(entry: &Entry) -> Result<bool, Unreadable> {
    let key = entry.key.as_str();
    if key == keys::INCARNATION {
        return incarnation(entry).map(|_| true);
    }
    if let Some(name) = key.strip_prefix(keys::OWNERS) {
        let risk = "a session would end, and with it workers that may live";
        return Ok(OwnerName::new(name).is_ok() && must::<OwnerRecord>(entry, risk).map(|_| true)?);
    }
    if let Some(name) = key.strip_prefix(keys::NODES) {
        let risk = "a second agent could take the place of the one that has workers";
        return Ok(NodeName::new(name).is_ok() && must::<NodeRecord>(entry, risk).map(|_| true)?);
    }
    if let Some(name) = key.strip_prefix(keys::CORDONS) {
        let risk = "workers would be started on a machine that somebody has closed";
        return Ok(NodeName::new(name).is_ok() && must::<CordonRecord>(entry, risk).map(|_| true)?);
    }
    if let Some(name) = key.strip_prefix(keys::POOLS) {
        let risk = "its workers would end and its jobs be forgotten";
        return Ok(PoolName::new(name).is_ok() && must::<PoolRecord>(entry, risk).map(|_| true)?);
    }
    if let Some(rest) = key.strip_prefix(keys::JOBS) {
        let risk = "a job could be started a second time";
        let pool = rest.split_once('/').map(|(pool, _)| PoolName::new(pool));
        return Ok(matches!(pool, Some(Ok(_))) && must::<Job>(entry, risk).map(|_| true)?);
    }
    if let Some(rest) = key.strip_prefix(keys::JOB_SPECS) {
        // Bytes of its owner, which are read by nobody here.
        let pool = rest.split_once('/').map(|(pool, _)| PoolName::new(pool));
        return Ok(matches!(pool, Some(Ok(_))));
    }
    if let Some(rest) = key.strip_prefix(keys::REGISTRATIONS) {
        let risk = "a name and an address could be given to others while they are somebody's";
        let ours = rest.split_once('/').is_some_and(|(pool, name)| {
            PoolName::new(pool).is_ok() && InstanceName::new(name).is_ok()
        });
        return Ok(ours && must::<RegistrationRecord>(entry, risk).map(|_| true)?);
    }
    if key.starts_with(keys::HOLDS) {
        let risk = "a job could be started a second time while its worker lives on elsewhere";
        return must::<HoldRecord>(entry, risk).map(|_| true);
    }
    if let Some(ServeKey::Loss(_)) = ServeKey::parse(key) {
        let risk = "workers that are dead would be taken to serve";
        return must::<NodeLoss>(entry, risk).map(|_| true);
    }
    if key.starts_with(keys::LEADER) {
        // Read by those who stand for election.
        return Ok(true);
    }
    Ok(match key.strip_prefix(keys::EVENTS) {
        // Only told again; one that cannot be read is left out, with a warning of its own.
        Some(number) => number.parse::<u64>().is_ok(),
        None => ServeKey::parse(key).is_some(),
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn listing(key: &str, value: &'static [u8]) -> Listing {
        let entry = Entry {
            key: key.to_owned(),
            value: Bytes::from_static(value),
            mod_revision: 1,
        };
        Listing {
            entries: vec![entry],
            revision: 1,
        }
    }

    /// Says that a message of this length follows, and has none.
    const CUT_OFF: &[u8] = b"\x0a\x7f";

    #[test]
    fn a_record_of_ours_that_cannot_be_read_is_named_with_what_it_risks() {
        for (key, risk) in [
            ("arbiter/incarnation", "given out twice"),
            ("arbiter/owners/checkout@host-1", "a session would end"),
            ("arbiter/nodes/node-1", "a second agent"),
            ("arbiter/cordons/node-1", "somebody has closed"),
            ("arbiter/pools/digits", "its jobs be forgotten"),
            ("arbiter/jobs/digits/train", "started a second time"),
            (
                "arbiter/registrations/digits/host-1",
                "could be given to others",
            ),
            ("serve/losses/node-1", "would be taken to serve"),
        ] {
            let error = check(&listing(key, CUT_OFF)).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}`")), "{error}");
            assert!(error.contains(risk), "{error}");
        }
    }

    #[test]
    fn what_others_wrote_stops_nothing() {
        for key in [
            "arbiter/pools/no name of ours",
            "arbiter/nodes/",
            "arbiter/cordons/no name of ours",
            "arbiter/jobs/digits",
            "arbiter/registrations/digits",
            "arbiter/events/latest",
            "arbiter/secrets",
            "serve/losses/no name of ours",
            "serve/endpoints/digits/first",
        ] {
            check(&listing(key, CUT_OFF)).unwrap();
        }
        check(&listing("arbiter/events/00000000000000000007", CUT_OFF)).unwrap();
        check(&listing("serve/endpoints/digits/1", CUT_OFF)).unwrap();
    }
}
