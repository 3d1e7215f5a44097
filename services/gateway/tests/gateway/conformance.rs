//! Calls through the gateway are as they would be without it: real clients call real workers both ways, and what they
//! saw is compared. The documentation's `reference/conformance.md` says what that is.

mod attacks;
mod case;
mod cases;
mod contract;
mod malformed;
mod pattern;
mod python;
mod record;
mod tonic_client;
mod wire;

use std::time::{Duration, Instant};

use super::house::House;
use case::Case;
use record::{Record, difference};

/// A client of either kind.
enum Client {
    Grpcio(python::Client),
    Tonic(tonic_client::Client),
}

#[derive(Debug, Clone, Copy)]
enum Speaks {
    Grpcio,
    Tonic,
}

impl Client {
    async fn connect(speaks: Speaks, address: &str, way: &str) -> Self {
        match speaks {
            Speaks::Grpcio => Self::Grpcio(python::Client::connect(address, way)),
            Speaks::Tonic => Self::Tonic(tonic_client::Client::connect(address, way).await),
        }
    }

    async fn play(&mut self, case: &Case) -> Record {
        match self {
            Self::Grpcio(client) => client.play(case).await,
            Self::Tonic(client) => client.play(case).await,
        }
    }
}

/// Plays cases directly and through a gateway, and says of how many the ends were equal.
async fn compare(client: Speaks, worker: &str, cases: &[Case]) {
    let house = House::open().await;
    house.tell(0, 1, worker).await;
    let mut direct = Client::connect(client, worker, "direct").await;
    let mut through = Client::connect(client, &house.address, "gateway").await;

    let mut different = Vec::new();
    let mut took = [Duration::ZERO; 2];
    for case in cases {
        let began = Instant::now();
        let direct = direct.play(case).await;
        let between = Instant::now();
        let through = through.play(case).await;
        took[0] += between - began;
        took[1] += between.elapsed();
        different.extend(difference(case, &direct, &through));
    }

    println!(
        "{client:?} client: {} of {} cases equal; direct {:.1?}, through the gateway {:.1?}",
        cases.len() - different.len(),
        cases.len(),
        took[0],
        took[1],
    );
    assert!(different.is_empty(), "{}", different.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_calls_grpcio_as_it_does_directly() {
    let worker = python::Worker::start().await;
    compare(Speaks::Grpcio, &worker.address, &cases::all()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_calls_tonic_as_it_does_directly() {
    let worker = contract::Worker::start().await;
    compare(Speaks::Grpcio, &worker.address, &cases::all()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tonic_calls_grpcio_as_it_does_directly() {
    let worker = python::Worker::start().await;
    compare(Speaks::Tonic, &worker.address, &cases::all()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tonic_calls_tonic_as_it_does_directly() {
    let worker = contract::Worker::start().await;
    compare(Speaks::Tonic, &worker.address, &cases::all()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_hundred_mebibytes_are_as_they_are_directly() {
    let worker = python::Worker::start().await;
    compare(Speaks::Grpcio, &worker.address, &cases::large()).await;
    let worker = contract::Worker::start().await;
    compare(Speaks::Tonic, &worker.address, &cases::large()).await;
}

/// What the documentation counts.
#[test]
fn every_case_has_a_name_of_its_own_and_there_are_enough() {
    let cases = cases::all();
    let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();

    assert_eq!(names.len(), cases.len());
    let beside_bodies = cases.iter().filter(|case| case.group != "bodies").count();
    assert!(beside_bodies >= 80, "{beside_bodies}");
}
