//! Whether the worker serves: asked again and again, and believed after a few answers.

use std::time::Duration;

use tether_types::Address;
use tokio::time::{sleep, timeout};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::cli;

/// Asks a worker.
#[derive(Debug)]
pub(super) struct Checked {
    address: Address,
    how: How,
    interval: Duration,
}

#[derive(Debug)]
enum How {
    Grpc(HealthClient<Channel>),
    Tcp,
    Believe,
}

impl Checked {
    pub(super) fn new(check: cli::Check, address: &Address, interval: Duration) -> Self {
        let how = match check {
            cli::Check::Grpc => How::Grpc(HealthClient::new(tether_kit::channel::connect(address))),
            cli::Check::Tcp => How::Tcp,
            cli::Check::None => How::Believe,
        };
        Self {
            address: address.clone(),
            how,
            interval,
        }
    }

    /// Asks once.
    pub(super) async fn ask(&self) -> Result<(), String> {
        let asked = timeout(self.interval, self.once()).await;
        let late = |_| {
            let within = humantime::format_duration(self.interval);
            Err(format!("no answer of `{}` within {within}", self.address))
        };
        asked.unwrap_or_else(late)
    }

    /// The answer to the next question, an interval from here; never where nothing is asked.
    pub(super) async fn next(&self) -> Result<(), String> {
        if matches!(self.how, How::Believe) {
            return std::future::pending().await;
        }
        sleep(self.interval).await;
        self.ask().await
    }

    async fn once(&self) -> Result<(), String> {
        let address = &self.address;
        match &self.how {
            How::Grpc(client) => {
                let asked = client.clone().check(HealthCheckRequest::default()).await;
                match asked.map(|answer| answer.into_inner().status()) {
                    Ok(ServingStatus::Serving) => Ok(()),
                    Ok(status) => Err(format!("`{address}` says {}", status.as_str_name())),
                    Err(status) if status.code() == Code::Unimplemented => Err(format!(
                        "`{address}` has no grpc.health.v1: use `--check tcp`"
                    )),
                    Err(status) => Err(format!("`{address}`: {}", status.message())),
                }
            }
            How::Tcp => match tether_kit::channel::dial(address).await {
                Ok(_) => Ok(()),
                Err(error) => Err(format!("`{address}`: {error}")),
            },
            How::Believe => Ok(()),
        }
    }
}

/// What is believed of a worker by the answers so far. Pure.
#[derive(Debug)]
pub(super) struct Pulse {
    /// So many failures in a row are believed.
    limit: u32,
    failed: u32,
    serves: bool,
}

impl Pulse {
    /// Of one that serves.
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit,
            failed: 0,
            serves: true,
        }
    }

    /// Whether it serves, where that is news.
    pub(super) fn on_answer(&mut self, good: bool) -> Option<bool> {
        self.failed = match good {
            true => 0,
            false => self.failed.saturating_add(1),
        };
        let serves = good || (self.serves && self.failed < self.limit);
        let before = std::mem::replace(&mut self.serves, serves);
        (before != serves).then_some(serves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bad_answer_is_forgiven_and_one_good_answer_is_believed() {
        let mut pulse = Pulse::new(2);
        let answers = [true, false, true, false, false, false, true, false];
        let news: Vec<_> = answers.map(|good| pulse.on_answer(good)).to_vec();

        let expected = [None, None, None, None, Some(false), None, Some(true), None];
        assert_eq!(news, expected);
    }
}
