//! Calls that go on at a steady pace, and what became of each.

use std::time::Duration;

use tether_client::Client;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tonic::{Request, Status};

use crate::{DEADLINE, digits::PredictRequest, digits_client};

/// Between two calls.
const PACE: Duration = Duration::from_millis(100);

/// Longer than any call takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// Unary calls through the gateway to one pool, one after the other.
#[derive(Debug)]
pub struct Steady {
    /// How many were made.
    made: watch::Receiver<u64>,
    calling: JoinHandle<Tally>,
}

/// What became of them.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many were made.
    pub made: u64,
    /// Those that failed, and when.
    pub failed: Vec<(Instant, Status)>,
    /// The longest that one of them took.
    pub slowest: Duration,
}

impl Steady {
    /// Begins to call.
    pub fn calls(client: &Client, pool: &str) -> Self {
        let (counts, made) = watch::channel(0);
        let mut client = digits_client(client.channel(), pool);
        let calling = tokio::spawn(async move {
            let mut tally = Tally::default();
            let mut pace = interval(PACE);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while counts.send(tally.made).is_ok() {
                pace.tick().await;
                let mut request = Request::new(PredictRequest {
                    pixels: vec![0; 64],
                });
                request.set_timeout(PATIENCE);
                let sent = Instant::now();
                let answer = client.predict(request).await;
                tally.made += 1;
                tally.slowest = tally.slowest.max(sent.elapsed());
                if let Err(status) = answer {
                    tally.failed.push((Instant::now(), status));
                }
            }
            tally
        });
        Self { made, calling }
    }

    /// Waits until so many more were made.
    ///
    /// # Panics
    /// When they are not.
    pub async fn go_on(&mut self, count: u64) {
        let wanted = *self.made.borrow() + count;
        let made = self.made.wait_for(|made| *made >= wanted);
        let made = timeout(DEADLINE, made).await;
        made.expect("calls go on")
            .expect("they are made until they are ended");
    }

    /// Ends them after the one under way.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub async fn end(self) -> Tally {
        drop(self.made);
        self.calling.await.expect("it goes on until it is ended")
    }
}
