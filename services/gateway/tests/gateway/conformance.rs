//! Calls through the gateway are as they would be without it: real clients call real workers both ways, and what they
//! saw is compared. The documentation's `reference/conformance.md` says what that is.

mod answers;
mod attacks;
mod case;

mod cases;
mod connections;
mod contract;
mod malformed;
mod pattern;
mod python;
mod raw;
mod record;
mod reference;
mod shapes;
mod tonic_client;
mod wire;

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use super::{
    house::House,
    tls::{Papers, secure_house},
};
use case::Case;
use record::{Record, difference};
pub(crate) use tonic_client::secure;

/// A client of either kind.
enum Client {
    Grpcio(Box<python::Client>),
    Tonic(tonic_client::Client),
}

#[derive(Debug, Clone, Copy)]
enum Speaks {
    Grpcio,
    Tonic,
}

impl Client {
    async fn connect(speaks: Speaks, address: &str, way: &str, tls: Option<&Papers>) -> Self {
        match speaks {
            Speaks::Grpcio => {
                let certificates = tls.map(Papers::folder);
                let client = python::Client::connect(address, way, certificates);
                Self::Grpcio(Box::new(client))
            }
            Speaks::Tonic => {
                let tls = tls.map(Papers::connector);
                Self::Tonic(tonic_client::Client::connect(address, way, tls).await)
            }
        }
    }

    async fn end(self) {
        match self {
            Self::Grpcio(client) => client.end().await,
            Self::Tonic(_) => {}
        }
    }

    async fn play(&mut self, case: &Case) -> Record {
        match self {
            Self::Grpcio(client) => client.play(case).await,
            Self::Tonic(client) => client.play(case).await,
        }
    }
}

/// A gateway whose breakers stay closed: most cases fail, and mean to.
async fn house() -> House {
    House::with(patient()).await
}

fn patient() -> tether_gateway::Config {
    let breaker = tether_gateway::Breaker {
        failure_threshold: NonZeroU32::MAX,
        ..Default::default()
    };
    tether_gateway::Config {
        breaker,
        ..Default::default()
    }
}

/// A worker that speaks TLS.
pub(crate) async fn secure_worker(acceptor: tether_kit::tls::Acceptor) -> contract::Worker {
    contract::Worker::secure(acceptor).await
}

/// Plays cases directly and through a gateway, and says of how many the ends were equal.
async fn compare(client: Speaks, worker: &str, cases: &[Case]) {
    let house = house().await;
    house.tell(0, 1, worker).await;
    let direct = Client::connect(client, worker, "direct", None).await;
    let through = Client::connect(client, &house.address, "gateway", None).await;
    Box::pin(play(client, direct, through, cases)).await;
}

/// The same with TLS all the way.
async fn compare_secure(client: Speaks, worker: &str, cases: &[Case], papers: &Papers) {
    let house = secure_house(papers, patient()).await;
    house.tell_secure(0, 1, worker).await;
    let direct = Client::connect(client, worker, "direct", Some(papers)).await;
    let through = Client::connect(client, &house.secure, "gateway", Some(papers)).await;
    Box::pin(play(client, direct, through, cases)).await;
}

async fn play(client: Speaks, mut direct: Client, mut through: Client, cases: &[Case]) {
    let began = Instant::now();
    let mut different = Vec::new();
    for case in cases {
        let (direct, through) = tokio::join!(direct.play(case), through.play(case));
        different.extend(difference(case, &direct, &through));
    }

    direct.end().await;
    through.end().await;
    let ways = format!("{client:?} client, {:.1?}", began.elapsed());
    report(&ways, cases.len(), &different);
}

/// Says how many cases were equal, and fails with those that were not.
#[expect(
    clippy::print_stdout,
    reason = "it is what a reader of the run looks for"
)]
fn report(what: &str, cases: usize, wrong: &[String]) {
    println!(
        "{what}: {} of {cases} cases as they must be",
        cases - wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Waits for a call: a hundred mebibytes take seconds, more where the machine has other things to do.
async fn patiently<F: Future>(what: &str, call: F) -> F::Output {
    const PATIENCE: Duration = Duration::from_secs(60);
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(output) => output,
        Err(_) => panic!("{what} took longer than {PATIENCE:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_calls_grpcio_as_it_does_directly() {
    let worker = python::Worker::start().await;
    Box::pin(compare(Speaks::Grpcio, &worker.address, &cases::all())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_calls_tonic_as_it_does_directly() {
    let worker = contract::Worker::start().await;
    Box::pin(compare(Speaks::Grpcio, &worker.address, &cases::all())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tonic_calls_grpcio_as_it_does_directly() {
    let worker = python::Worker::start().await;
    Box::pin(compare(Speaks::Tonic, &worker.address, &cases::all())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tonic_calls_tonic_as_it_does_directly() {
    let worker = contract::Worker::start().await;
    Box::pin(compare(Speaks::Tonic, &worker.address, &cases::all())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_grpcio_calls_grpcio_as_it_does_directly() {
    let papers = Papers::make();
    let worker = python::Worker::secure(papers.folder()).await;
    let cases = cases::all();
    Box::pin(compare_secure(
        Speaks::Grpcio,
        &worker.address,
        &cases,
        &papers,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_tonic_calls_tonic_as_it_does_directly() {
    let papers = Papers::make();
    let worker = contract::Worker::secure(papers.acceptor()).await;
    let cases = cases::all();
    Box::pin(compare_secure(
        Speaks::Tonic,
        &worker.address,
        &cases,
        &papers,
    ))
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_hundred_mebibytes_are_as_they_are_directly() {
    let worker = python::Worker::start().await;
    Box::pin(compare(Speaks::Grpcio, &worker.address, &cases::large())).await;
    worker.end().await;
    let worker = contract::Worker::start().await;
    Box::pin(compare(Speaks::Tonic, &worker.address, &cases::large())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_answers_are_to_grpcio_and_tonic_what_they_are_directly() {
    let worker = answers::Worker::start().await;
    for client in [Speaks::Grpcio, Speaks::Tonic] {
        Box::pin(compare(client, &worker.address, &answers::cases(client))).await;
    }
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
