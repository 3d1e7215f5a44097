//! The arbiters, and the one that leads as far as is known: calls go there.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tether_kit::arbiters::Arbiters as Choice;
use tether_proto::NotLeader;
use tether_types::Address;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::upstream::{Dial, Upstream};

/// Between two looks at the health of the one that is asked.
const INTERVAL: Duration = Duration::from_millis(500);

/// How long it may take to say how it is. One that was stopped takes connections and says nothing.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Arbiters {
    chosen: Mutex<Chosen>,
    dial: Dial,
}

#[derive(Debug)]
struct Chosen {
    choice: Choice,
    upstream: Arc<Upstream>,
}

impl Arbiters {
    pub(crate) fn new(known: Vec<Address>, dial: Dial) -> Self {
        let choice = Choice::new(known);
        let upstream = Arc::new(Upstream::new(choice.current().clone(), dial));
        Self {
            chosen: Mutex::new(Chosen { choice, upstream }),
            dial,
        }
    }

    /// The one that is asked.
    pub(crate) fn current(&self) -> Arc<Upstream> {
        Arc::clone(&self.lock().upstream)
    }

    /// How many are asked before a call is given up: each of them, and one that was told of.
    pub(crate) fn attempts(&self) -> usize {
        self.lock().choice.known().len() + 1
    }

    /// This one cannot be reached. True where another is asked from now on.
    pub(crate) fn on_gone(&self, asked: &Arc<Upstream>) -> bool {
        self.change(asked, Choice::on_gone)
    }

    /// This one does not lead. True where another is asked from now on.
    pub(crate) fn on_not_leader(&self, asked: &Arc<Upstream>, said: NotLeader) -> bool {
        tracing::debug!(arbiter = %asked.address(), leader = ?said.leader, "Arbiter does not lead");
        self.change(asked, |choice| {
            choice.on_not_leader(said.leader);
        })
    }

    /// Many calls find out the same: the first changes the choice, the others follow it.
    fn change(&self, asked: &Arc<Upstream>, change: impl FnOnce(&mut Choice)) -> bool {
        let mut chosen = self.lock();
        if !Arc::ptr_eq(asked, &chosen.upstream) {
            return true;
        }
        change(&mut chosen.choice);
        let address = chosen.choice.current().clone();
        let another = address != *asked.address();
        if another {
            tracing::debug!(arbiter = %address, "Trying another arbiter");
            chosen.upstream = Arc::new(Upstream::new(address, self.dial));
        }
        another
    }

    /// Keeps to the one that leads, for ever; of only one there is nothing to choose.
    pub(crate) async fn follow(&self) {
        if self.lock().choice.known().len() == 1 {
            return std::future::pending().await;
        }
        let mut asked = self.current();
        let mut health = client(&asked);
        let mut led = asked.address().clone();
        loop {
            let look = tokio::time::timeout(PATIENCE, health.check(HealthCheckRequest::default()));
            match look.await {
                Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => {
                    self.lock().choice.on_leader();
                    if led != *asked.address() {
                        led = asked.address().clone();
                        tracing::info!(arbiter = %led, "Control calls go to another arbiter");
                    }
                }
                Ok(Ok(_)) => {
                    self.on_not_leader(&asked, NotLeader { leader: None });
                }
                // Somebody who has no such thing as health is to be asked by calls.
                Ok(Err(status)) if status.code() == Code::Unimplemented => {}
                Ok(Err(_)) => {
                    self.on_gone(&asked);
                }
                Err(_) => {
                    // Calls that wait there are told at once rather than never.
                    asked.sever();
                    self.on_gone(&asked);
                }
            }
            tokio::time::sleep(INTERVAL).await;
            let current = self.current();
            if !Arc::ptr_eq(&current, &asked) {
                health = client(&current);
                asked = current;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Chosen> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn client(upstream: &Upstream) -> HealthClient<tonic::transport::Channel> {
    HealthClient::new(tether_kit::channel::connect(upstream.address()))
}
