//! How a commit that may be sent several times is done once.
//!
//! A request without an answer may have been carried out, may never be, or may lie in the buffers of a member
//! that hangs and be carried out in a minute. Each store therefore keeps one key of its own, its *receipt*:
//! every transaction puts its number there, on condition that nobody has touched the receipt since the
//! transaction before. Sent twice, the second one finds the receipt changed and does nothing; whose number it
//! bears says which transaction was done, and when. So it may be sent to every member, until one answers.
//!
//! ```text
//! receipt 41, revision 900     commit 42: if receipt is of 900 and the guards hold: writes, receipt = 42
//!                                         else: read receipt and guards
//! ```

use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, GetResponse, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse, TxnResponse,
};
use tokio::time::Instant;

use super::{members::Members, signed};
use crate::{Error, Revision};

/// Where receipts are, below the prefix of the store: no key of a caller starts with a zero byte.
const RECEIPTS: &str = "\0receipts/";

/// How many receipts of stores that may be gone are left alone. A store whose receipt was removed
/// makes a new one.
const KEPT: usize = 64;

#[derive(Debug)]
pub(super) struct Receipt {
    /// What is put before [`RECEIPTS`].
    prefix: String,
    key: String,
    /// The number of the last transaction that was sent.
    number: u64,
    /// The revision that the receipt is of, as far as we know; none before it is made.
    at: Option<Revision>,
}

/// What became of a transaction.
pub(super) enum Outcome {
    /// It was done, in this revision.
    Done(Revision),
    /// It was not done and will not be: its guards do not hold. This is what was read instead.
    NotDone(Vec<TxnOpResponse>),
}

/// What the receipt says after a transaction found that not all of its conditions hold.
enum Reading {
    /// The transaction was done, in this revision.
    Done(Revision),
    /// It was not, and the receipt was as expected: a guard did not hold.
    AsExpected,
    /// One before it, which was given up, was done after all.
    Moved(Revision),
    /// Somebody has removed the receipt.
    Gone,
}

