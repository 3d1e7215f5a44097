//! An arbiter that is asked for nodes or owners of a shard which it does not have.

use tether_proto::{
    SHARD,
    node::{HeartbeatRequest, HeartbeatResponse, Hello, node_service_client::NodeServiceClient},
    reason_of,
    session::{OpenSessionRequest, session_service_client::SessionServiceClient},
};
use tether_types::{Address, Reason};
use tonic::Status;

use crate::house::arbiter;

/// The first word to a node of this shard, after its first beat.
async fn hello(address: &Address, shard: u32) -> Result<HeartbeatResponse, Status> {
    let hello = HeartbeatRequest {
        hello: Some(Hello {
            node: "n1".to_owned(),
            shard,
            ..Hello::default()
        }),
        ..HeartbeatRequest::default()
    };
    let beat = HeartbeatRequest {
        seq: 1,
        ..HeartbeatRequest::default()
    };
    let beats = tokio_stream::iter([hello, beat]);
    let beats = futures::StreamExt::chain(beats, futures::stream::pending());
    let mut client = NodeServiceClient::new(tether_kit::channel::connect(address));
    let mut answers = client.heartbeat(beats).await?.into_inner();
    Ok(answers.message().await?.unwrap())
}

fn assert_refused(status: &Status) {
    assert_eq!(reason_of(status), Some(Reason::ConfigInvalid), "{status}");
    assert!(status.message().contains("shard 3 was asked for"));
    assert!(status.message().contains("leave `shard` at 0"));
}

#[tokio::test]
async fn a_node_and_an_owner_of_another_shard_are_refused_and_those_of_its_own_are_told_which() {
    let dir = tempfile::tempdir().unwrap();
    let (address, _running) = arbiter(dir.path()).await;
    let open = async |shard| {
        let request = OpenSessionRequest {
            owner: "beam".to_owned(),
            shard,
            ..OpenSessionRequest::default()
        };
        let mut client = SessionServiceClient::new(tether_kit::channel::connect(&address));
        client.open_session(request).await
    };

    assert_refused(&hello(&address, 3).await.unwrap_err());
    assert_refused(&open(3).await.unwrap_err());

    assert_eq!(hello(&address, SHARD).await.unwrap().shard, SHARD);
    assert_eq!(open(SHARD).await.unwrap().into_inner().shard, SHARD);
}
