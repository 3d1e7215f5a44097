//! What the way through the gateway costs. Run by hand, in a release build:
//! `cargo test -p tether-gateway --release -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use crate::{
    client::Client,
    house::{DIGITS, House, UNARY},
};

const CALLS: usize = 5_000;
const CALLERS: usize = 32;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, to be run alone in a release build"]
async fn small_calls_through_the_gateway_cost_little() {
    let house = House::open().await;
    let worker = house.worker(0).await;
    let direct = Client::connect(&worker.address).await;
    let through = house.client().await;

    for client in [&direct, &through] {
        one_by_one(client).await;
    }
    let (direct_p50, through_p50) = (one_by_one(&direct).await, one_by_one(&through).await);
    let (direct_rate, through_rate) = (at_once(&direct).await, at_once(&through).await);

    println!("p50: direct {direct_p50:?}, through the gateway {through_p50:?}");
    println!("calls/s, {CALLERS} callers: direct {direct_rate:.0}, through {through_rate:.0}");
    assert!(through_p50 < direct_p50 * 10);
}

async fn one_by_one(client: &Client) -> Duration {
    let mut times = Vec::with_capacity(CALLS);
    for _ in 0..CALLS {
        let start = Instant::now();
        client
            .unary(UNARY, DIGITS, vec![0; 128])
            .await
            .expect("the worker answers");
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[CALLS / 2]
}

async fn at_once(client: &Client) -> f64 {
    let start = Instant::now();
    let callers = (0..CALLERS).map(|_| async {
        for _ in 0..CALLS / 4 {
            client
                .unary(UNARY, DIGITS, vec![0; 128])
                .await
                .expect("the worker answers");
        }
    });
    futures::future::join_all(callers).await;
    (CALLERS * CALLS / 4) as f64 / start.elapsed().as_secs_f64()
}
