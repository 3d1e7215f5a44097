//! What keys say of who serves: keys that somebody else writes, and those of another cluster of Tether. Pure.

use std::collections::BTreeMap;

use prost::Message as _;
use tether_proto::{common::Endpoint, discovery::NodeLoss};
use tether_store::{
    Change, DatedBatch, DatedListing, Revision,
    keys::{SERVE, ServeKey},
};
use tether_types::{Address, PoolName, Slot};

use crate::{Answer, TARGETS_MAX, Traits, answer::check, entry};

/// A value of more bytes than this is no address.
const VALUE_MAX: usize = 4096;

/// What is known of one kind of keys.
pub(super) trait Keys: Send {
    /// What is listed, one after the other; each is handed to [`Keys::take`].
    fn listed(&self) -> Vec<String>;

    /// What is watched after the first listing.
    fn prefix(&self) -> &'static str;

    /// Takes in a listing.
    fn take(&mut self, listing: DatedListing);

    /// Takes in a commit. One that a listing has seen changes nothing.
    fn change(&mut self, batch: DatedBatch);

    /// Who serves.
    ///
    /// # Errors
    /// Where it cannot be believed.
    fn answer(&self) -> Result<Answer, String>;
}

/// An entry, or why it is none.
type Read = Result<(Address, Traits), String>;

/// Keys that somebody else writes, each with the revision that made it.
#[derive(Debug, Default)]
pub(super) struct Foreign(BTreeMap<String, (Revision, Read)>);

impl Foreign {
    fn set(&mut self, key: String, value: &[u8], created: Revision) {
        let read =
            read(value, created).map_err(|why| format!("the key `{}`: {why}", entry::shown(&key)));
        self.0.insert(key, (created, read));
    }
}

impl Keys for Foreign {
    fn listed(&self) -> Vec<String> {
        vec![String::new()]
    }

    fn prefix(&self) -> &'static str {
        ""
    }

    fn take(&mut self, listing: DatedListing) {
        for (entry, created) in listing.entries {
            self.set(entry.key, &entry.value, created);
        }
    }

    fn change(&mut self, batch: DatedBatch) {
        for (Change { key, value }, created) in batch.changes {
            match value {
                // One more than can be believed is enough to know it.
                Some(value) if self.0.len() <= TARGETS_MAX || self.0.contains_key(&key) => {
                    self.set(key, &value, created);
                }
                Some(_) => {}
                None => drop(self.0.remove(&key)),
            }
        }
    }

    fn answer(&self) -> Result<Answer, String> {
        // Of two keys for one address the younger one says who serves there: the older one's worker has lost it, and
        // its key is not gone yet.
        let mut by_age: Vec<_> = self.0.values().collect();
        by_age.sort_by_key(|(created, _)| *created);
        gather(
            self.0.len(),
            by_age.into_iter().map(|(_, read)| read.clone()),
        )
    }
}

fn read(value: &[u8], created: Revision) -> Read {
    if value.len() > VALUE_MAX {
        return Err(format!("its value has more than {VALUE_MAX} bytes"));
    }
    let text = std::str::from_utf8(value).map_err(|_| "its value is no text".to_owned())?;
    let (address, mut traits) = entry::read(text)?;
    if traits.identity.is_empty() {
        traits.identity = created.to_string();
    }
    check(&address, &traits)?;
    Ok((address, traits))
}

fn gather(count: usize, entries: impl Iterator<Item = Read>) -> Result<Answer, String> {
    if count > TARGETS_MAX {
        return Err(format!(
            "it names more than {TARGETS_MAX} addresses, which is taken for a mistake"
        ));
    }
    let mut answer = Answer::default();
    for entry in entries {
        answer.take_or_leave(entry)?;
    }
    answer.settled()
}

/// The keys of a pool of another cluster of Tether. An endpoint on a node whose lease was lost is over, although its
/// key is there.
#[derive(Debug)]
pub(super) struct Native {
    pool: PoolName,
    endpoints: BTreeMap<Slot, Served>,
    /// Incarnations up to which are over, by node.
    losses: BTreeMap<String, u64>,
    /// The listings are newer than commits up to here.
    listed: Revision,
}

