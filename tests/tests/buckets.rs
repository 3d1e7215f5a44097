//! Checkpoints in a bucket, as a worker sends them to the agent of its node.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{future::pending, time::Duration};

use tether_proto::{
    checkpoint::{
        SaveCheckpointBegin, SaveCheckpointRequest,
        checkpoint_service_client::CheckpointServiceClient, save_checkpoint_request::Part,
    },
    reason_of,
};
use tether_s3_server::Server;
use tether_tests::{Bucket, Cluster, Setup, eventually};
use tether_types::Reason;
use tokio::{
    runtime::Runtime,
    sync::mpsc::{Sender, channel},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::Status;

const MIB: usize = 1 << 20;

/// A call of a worker waits for so long.
const CALL: Duration = Duration::from_secs(10);

fn agent(cluster: &Cluster) -> String {
    format!("unix:{}", cluster.runtime().join("agent.sock").display())
}

/// Begins to save as a worker does; what is sent is what it says next.
fn save(
    agent: &str,
) -> (
    Sender<Part>,
    impl Future<Output = Result<(), Status>> + use<>,
) {
    let agent = tether_kit::channel::connect(&agent.parse().unwrap());
    let (says, said) = channel(1);
    let begin = SaveCheckpointBegin {
        pool: "train".to_owned(),
        key: "job".to_owned(),
        fence: 1,
        seq: 1,
        sha256: vec![7; 32],
        bytes: 20 << 20,
    };
    let parts = tokio_stream::once(Part::Begin(begin)).chain(ReceiverStream::new(said));
    let parts = parts.map(|part| SaveCheckpointRequest { part: Some(part) });
    let call = async move {
        let saved = CheckpointServiceClient::new(agent)
            .save_checkpoint(parts)
            .await;
        saved.map(drop)
    };
    (says, call)
}

#[tokio::test]
async fn an_upload_whose_worker_goes_away_is_ended_in_the_bucket() {
    let Some(mut server) = Server::start().await else {
        return;
    };
    let cluster = Setup::default().bucket(Bucket::of(&server)).start().await;
    let socket = agent(&cluster);
    let worker = Runtime::new().unwrap();
    worker.spawn(async move {
        let (says, call) = save(&socket);
        let sends = async {
            for _ in 0..17 {
                says.send(Part::Chunk(vec![0; MIB])).await.unwrap();
            }
        };
        tokio::join!(call, sends, pending::<()>())
    });
    eventually("pieces are there", async || {
        (server.seen().await.unfinished == 1).then_some(())
    })
    .await;

    // With its connections, as when it is killed.
    worker.shutdown_background();

    eventually("its pieces are gone", async || {
        (server.seen().await.unfinished == 0).then_some(())
    })
    .await;
    assert_eq!(server.seen().await.objects, [""; 0]);
}

#[tokio::test]
async fn a_worker_is_told_in_time_that_the_keys_of_its_agent_are_wrong() {
    let Some(server) = Server::start().await else {
        return;
    };
    let bucket = Bucket::of(&server).with_wrong_keys();
    let cluster = Setup::default().bucket(bucket).start().await;

    let (_says, call) = save(&agent(&cluster));
    let told = tokio::time::timeout(CALL, call).await.unwrap().unwrap_err();

    assert_eq!(reason_of(&told), Some(Reason::StoreFailed), "{told:?}");
    for part in [
        "s3://models/tether",
        "SignatureDoesNotMatch",
        "AWS_SECRET_ACCESS_KEY",
    ] {
        assert!(told.message().contains(part), "{part}: {told:?}");
    }
}
