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
        // A list of jobs is as long as there are jobs.
        let client = JobServiceClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        (address, client)
    }

    /// Whether another one is to be asked at once.
    fn turns_from(&self, asked: &Address, status: &Status) -> bool {
        let not_leader = NotLeader::of(status);
        // Without a reason it is the connection that says so, and not the arbiter.
        let broken = [Code::Unavailable, Code::Cancelled, Code::Internal];
        let is_broken = broken.contains(&status.code()) && reason_of(status).is_none();
        if not_leader.is_none() && !is_broken {
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

#[cfg(test)]
mod tests {
    use tether_proto::Failure;
    use tether_types::Reason;

    use super::*;

    /// What becomes of a call to the first of two, and who was asked on the way.
    async fn ask(first: impl Fn() -> Status) -> (Result<(), Status>, Vec<String>) {
        let known = ["a:1", "b:1"].map(|it| it.parse().unwrap());
        let upstream = Upstream::new(Arbiters::new(known.to_vec()));
        let asked = Mutex::new(Vec::new());
        let answer = upstream
            .ask(|_| {
                let at = upstream.current().0.to_string();
                asked.lock().unwrap().push(at.clone());
                let refused = (at == "a:1").then(&first);
                async { refused.map_or(Ok(()), Err) }
            })
            .await;
        (answer, asked.into_inner().unwrap())
    }

    #[tokio::test]
    async fn a_call_goes_on_to_the_arbiter_that_leads() {
        let leader: Address = "b:1".parse().unwrap();
        let standby = || {
            Failure::from(NotLeader {
                leader: Some(leader.clone()),
            })
            .into()
        };
        let gone = || Status::unavailable("connection refused");
        let closed = || Status::cancelled("operation was canceled");
        let broken = || Status::internal("h2 protocol error");

        for first in [&standby as &dyn Fn() -> Status, &gone, &closed, &broken] {
            let (answer, asked) = ask(first).await;
            assert!(answer.is_ok(), "{asked:?}");
            assert_eq!(asked, ["a:1", "b:1"]);
        }
    }

    #[tokio::test]
    async fn what_the_leader_refuses_is_refused() {
        let (answer, asked) = ask(|| Failure::new(Reason::LeaseFenced, "another's").into()).await;

        assert_eq!(reason_of(&answer.unwrap_err()), Some(Reason::LeaseFenced));
        assert_eq!(asked, ["a:1"]);
    }
}