#[derive(Debug)]
struct Served {
    node: String,
    incarnation: u64,
    read: Read,
}

impl Native {
    pub(super) fn new(pool: &PoolName) -> Self {
        Self {
            pool: pool.clone(),
            endpoints: BTreeMap::new(),
            losses: BTreeMap::new(),
            listed: 0,
        }
    }

    fn set(&mut self, key: &str, value: Option<&[u8]>) {
        match (ServeKey::parse(key), value) {
            (Some(ServeKey::Endpoint(pool, slot)), value) if pool == self.pool => match value {
                Some(value) => drop(self.endpoints.insert(slot, served(slot, value))),
                None => drop(self.endpoints.remove(&slot)),
            },
            (Some(ServeKey::Loss(node)), value) => {
                // One that cannot be read ends nobody: its endpoints are deleted soon.
                let loss = value.and_then(|value| NodeLoss::decode(value).ok());
                self.losses.remove(node.as_str());
                self.losses
                    .extend(loss.map(|loss| (node.to_string(), loss.up_to_incarnation)));
            }
            _ => {}
        }
    }
}

impl Keys for Native {
    fn listed(&self) -> Vec<String> {
        // Losses first: an endpoint that comes after them is told by the watch.
        vec![
            format!("{SERVE}losses/"),
            format!("{SERVE}endpoints/{}/", self.pool),
        ]
    }

    fn prefix(&self) -> &'static str {
        SERVE
    }

    fn take(&mut self, listing: DatedListing) {
        self.listed = listing.revision;
        for (entry, _) in listing.entries {
            self.set(&entry.key, Some(&entry.value));
        }
    }

    fn change(&mut self, batch: DatedBatch) {
        for (change, _) in batch.changes {
            let is_loss = change.key.starts_with(&format!("{SERVE}losses/"));
            if is_loss || batch.revision > self.listed {
                self.set(&change.key, change.value.as_deref());
            }
        }
    }

    fn answer(&self) -> Result<Answer, String> {
        let is_over = |served: &&Served| {
            let lost = self.losses.get(&served.node);
            lost.is_some_and(|up_to| served.incarnation <= *up_to)
        };
        let serving = self.endpoints.values().filter(|served| !is_over(served));
        gather(
            self.endpoints.len(),
            serving.map(|served| served.read.clone()),
        )
    }
}

fn served(slot: Slot, value: &[u8]) -> Served {
    let endpoint = match Endpoint::decode(value) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            return Served {
                node: String::new(),
                incarnation: 0,
                read: Err(format!(
                    "slot {slot}: {error}; does a newer Tether write there?"
                )),
            };
        }
    };
    let incarnation = endpoint
        .worker
        .as_ref()
        .map_or(0, |worker| worker.incarnation);
    let known = Traits::default();
    let traits = Traits {
        zone: endpoint.zone,
        weight: endpoint.weight.max(1),
        capacity: endpoint.capacity,
        draining: endpoint.draining,
        protocol: if endpoint.protocol.is_empty() {
            known.protocol
        } else {
            endpoint.protocol
        },
        identity: format!("{slot}/{incarnation}"),
    };
    let read = match endpoint.address.parse() {
        Ok(Address::Unix(_)) => Err(format!("slot {slot} serves at a socket of its own machine")),
        Ok(address) => Ok((address, traits)),
        Err(error) => Err(format!("slot {slot}: {error}")),
    };
    Served {
        node: endpoint.node,
        incarnation,
        read,
    }
}

#[cfg(test)]
mod tests {
    use tether_proto::common::WorkerRef;
    use tether_store::{Entry, keys as store};
    use tether_types::NodeName;

    use super::*;

    fn change(key: &str, value: Option<&[u8]>) -> (Change, Revision) {
        let value = value.map(|value| value.to_vec().into());
        (
            Change {
                key: key.to_owned(),
                value,
            },
            5,
        )
    }

