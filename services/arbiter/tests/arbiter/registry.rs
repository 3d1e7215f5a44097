//! Registrations: streams that break, holders that cannot hear, another life of a name, an arbiter that starts anew.

use std::sync::Arc;

use tether_proto::{
    common::Endpoint,
    reason_of,
    registry::{
        Condition, DeregisterRequest, ListRegistrationsRequest, RegisterRequest, RegisterResponse,
        Registrant, registry_service_client::RegistryServiceClient,
    },
};
use tether_store::{MemoryStore, Store as _};
use tether_types::{Address, Reason};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::house::{arbiter, arbiter_on};

/// Long enough that nothing here is over by itself.
const TTL_MS: u64 = 60_000;

fn client(address: &Address) -> RegistryServiceClient<Channel> {
    RegistryServiceClient::new(tether_kit::channel::connect(address))
}

fn first(life: &str, epoch: u64) -> RegisterRequest {
    let registrant = Registrant {
        pool: "digits".to_owned(),
        name: "one".to_owned(),
        life: life.to_owned(),
        address: "10.0.0.1:50051".to_owned(),
        protocol: String::new(),
        ttl_ms: TTL_MS,
        epoch,
    };
    RegisterRequest {
        registrant: Some(registrant),
        condition: Some(Condition::default()),
        seq: 1,
        ack_seen: 0,
    }
}

/// One stream of a holder.
struct Stream {
    beats: mpsc::Sender<RegisterRequest>,
    answers: Streaming<RegisterResponse>,
}

impl Stream {
    async fn open(
        address: &Address,
        first: RegisterRequest,
    ) -> Result<(Self, RegisterResponse), Status> {
        let (beats, requests) = mpsc::channel(4);
        beats.send(first).await.unwrap();
        let mut client = client(address);
        let opened = client.register(ReceiverStream::new(requests)).await?;
        let mut answers = opened.into_inner();
        let granted = answers.message().await?.unwrap();
        Ok((Self { beats, answers }, granted))
    }

    async fn beat(&mut self, seq: u64, ack_seen: u64) -> Result<u64, Status> {
        self.say(seq, ack_seen, None).await
    }

    async fn say(
        &mut self,
        seq: u64,
        ack_seen: u64,
        condition: Option<Condition>,
    ) -> Result<u64, Status> {
        let beat = RegisterRequest {
            seq,
            ack_seen,
            condition,
            registrant: None,
        };
        self.beats.send(beat).await.unwrap();
        let answer = self.answers.message().await?.unwrap();
        assert_eq!(answer.seq, seq);
        Ok(answer.ttl_ms)
    }
}

fn refused(outcome: Result<(Stream, RegisterResponse), Status>) -> Option<Reason> {
    reason_of(&outcome.err().unwrap())
}

#[tokio::test]
async fn a_holder_that_hears_keeps_its_lease_over_streams_and_one_that_does_not_is_extended_no_further()
 {
    let dir = tempfile::tempdir().unwrap();
    let (address, _running) = arbiter(dir.path()).await;

    let (mut stream, granted) = Stream::open(&address, first("a", 0)).await.unwrap();
    assert_eq!(
        (granted.seq, granted.ttl_ms, granted.beat_ms),
        (1, TTL_MS, TTL_MS / 6)
    );
    assert_eq!(granted.epoch, granted.worker.as_ref().unwrap().incarnation);
    assert_eq!(stream.beat(2, 1).await.unwrap(), TTL_MS);
    assert_eq!(
        stream.beat(3, 0).await.unwrap(),
        0,
        "it shows of no answer that it came"
    );
    drop(stream);

    let again = RegisterRequest {
        seq: 4,
        ack_seen: 3,
        ..first("a", granted.epoch)
    };
    let (_stream, same) = Stream::open(&address, again).await.unwrap();
    assert_eq!((same.worker, same.ttl_ms), (granted.worker, TTL_MS));
}

