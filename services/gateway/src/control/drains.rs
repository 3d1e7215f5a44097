//! A drain that was ordered, and how far it is.

use std::time::Duration;

use futures::{Stream, stream};
use tether_endpoints::{Order, Scope};
use tether_proto::gateway::{DrainRequest, DrainResponse};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tonic::{Request, Status};

use super::Control;

/// Between two words.
const PACE: Duration = Duration::from_millis(100);

/// Somebody who waits for it.
struct Waiting {
    control: Control,
    scope: Scope,
    until: Instant,
    moves: watch::Receiver<u64>,
    told: Option<DrainResponse>,
}

impl Control {
    /// Orders a drain, and tells how far it is until it is done.
    pub(super) fn order_drain(
        &self,
        request: &Request<DrainRequest>,
    ) -> Result<impl Stream<Item = DrainResponse> + Send + use<>, Status> {
        let asked = request.get_ref();
        let scope = self.scope(asked.scope.as_ref(), true)?;
        self.once(request, asked.order.as_ref(), |given| {
            self.give(given, Order::Drain(scope.clone()), None);
            // What is told of it later differs each time.
            Ok(DrainResponse::default())
        })?;
        let wait = Duration::from_millis(asked.wait_ms);
        let waiting = Waiting {
            control: self.clone(),
            scope,
            until: Instant::now()
                .checked_add(wait)
                .unwrap_or_else(|| Instant::now() + super::LONGEST),
            moves: self.0.forwarder.directory.moves.subscribe(),
            told: None,
        };
        Ok(stream::unfold(waiting, async |mut waiting| {
            let word = waiting.next().await?;
            Some((word, waiting))
        }))
    }
}

impl Waiting {
    async fn next(&mut self) -> Option<DrainResponse> {
        if let Some(told) = &self.told {
            if told.done {
                return None;
            }
            sleep(PACE).await;
        }
        loop {
            self.moves.borrow_and_update();
            let word = self.look();
            if word.done || self.told.as_ref() != Some(&word) {
                self.told = Some(word);
                return Some(word);
            }
            tokio::select! {
                // Fails only without a directory, and that is held here.
                _ = self.moves.changed() => {}
                () = sleep_until(self.until) => {}
            }
        }
    }

    fn look(&self) -> DrainResponse {
        let known = self.control.0.forwarder.directory.lock();
        let workers = known.endpoints.within(&self.scope).count();
        let under_way = known.endpoints.under_way(&self.scope);
        // One whose worker has died is over, too.
        let undone = workers > 0 && !known.endpoints.stands(&Order::Drain(self.scope.clone()));
        DrainResponse {
            workers: u32::try_from(workers).unwrap_or(u32::MAX),
            under_way,
            done: under_way == 0 || undone || Instant::now() >= self.until,
            undone,
        }
    }
}