    fn named(keys: &dyn Keys) -> String {
        let answer = keys.answer().unwrap();
        let named = answer
            .targets
            .iter()
            .map(|(address, traits)| format!("{address}#{}", traits.identity));
        named.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_key_that_is_written_again_is_another_worker_and_one_that_cannot_be_read_is_named() {
        let mut keys = Foreign::default();
        let put = |key: &str, value: &[u8], created| DatedBatch {
            revision: created,
            changes: vec![(change(key, Some(value)).0, created)],
        };
        keys.change(put("a", b"10.0.0.1:1", 5));
        keys.change(put("b", br#"{"address":"10.0.0.2:1","identity":"own"}"#, 6));
        assert_eq!(named(&keys), "10.0.0.1:1#5 10.0.0.2:1#own");
        keys.change(put("a", b"10.0.0.1:1", 7));
        keys.change(put("0", b"10.0.0.1:1", 8));
        assert_eq!(
            named(&keys),
            "10.0.0.1:1#8 10.0.0.2:1#own",
            "the younger key of one address counts, wherever it stands"
        );
        keys.change(DatedBatch {
            revision: 8,
            changes: vec![change("0", None)],
        });
        keys.change(put("c", &[b'1'; VALUE_MAX + 1], 8));
        keys.change(put("d", &[0xff], 8));
        assert_eq!(named(&keys), "10.0.0.1:1#7 10.0.0.2:1#own");
        let answer = keys.answer().unwrap();
        assert_eq!(answer.left_out, 2);
        assert!(
            answer.reasons[0].contains("`c`") && answer.reasons[1].contains("no text"),
            "{answer:?}"
        );

        for key in 0..2 * TARGETS_MAX {
            keys.change(put(&key.to_string(), b"10.0.0.1:1", 9));
        }
        assert!(
            keys.answer().is_err() && keys.0.len() == TARGETS_MAX + 1,
            "memory is bounded"
        );
    }

    #[test]
    fn an_endpoint_of_a_lost_node_is_over_until_the_node_is_back() {
        let pool = PoolName::new("p").unwrap();
        let endpoint = |slot, incarnation, node: &str| Endpoint {
            worker: Some(WorkerRef {
                pool: "p".to_owned(),
                slot,
                incarnation,
            }),
            address: format!("10.0.0.{slot}:1"),
            node: node.to_owned(),
            ..Endpoint::default()
        };
        let mut keys = Native::new(&pool);
        let listing = [(1, "n"), (2, "n"), (3, "m")].map(|(slot, node)| {
            let value = endpoint(slot, 10 + u64::from(slot), node)
                .encode_to_vec()
                .into();
            let key = store::endpoint(&pool, slot);
            (
                Entry {
                    key,
                    value,
                    mod_revision: 4,
                },
                4,
            )
        });
        keys.take(DatedListing {
            entries: listing.to_vec(),
            revision: 4,
        });
        let all = "10.0.0.1:1#1/11 10.0.0.2:1#2/12 10.0.0.3:1#3/13";
        assert_eq!(named(&keys), all);

        let lost = NodeLoss {
            up_to_incarnation: 11,
            ..NodeLoss::default()
        }
        .encode_to_vec();
        let loss = store::loss(&NodeName::new("n").unwrap());
        let other = store::endpoint(&PoolName::new("other").unwrap(), 9);
        let batch = |revision, changes: &[(Change, Revision)]| DatedBatch {
            revision,
            changes: changes.to_vec(),
        };
        keys.change(batch(
            5,
            &[change(&loss, Some(&lost)), change(&other, Some(b"x"))],
        ));
        assert_eq!(named(&keys), "10.0.0.2:1#2/12 10.0.0.3:1#3/13");
        // What the listing has seen already is not taken back.
        keys.change(batch(3, &[change(&store::endpoint(&pool, 3), None)]));
        keys.change(batch(
            6,
            &[
                change(&loss, None),
                change(&store::endpoint(&pool, 2), None),
            ],
        ));
        assert_eq!(named(&keys), "10.0.0.1:1#1/11 10.0.0.3:1#3/13");

        let socket = Endpoint {
            address: "unix:/run/a".to_owned(),
            ..endpoint(3, 9, "m")
        };
        keys.change(batch(
            7,
            &[change(
                &store::endpoint(&pool, 3),
                Some(&socket.encode_to_vec()),
            )],
        ));
        assert_eq!(
            (keys.answer().unwrap().left_out, named(&keys).as_str()),
            (1, "10.0.0.1:1#1/11")
        );
    }
}