impl Receipt {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.to_owned(),
            key: format!("{prefix}{RECEIPTS}{:032x}", fastrand::u128(..)),
            number: 0,
            at: None,
        }
    }

    /// Does a transaction once, whatever becomes of the members under way.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when no member has an answer until `deadline`: it may have been done, and may
    /// still be until a later one is answered.
    pub(super) async fn commit(
        &mut self,
        members: &Members,
        deadline: Instant,
        (guards, writes, reads): (Vec<Compare>, Vec<TxnOp>, Vec<TxnOp>),
    ) -> Result<Outcome, Error> {
        self.number += 1;
        // Whether a request was sent whose answer we do not have.
        let mut unclear = false;
        loop {
            let at = match self.at {
                Some(at) => at,
                None => self.begin(members, deadline).await?,
            };
            let mut when = guards.clone();
            when.push(self.untouched(at));
            let mut then = writes.clone();
            then.push(self.put());
            let mut otherwise = vec![TxnOp::get(self.key.clone(), None)];
            otherwise.extend(reads.iter().cloned());
            let request = Txn::new().when(when).and_then(then).or_else(otherwise);

            let answer = self.send(members, deadline, request, &mut unclear).await?;
            if answer.succeeded() {
                return Ok(Outcome::Done(self.stands(revision_of(&answer))));
            }
            let mut read = answer.op_responses();
            let receipt = if read.is_empty() {
                None
            } else {
                Some(read.remove(0))
            };
            match self.read(receipt.as_ref(), at, self.number) {
                Reading::Done(revision) => return Ok(Outcome::Done(self.stands(revision))),
                Reading::AsExpected if !unclear => return Ok(Outcome::NotDone(read)),
                Reading::AsExpected => {
                    return match self.seal(members, deadline, at).await? {
                        Some(revision) => Ok(Outcome::Done(revision)),
                        None => Ok(Outcome::NotDone(read)),
                    };
                }
                Reading::Moved(revision) => self.at = Some(revision),
                Reading::Gone => {
                    self.at = None;
                    if unclear {
                        return Err(members.unavailable(
                            "the receipt of this store was removed while a member did not answer",
                        ));
                    }
                }
            }
        }
    }

    /// Makes sure that no request for the last transaction, whose guards do not hold, is carried out later,
    /// when they may: puts another number over it. Says in which revision it was done if it was.
    async fn seal(
        &mut self,
        members: &Members,
        deadline: Instant,
        at: Revision,
    ) -> Result<Option<Revision>, Error> {
        let sealed = self.number;
        self.number += 1;
        let request = Txn::new()
            .when([self.untouched(at)])
            .and_then([self.put()])
            .or_else([TxnOp::get(self.key.clone(), None)]);
        let answer = self.send(members, deadline, request, &mut false).await?;
        if answer.succeeded() {
            self.stands(revision_of(&answer));
            return Ok(None);
        }
        let read = answer.op_responses();
        if let Reading::Done(revision) = self.read(read.first(), at, sealed) {
            return Ok(Some(self.stands(revision)));
        }
        // Either it bears our number, as one of several requests was carried out, or it is gone.
        self.at = kv_of(read.first()).map(|(revision, _)| revision);
        Ok(None)
    }

    /// Makes the receipt.
    async fn begin(&mut self, members: &Members, deadline: Instant) -> Result<Revision, Error> {
        let absent = Compare::create_revision(self.key.clone(), CompareOp::Equal, 0);
        let request = Txn::new()
            .when([absent])
            .and_then([TxnOp::put(self.key.clone(), "0", None)])
            .or_else([TxnOp::get(self.key.clone(), None)]);
        let answer = self.send(members, deadline, request, &mut false).await?;
        let made = match answer.succeeded() {
            true => revision_of(&answer),
            false => kv_of(answer.op_responses().first()).map_or(0, |(revision, _)| revision),
        };
        self.sweep(members, deadline).await;
        Ok(self.stands(made))
    }

    /// Removes the oldest receipts where there are many, so that their number does not grow with each start.
    async fn sweep(&self, members: &Members, deadline: Instant) {
        let all = format!("{}{RECEIPTS}", self.prefix);
        let options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_sort(SortTarget::Mod, SortOrder::Ascend);
        let found = members
            .call(deadline, |client| {
                let (all, options) = (all.clone(), options.clone());
                async move { client.kv_client().get(all, Some(options)).await }
            })
            .await;
        let found = found.as_ref().map(GetResponse::kvs).unwrap_or_default();
        let old = &found[..found.len().saturating_sub(KEPT)];
        // They are in nobody's way, so it does not matter when one cannot be removed.
        for key in old.iter().take(KEPT).map(|kv| kv.key().to_vec()) {
            let removed = members.call(deadline, |client| {
                let key = key.clone();
                async move { client.kv_client().delete(key, None::<DeleteOptions>).await }
            });
            if removed.await.is_err() {
                return;
            }
        }
    }

    async fn send(
        &self,
        members: &Members,
        deadline: Instant,
        request: Txn,
        unclear: &mut bool,
    ) -> Result<TxnResponse, Error> {
        let mut sent = 0u32;
        let answer = members
            .call(deadline, |client| {
                sent += 1;
                let request = request.clone();
                async move { client.kv_client().txn(request).await }
            })
            .await;
        *unclear |= sent > 1;
        answer
    }

    fn untouched(&self, at: Revision) -> Compare {
        Compare::mod_revision(self.key.clone(), CompareOp::Equal, signed(at))
    }

    fn put(&self) -> TxnOp {
        TxnOp::put(self.key.clone(), self.number.to_string(), None)
    }

    fn stands(&mut self, at: Revision) -> Revision {
        self.at = Some(at);
        at
    }

    fn read(&self, found: Option<&TxnOpResponse>, at: Revision, number: u64) -> Reading {
        match kv_of(found) {
            Some((revision, found)) if found == number => Reading::Done(revision),
            Some((revision, _)) if revision == at => Reading::AsExpected,
            // Made anew after it was removed, it says nothing of what was before.
            Some((_, 0)) | None => Reading::Gone,
            Some((revision, _)) => Reading::Moved(revision),
        }
    }
}

fn revision_of(answer: &TxnResponse) -> Revision {
    super::revision(answer.header().map_or(0, |header| header.revision()))
}

/// The revision and the number of the receipt that was read.
fn kv_of(read: Option<&TxnOpResponse>) -> Option<(Revision, u64)> {
    let Some(TxnOpResponse::Get(get)) = read else {
        return None;
    };
    let kv = get.kvs().first()?;
    let number = kv.value_str().ok()?.parse().ok()?;
    Some((super::revision(kv.mod_revision()), number))
}
