//! One watch of discovery for as long as it is wanted: begun again where it broke off.

use anyhow::{Context as _, anyhow};
use backon::BackoffBuilder as _;
use tether_client::{Client, Problem};
use tether_proto::discovery::{WatchEndpointsRequest, WatchEndpointsResponse};
use tether_types::Reason;
use tokio::time::sleep;
use tonic::Streaming;

use crate::{
    output::Output,
    run::{delays, may_pass},
};

/// A watch of one pool, or of all where its name is empty.
#[derive(Debug)]
pub(super) struct Following<'a> {
    client: &'a Client,
    /// What is asked for next time: what comes after the last word.
    request: WatchEndpointsRequest,
    changes: Streaming<WatchEndpointsResponse>,
}

impl<'a> Following<'a> {
    /// The first word, which tells all there is, and those that follow.
    pub(super) async fn begin(
        client: &'a Client,
        pool: &str,
    ) -> anyhow::Result<(WatchEndpointsResponse, Self)> {
        let request = WatchEndpointsRequest {
            pool: pool.to_owned(),
            ..WatchEndpointsRequest::default()
        };
        let (first, changes) = watch(client, &request).await?;
        let mut following = Self {
            client,
            request,
            changes,
        };
        following.note(&first);
        Ok((first, following))
    }

    /// The next word, however often the watch has to be begun again for it; that it has to is told once.
    pub(super) async fn next(&mut self, out: &Output) -> anyhow::Result<WatchEndpointsResponse> {
        let word = match self.changes.message().await {
            Ok(Some(word)) => word,
            Ok(None) => self.again(anyhow!("it ended the watch"), out).await?,
            Err(status) => self.again(Problem::from(status).into(), out).await?,
        };
        self.note(&word);
        Ok(word)
    }

    async fn again(
        &mut self,
        why: anyhow::Error,
        out: &Output,
    ) -> anyhow::Result<WatchEndpointsResponse> {
        out.note(&format!(
            "discovery is away, what it said last may be out of date: {why:#}"
        ));
        let mut pauses = delays().build();
        loop {
            if let Some(pause) = pauses.next() {
                sleep(pause).await;
            }
            match watch(self.client, &self.request).await {
                Ok((word, changes)) => {
                    self.changes = changes;
                    out.note(match word.snapshot {
                        true => "discovery is back, and tells all there is",
                        false => "discovery is back, and tells what was missed",
                    });
                    return Ok(word);
                }
                Err(error) if may_come_back(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn note(&mut self, word: &WatchEndpointsResponse) {
        self.request.resume_instance.clone_from(&word.instance);
        self.request.resume_revision = word.revision;
    }
}

async fn watch(
    client: &Client,
    request: &WatchEndpointsRequest,
) -> anyhow::Result<(WatchEndpointsResponse, Streaming<WatchEndpointsResponse>)> {
    let watch = client.discovery().watch_endpoints(request.clone()).await;
    let mut changes = watch.map_err(Problem::from)?.into_inner();
    let first = changes.message().await.map_err(Problem::from)?;
    let first = first.context("discovery ended the watch before it said anything")?;
    Ok((first, changes))
}

fn may_come_back(error: &anyhow::Error) -> bool {
    let Some(problem) = error.downcast_ref::<Problem>() else {
        return true;
    };
    problem.reason == Some(Reason::DiscoveryUnreachable) || may_pass(problem.reason, problem.code)
}
