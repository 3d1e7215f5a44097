//! A watch that goes on at another member where one is lost.

use std::{collections::VecDeque, time::Duration};

use etcd_client::{Error as EtcdError, EventType, WatchOptions, WatchResponse, WatchStream};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    DatedBatch, EtcdStore, MESSAGE_MAX,
    audit::{Audit, Found},
    members::{CALL, pauses},
    revision, signed,
};
use crate::{Change, Error, Revision, Store as _};

/// A stream that lasted this long was a good one: when it ends, the next one is opened without delay.
const GOOD: Duration = Duration::from_secs(10);

/// What a watcher of `prefix` is told after revision `after`.
pub(super) fn follow(
    store: EtcdStore,
    prefix: &str,
    after: Revision,
) -> BoxStream<'static, Result<DatedBatch, Error>> {
    let watch = Watch {
        prefix: prefix.to_owned(),
        after,
        ready: VecDeque::new(),
        stream: None,
        audit: Audit::new(after, store.members.allow_old()),
        store,
    };
    stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        let item = watch.next().await;
        let more = item.is_ok().then_some(watch);
        Some((item, more))
    })
    .boxed()
}

/// One watch over as many connections as it takes.
struct Watch {
    store: EtcdStore,
    prefix: String,
    /// The last revision that was told, or from which it started.
    after: Revision,
    /// Commits that came in one response and are not told yet.
    ready: VecDeque<DatedBatch>,
    stream: Option<WatchStream>,
    audit: Audit,
}

impl Watch {
    async fn next(&mut self) -> Result<DatedBatch, Error> {
        let mut pauses = pauses();
        let mut opened = Instant::now();
        loop {
            if let Some(batch) = self.ready.pop_front() {
                // A stream begins after what was told, but who comes second must not rely on that.
                if batch.revision <= self.after {
                    continue;
                }
                self.after = batch.revision;
                self.audit.told(batch.revision);
                return Ok(batch);
            }
            let Some(stream) = &mut self.stream else {
                self.stream = Some(Box::pin(self.open()).await?);
                opened = Instant::now();
                continue;
            };
            let why = tokio::select! {
                response = stream.message() => match response {
                    Ok(Some(response)) if !response.canceled() => {
                        self.take(&response);
                        continue;
                    }
                    Ok(Some(response)) => {
                        compacted(&response)?;
                        response.cancel_reason().to_owned()
                    }
                    Ok(None) => "etcd ended the stream".to_owned(),
                    Err(error) => super::judge::words(&error),
                },
                () = sleep_until(self.audit.due()) => {
                    self.look_back().await?;
                    continue;
                }
            };
            tracing::debug!(
                prefix = self.prefix,
                after = self.after,
                why,
                "A watch goes on elsewhere"
            );
            self.stream = None;
            if opened.elapsed() < GOOD {
                sleep(pauses.next().unwrap_or(GOOD)).await;
            }
        }
    }

    /// Opens a stream at the first member that has one.
    async fn open(&mut self) -> Result<WatchStream, Error> {
        let key = self.store.key(&self.prefix);
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(signed(self.after.saturating_add(1)));
        let (stream, first) = self
            .store
            .members
            .call(Instant::now() + CALL, |client| {
                begin(client, key.clone(), options.clone())
            })
            .await?;
        compacted(&first)?;
        let now = revision(first.header().map_or(0, |header| header.revision()));
        if now < self.after {
            // A member that lags behind, or a cluster restored from a backup: only a read through
            // the leader can tell.
            let latest = self.store.list("\0").await?.revision;
            if latest < self.after {
                return Err(Error::Compacted { oldest: latest });
            }
        }
        self.take(&first);
        Ok(stream)
    }

    /// One response may hold several commits; one commit is never split over responses.
    fn take(&mut self, response: &WatchResponse) {
        for event in response.events() {
            let Some((entry, created)) = event.kv().and_then(|kv| self.store.dated(kv)) else {
                continue;
            };
            let change = Change {
                key: entry.key,
                value: (event.event_type() == EventType::Put).then_some(entry.value),
            };
            match self.ready.back_mut() {
                Some(batch) if batch.revision == entry.mod_revision => {
                    batch.changes.push((change, created))
                }
                _ => self.ready.push_back(DatedBatch {
                    revision: entry.mod_revision,
                    changes: vec![(change, created)],
                }),
            }
        }
        for batch in &mut self.ready {
            batch.changes.sort_by(|(a, _), (b, _)| a.key.cmp(&b.key));
        }
    }

    /// Compares what was told with what etcd has on record.
    async fn look_back(&mut self) -> Result<(), Error> {
        match self
            .audit
            .look_back(&self.store, &self.prefix, self.after)
            .await
        {
            Found::Same => Ok(()),
            Found::Unknown(why) => {
                tracing::debug!(
                    prefix = self.prefix,
                    why,
                    "A watch could not be compared with the record"
                );
                Ok(())
            }
            Found::Lost { since } => {
                tracing::error!(
                    prefix = self.prefix,
                    since,
                    "etcd has not told a watch of every commit; everything is listed again"
                );
                Err(Error::Compacted { oldest: self.after })
            }
        }
    }
}

/// Opens a stream and waits for the word that it is one.
pub(super) async fn begin(
    client: etcd_client::Client,
    key: String,
    options: WatchOptions,
) -> Result<(WatchStream, WatchResponse), EtcdError> {
    let mut watcher = client.watch_client().max_decoding_message_size(MESSAGE_MAX);
    let mut stream = watcher.watch(key, Some(options)).await?;
    let first = stream.message().await?;
    let first = first.ok_or_else(|| EtcdError::WatchError("etcd ended the stream".to_owned()))?;
    if first.canceled() && first.compact_revision() == 0 {
        // Whether we may watch is decided within the stream, where the client does not look for it.
        let _ = client.refresh_token().await;
        return Err(EtcdError::WatchError(first.cancel_reason().to_owned()));
    }
    Ok((stream, first))
}

/// Events of the compacted revision itself are kept, so one may watch after the one before.
fn compacted(response: &WatchResponse) -> Result<(), Error> {
    match response.compact_revision() {
        1.. => Err(Error::Compacted {
            oldest: revision(response.compact_revision() - 1),
        }),
        _ => Ok(()),
    }
}