#[tokio::test]
async fn another_life_of_a_name_waits_and_an_earlier_epoch_is_fenced() {
    let dir = tempfile::tempdir().unwrap();
    let (address, _running) = arbiter(dir.path()).await;
    let (mut stream, granted) = Stream::open(&address, first("a", 0)).await.unwrap();

    assert_eq!(
        refused(Stream::open(&address, first("b", 0)).await),
        Some(Reason::RegistrationTaken)
    );
    let goodbye = |epoch| DeregisterRequest {
        pool: "digits".to_owned(),
        name: "one".to_owned(),
        epoch,
    };
    let nobodys = client(&address).deregister(goodbye(0)).await.unwrap_err();
    assert_eq!(reason_of(&nobodys), Some(Reason::LeaseFenced));
    client(&address)
        .deregister(goodbye(granted.epoch))
        .await
        .unwrap();

    assert_eq!(
        reason_of(&stream.beat(2, 1).await.unwrap_err()),
        Some(Reason::UnknownRegistration)
    );
    let (_stream, next) = Stream::open(&address, first("b", 0)).await.unwrap();
    assert!(next.epoch > granted.epoch);
    assert_eq!(next.worker.unwrap().slot, 0);
    assert_eq!(
        refused(Stream::open(&address, first("a", granted.epoch)).await),
        Some(Reason::LeaseFenced)
    );
}

#[tokio::test]
async fn what_an_earlier_arbiter_has_registered_is_held_and_served_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(MemoryStore::new());
    let (address, running) = arbiter_on(Arc::clone(&store) as _, dir.path()).await;
    let (mut stream, granted) = Stream::open(&address, first("a", 0)).await.unwrap();
    let draining = Condition {
        draining: true,
        zone: "a".to_owned(),
        ..Condition::default()
    };
    stream.say(2, 1, Some(draining)).await.unwrap();
    // What changed is written after the answer; a registration that follows is written after it.
    let other = first("c", 0);
    let other = RegisterRequest {
        registrant: other.registrant.map(|registrant| Registrant {
            name: "other".to_owned(),
            address: "10.0.0.2:1".to_owned(),
            ..registrant
        }),
        ..other
    };
    Stream::open(&address, other).await.unwrap();
    drop((stream, running));

    let next = tempfile::tempdir().unwrap();
    let (address, _running) = arbiter_on(Arc::clone(&store) as _, next.path()).await;

    let served = store
        .get("serve/endpoints/digits/0")
        .await
        .unwrap()
        .unwrap();
    let served: Endpoint = prost::Message::decode(&*served.value).unwrap();
    assert_eq!(
        (served.worker.as_ref(), served.draining, &*served.zone),
        (granted.worker.as_ref(), true, "a")
    );
    assert_eq!(
        refused(Stream::open(&address, first("b", 0)).await),
        Some(Reason::RegistrationTaken)
    );
    let (_stream, same) = Stream::open(
        &address,
        RegisterRequest {
            seq: 3,
            ack_seen: 2,
            ..first("a", granted.epoch)
        },
    )
    .await
    .unwrap();
    assert_eq!((same.worker, same.ttl_ms), (granted.worker, TTL_MS));
    let listed = client(&address)
        .list_registrations(ListRegistrationsRequest::default())
        .await
        .unwrap();
    let listed = listed.into_inner().registrations;
    assert_eq!(listed.len(), 2);
    assert!(
        listed
            .iter()
            .all(|one| one.registrant.as_ref().unwrap().life.is_empty())
    );
}

#[tokio::test]
async fn what_says_too_little_is_refused_with_the_field() {
    let dir = tempfile::tempdir().unwrap();
    let (address, _running) = arbiter(dir.path()).await;
    let nothing = Stream::open(
        &address,
        RegisterRequest {
            registrant: None,
            ..first("a", 0)
        },
    )
    .await;
    let status = nothing.err().unwrap();
    assert_eq!(reason_of(&status), Some(Reason::ConfigInvalid));
    assert!(status.message().contains("`registrant`"), "{status}");
    let nobody = Stream::open(&address, first("", 0)).await.err().unwrap();
    assert!(nobody.message().contains("`life` has 0 bytes"), "{nobody}");
    let long = first("a", 0);
    let long = RegisterRequest {
        registrant: long.registrant.map(|registrant| Registrant {
            ttl_ms: 7_200_000,
            ..registrant
        }),
        ..long
    };
    let long = Stream::open(&address, long).await.err().unwrap();
    assert!(long.message().contains("cannot have a `ttl`"), "{long}");
}
