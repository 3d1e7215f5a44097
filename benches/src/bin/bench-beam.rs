//! What a BEAM pays for calls through `tether port`: beside a port that only gives back what it is given, and beside
//! direct calls of the same Python worker, in turns within one run.

use std::{
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Parser;
use tether_benches::{
    Results, cpu_time_of_threads,
    figure::{Figure, Target, median},
    processes,
};
use tether_client::Client;
use tether_tests::{Beam, Cluster, digits::PredictRequest};
use tonic::{Request, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

/// Calls in one turn, one after the other.
const CALLS: usize = 1_000;

/// Turns of each kind.
const TURNS: usize = 5;

/// Of a message.
const BYTES: usize = 64;

/// The most that gateway and port may add to a call.
const ADDED_MAX: f64 = 150.0;

/// Measures calls of a BEAM.
#[derive(Debug, Parser)]
struct Args {
    /// Writes the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
    /// A tenth of the calls.
    #[arg(long)]
    quick: bool,
}

/// The medians and the tails of the turns of one kind.
#[derive(Debug, Default)]
struct Times {
    medians: Vec<Duration>,
    tails: Vec<Duration>,
}

impl Times {
    fn add(&mut self, [median, tail]: [Duration; 2]) {
        self.medians.push(median);
        self.tails.push(tail);
    }

    /// Of the turns the middle one, in microseconds.
    fn micros(&self) -> [f64; 2] {
        [&self.medians, &self.tails].map(|times| {
            let mut times = times.clone();
            times.sort();
            times[times.len() / 2].as_secs_f64() * 1e6
        })
    }
}

/// The processes that a call goes through, by their ids.
#[derive(Debug, Clone, Copy)]
struct Way {
    port: u32,
    /// The gateway, and the services that share its process.
    services: u32,
    worker: u32,
}

impl Way {
    fn times(self) -> anyhow::Result<[Duration; 3]> {
        let times = [self.port, self.services, self.worker].map(cpu_time_of_threads);
        let [port, services, worker] = times;
        Ok([port?, services?, worker?])
    }
}

/// What each of them has spent on a call, in microseconds, turn by turn.
#[derive(Debug, Default)]
struct Spent([Vec<f64>; 3]);

impl Spent {
    fn add(&mut self, [before, after]: [[Duration; 3]; 2], calls: usize) {
        for (spent, (before, after)) in self.0.iter_mut().zip(before.into_iter().zip(after)) {
            spent.push((after - before).as_secs_f64() * 1e6 / calls as f64);
        }
    }

    fn micros(self) -> [f64; 3] {
        self.0.map(|turns| median(turns).unwrap_or_default())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let calls = if args.quick { CALLS / 10 } else { CALLS };
    let cluster = Cluster::start().await;
    let mut beam = Beam::usual(&[&cluster.gateway()]).await;
    beam.with_talker(&[]).await;
    let worker = cluster.workers("talk").await.into_iter().next();
    let worker = worker.context("there is no worker")?;
    let channel = Client::connect(&worker.address.parse()?).channel();

    let port = processes::living(beam.pid()).into_iter();
    let mut port = port.filter(|process| process.name == "tether");
    let way = Way {
        port: port.next().context("the BEAM has no port")?.pid,
        services: cluster.pid(),
        worker: worker.pid,
    };
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default().parse()?;
    let [mut by_port, mut by_hand] = std::array::from_fn(|_| Spent::default());

    let [mut cat, mut ping, mut through, mut direct] = std::array::from_fn(|_| Times::default());
    let call = format!(
        "{{call, ID, #{{pool => <<\"talk\">>, method => <<\"/talk.Talk/Echo\">>, body => <<0:{}>>}}}}",
        BYTES * 8
    );
    for turn in 0..TURNS {
        let id = |kind: usize| ((turn * 2 + kind) * calls + 1_000).to_string();
        cat.add(
            beam.measure(&format!("{{measure_cat, {calls}, {BYTES}}}"))
                .await,
        );
        let asked = format!("{{measure, {calls}, {{control, {}, ping, #{{}}}}}}", id(0));
        ping.add(beam.measure(&asked).await);
        let before = way.times()?;
        direct.add(directly(&channel, calls).await?);
        by_hand.add([before, way.times()?], calls);
        let asked = format!("{{measure, {calls}, {}}}", call.replace("ID", &id(1)));
        let before = way.times()?;
        through.add(beam.measure(&asked).await);
        by_port.add([before, way.times()?], calls);
    }
    let [port_cpu, services_cpu, worker_cpu] = by_port.micros();
    let [_, _, direct_cpu] = by_hand.micros();

    let [cat, ping, through, direct] = [cat, ping, through, direct].map(|times| times.micros());
    let added = through[0] - direct[0];
    let rows = vec![
        Figure::new("load of the machine before it begins", "processes").ours(load),
        Figure::new("BEAM to port and back, p50", "us")
            .ours(ping[0])
            .peer("a port that is cat", Ok(cat[0])),
        Figure::new("BEAM to port, gateway, Python worker and back, p50", "us")
            .ours(through[0])
            .peer("the worker called directly, from Rust", Ok(direct[0])),
        Figure::new("the same, p99", "us")
            .ours(through[1])
            .peer("the worker called directly, from Rust", Ok(direct[1])),
        Figure::new("what port and gateway add to a call, p50", "us")
            .ours(added)
            .target(Target::AtMost(ADDED_MAX)),
        Figure::new("processor time of the port for a call", "us").ours(port_cpu),
        Figure::new("processor time of gateway and services for a call", "us").ours(services_cpu),
        Figure::new("processor time of the worker for a call", "us")
            .ours(worker_cpu)
            .peer("the worker called directly, from Rust", Ok(direct_cpu)),
    ];
    let mut out = std::io::stdout();
    for row in &rows {
        writeln!(out, "{}", row.line())?;
    }
    if let Some(path) = args.json {
        Results::new(rows).write(&path)?;
        writeln!(out, "written to {}", path.display())?;
    }
    Ok(())
}

/// Calls the worker without anything between.
async fn directly(channel: &Channel, calls: usize) -> anyhow::Result<[Duration; 2]> {
    let mut grpc = Grpc::new(channel.clone());
    let message = PredictRequest {
        pixels: vec![0; BYTES],
    };
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let start = Instant::now();
        grpc.ready().await?;
        let path = http::uri::PathAndQuery::from_static("/talk.Talk/Echo");
        // What it says again is what it was sent, whatever that was.
        let codec = ProstCodec::<PredictRequest, PredictRequest>::default();
        grpc.unary(Request::new(message.clone()), path, codec)
            .await?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok([times[calls / 2], times[calls * 99 / 100]])
}
