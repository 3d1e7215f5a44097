//! What happens to a worker, event by event, however often the gateway is away in between.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use tether_client::{Client, Problem};
use tether_proto::worker::{Event, WatchEventsRequest, WatchEventsResponse};
use tonic::{Code, Status, Streaming};

/// The events of one pool, from those of its past on.
#[derive(Debug)]
pub(crate) struct Story {
    client: Client,
    pool: String,
    /// The last event heard of.
    revision: u64,
    events: Option<Streaming<WatchEventsResponse>>,
}

impl Story {
    /// What happens from now on.
    ///
    /// # Errors
    /// When the past cannot be read.
    pub(crate) async fn from_here(client: &Client, pool: &str) -> Result<Self, Problem> {
        let mut story = Self {
            client: client.clone(),
            pool: pool.to_owned(),
            revision: 0,
            events: None,
        };
        let mut past = story.open(false).await?;
        while let Some(answer) = past.message().await? {
            story.revision = answer.event.map_or(story.revision, |event| event.revision);
        }
        Ok(story)
    }

    async fn open(&self, follow: bool) -> Result<Streaming<WatchEventsResponse>, Status> {
        let request = WatchEventsRequest {
            after_revision: self.revision,
            follow,
            pool: self.pool.clone(),
        };
        let opened = self.client.workers().watch_events(request).await?;
        Ok(opened.into_inner())
    }

    /// The next event. A stream that breaks is opened again after the last one heard, for as long as it takes.
    /// Cancel-safe.
    pub(crate) async fn next(&mut self) -> Event {
        let mut pauses = pauses().build();
        loop {
            if self.events.is_none() {
                match self.open(true).await {
                    Ok(events) => self.events = Some(events),
                    // The store is another one, whose numbers begin anew.
                    Err(status) if status.code() == Code::OutOfRange => self.revision = 0,
                    Err(_) => {}
                }
            }
            if let Some(events) = &mut self.events {
                match events.message().await {
                    Ok(Some(WatchEventsResponse { event: Some(event) })) => {
                        self.revision = event.revision;
                        return event;
                    }
                    Ok(Some(_)) => continue,
                    Ok(None) | Err(_) => self.events = None,
                }
            }
            tokio::time::sleep(pauses.next().unwrap_or_default()).await;
        }
    }
}

/// How long to wait before each further try.
pub(crate) fn pauses() -> ExponentialBuilder {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(20))
        .with_max_delay(Duration::from_secs(1))
        .without_max_times()
        .with_jitter()
}
