//! What a program asks of its gateway: nothing of it takes for ever.

use std::time::Duration;

use backon::Retryable as _;
use tether_client::{Client, Problem, Session, SessionOptions};
use tether_proto::{
    pool::{ApplyPoolRequest, DeletePoolRequest},
    worker::{ListWorkersRequest, Worker},
};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::{Code, Status};

use super::Owner;
use crate::{pool, story::pauses};

/// How long a gateway may take to come up beside the BEAM.
const GATEWAY_WAIT: Duration = Duration::from_secs(5);

/// How long each answer may take: an arbiter may have to come back first, or be busy with the start of hundreds.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// The answer, where it comes in time.
pub(super) async fn within<T, E: From<Status>>(
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let late = || Status::deadline_exceeded(format!("no answer came within {ANSWER_WAIT:?}"));
    let answered = timeout(ANSWER_WAIT, answer).await;
    answered.unwrap_or_else(|_| Err(late().into()))
}

impl Owner<'_> {
    pub(super) async fn worker(&self, pool: &str) -> Result<Option<Worker>, Problem> {
        let request = ListWorkersRequest {
            pool: pool.to_owned(),
        };
        match within(self.client.workers().list_workers(request)).await {
            Err(status) if status.code() == Code::NotFound => Ok(None),
            answer => Ok(answer?.into_inner().workers.into_iter().next()),
        }
    }

    /// The worker, as it stands at that time.
    pub(super) async fn look(&self, pool: &str, at: Instant) -> Result<Option<Worker>, Problem> {
        sleep_until(at).await;
        self.worker(pool).await
    }

    pub(super) async fn apply(&self) -> anyhow::Result<()> {
        let request = ApplyPoolRequest {
            pool: Some(pool::spec(&self.berth, self.request)?),
            owner: self.session.owner().to_string(),
            epoch: self.session.epoch().0,
        };
        let applied = within(self.client.pools().apply_pool(request)).await;
        applied.map_err(Problem::from)?;
        Ok(())
    }

    pub(super) async fn delete(&self, pool: &str) -> Result<(), Problem> {
        let request = DeletePoolRequest {
            name: pool.to_owned(),
            owner: self.session.owner().to_string(),
            epoch: self.session.epoch().0,
        };
        match within(self.client.pools().delete_pool(request)).await {
            Err(status) if status.code() != Code::NotFound => Err(status.into()),
            _ => Ok(()),
        }
    }

    /// Leaves nothing behind of a worker that is gone.
    pub(super) async fn tidy(self) -> Result<(), Problem> {
        self.delete(&pool::name(&self.berth)).await?;
        if !self.berth.has_worker() {
            self.berth.remove();
        }
        self.session.close().await
    }
}

/// A session that lasts for as long as its worker may wait, also of a gateway that comes up at the same time as the BEAM.
pub(super) async fn open_session(
    client: &Client,
    owner: &str,
    ttl: Duration,
) -> Result<Session, Problem> {
    let options = SessionOptions {
        ttl: Some(ttl),
        ..SessionOptions::default()
    };
    let open = || async {
        let owner = owner
            .parse()
            .map_err(|error: tether_types::InvalidName| Status::internal(error.to_string()))?;
        within(client.open_session(owner, options.clone())).await
    };
    open.retry(pauses().with_total_delay(Some(GATEWAY_WAIT)))
        .when(|problem: &Problem| problem.code == Code::Unavailable)
        .await
}
