//! The way to the arbiter for what workers of this node say of their jobs: they need no address but their agent's.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tether_kit::{
    arbiters::{Arbiters, Next},
    channel::connect,
};
use tether_proto::{NotLeader, job::job_service_client::JobServiceClient, reason_of};
use tether_types::Address;
use tokio::time::timeout;
use tonic::{Code, Status, transport::Channel};

/// An arbiter that has not answered by then is stopped, or cut off.
const ANSWER: Duration = Duration::from_secs(5);

/// So often is one call made: with what a standby says of the leader, the second reaches it.
const ATTEMPTS: usize = 3;

/// A client of the arbiter's.
pub(crate) type Client = JobServiceClient<Channel>;

#[derive(Debug)]
struct Way {
    arbiters: Arbiters,
    channel: Option<Channel>,
}

/// Calls to the arbiter that leads.
#[derive(Debug)]
pub(crate) struct Upstream(Mutex<Way>);

impl Upstream {
    pub(crate) fn new(arbiters: Arbiters) -> Self {
        Self(Mutex::new(Way {
            arbiters,
            channel: None,
        }))
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call that can be made again.
    pub(crate) async fn ask<T, F>(&self, call: impl Fn(Client) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut attempt = 1;
        loop {
            let (asked, client) = self.current();
            let answer = timeout(ANSWER, call(client)).await;
            let status = match answer {
                Ok(Ok(answer)) => {
                    self.way().arbiters.on_leader();
                    return Ok(answer);
                }
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable(format!("the arbiter at `{asked}` does not answer")),
            };
            if !self.turns_from(&asked, &status) || attempt == ATTEMPTS {
                return Err(status);
            }
            attempt += 1;
        }
    }

    fn current(&self) -> (Address, Client) {
        let mut way = self.way();
        let address = way.arbiters.current().clone();
        let channel = way.channel.get_or_insert_with(|| connect(&address));
        (address, JobServiceClient::new(channel.clone()))
    }

    /// Whether another one is to be asked at once.
    fn turns_from(&self, asked: &Address, status: &Status) -> bool {
        let not_leader = NotLeader::of(status);
        if not_leader.is_none()
            && (status.code() != Code::Unavailable || reason_of(status).is_some())
        {
            return false;
        }
        let mut way = self.way();
        if way.arbiters.current() != asked {
            // Somebody else has found out already.
            return true;
        }
        let next = match not_leader {
            Some(NotLeader { leader }) => way.arbiters.on_not_leader(leader),
            None => {
                way.arbiters.on_gone();
                Next::AskLeader
            }
        };
        way.channel = None;
        next == Next::AskLeader && way.arbiters.current() != asked
    }
}
