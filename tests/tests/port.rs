//! `tether port` under a real BEAM: what is asked is answered, what is not read is not sent, and what is coupled goes
//! with the BEAM, however that goes.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tether_client::Client;
use tether_etcd_cluster::Certificates;
use tether_proto::checkpoint::{
    SaveCheckpointBegin, SaveCheckpointRequest, checkpoint_service_client::CheckpointServiceClient,
    save_checkpoint_request::Part,
};
use tether_tests::{Beam, Cluster, eventually, kill, mentioning, program};

/// Within which a coupled worker is gone after its BEAM.
const AT_ONCE: Duration = Duration::from_millis(250);

/// Of sessions here.
const LEASE: Duration = Duration::from_secs(4);

#[tokio::test]
async fn a_call_is_answered_with_what_the_worker_says_and_fails_as_it_fails() {
    let mut beam = Beam::usual(&[]).await;
    beam.with_talker(&[]).await;

    beam.call(
        10,
        "Echo",
        "body => <<1, 2, 3>>, timeout => 20000, metadata => [{<<\"x-say\">>, <<\"hey\">>}]",
    )
    .await;
    let answer = beam.until("{reply,10,").await;
    assert!(
        answer.contains("{ok,") && answer.contains("body => <<1,2,3>>"),
        "{answer}"
    );
    assert!(answer.contains("{<<\"x-said\">>,<<\"hey\">>}"), "{answer}");
    let opened = beam.said("{session,opened,").concat();
    let (_, epoch) = opened.split_once("epoch => ").unwrap();
    let epoch = epoch.split(',').next().unwrap();
    let in_its_name = format!("{{<<\"x-epoch\">>,<<\"{epoch}\">>}}");
    assert!(answer.contains(&in_its_name), "{answer}");
    assert!(
        answer.contains("{<<\"x-bytes-bin\">>,<<0,255>>}"),
        "{answer}"
    );

    beam.call(11, "Fail", "body => <<>>").await;
    let answer = beam.until("{reply,11,").await;
    assert!(
        answer.contains("code => 9") && answer.contains("outcome => failed"),
        "{answer}"
    );
    assert!(
        answer.contains("not like this") && answer.contains("reason => <<>>"),
        "{answer}"
    );

    // Whoever sees first that it is over: worker, gateway or port.
    beam.call(12, "Hang", "body => <<>>, timeout => 200").await;
    let answer = beam.until("{reply,12,").await;
    assert!(answer.contains("code => 4"), "{answer}");

    beam.say("{call, 13, #{pool => <<\"nobody\">>, method => <<\"/a.B/C\">>, body => <<>>}}")
        .await;
    let answer = beam.until("{reply,13,").await;
    assert!(
        answer.contains("UNKNOWN_POOL") && answer.contains("outcome => not_sent"),
        "{answer}"
    );

    beam.call(14, "Echo", "bodi => <<>>, body => <<>>").await;
    let answer = beam.until("{reply,14,").await;
    assert!(answer.contains("no use for `bodi`"), "{answer}");

    // `{control, 16, ping, ...}` and `{send, 17, ...}` with a reference, which is not taken.
    beam.say("{raw, <<131, 104, 4, 119, 7, \"control\", 97, 16, 119, 4, \"ping\", 90>>}")
        .await;
    let answer = beam.until("{reply,16,").await;
    assert!(
        answer.contains("CONFIG_INVALID") && answer.contains("outcome => not_sent"),
        "{answer}"
    );
    beam.stream(17, "Chat").await;
    beam.say("{raw, <<131, 104, 3, 119, 4, \"send\", 97, 17, 90>>}")
        .await;
    let answer = beam.until("{reply,17,").await;
    assert!(answer.contains("CONFIG_INVALID"), "{answer}");
    beam.call(18, "Echo", "body => <<>>").await;
    beam.until("{reply,18,{ok,").await;

    beam.say("still").await;
    beam.say("{bye, 15}").await;
    beam.until("{reply,15,{ok,").await;
    beam.until("{exit,0}").await;
    assert_eq!(mentioning(&beam.dir().join("talker.py")), []);
    assert_eq!(of_ports(&beam).len(), 0, "its directory is gone");
}

/// The directories of the services in this BEAM's port, and of those before and beside it.
fn of_ports(beam: &Beam) -> Vec<PathBuf> {
    let entries = fs::read_dir(beam.dir()).unwrap().flatten();
    let paths = entries.map(|entry| entry.path());
    let is_ports = |path: &PathBuf| path.display().to_string().contains("/tether-port-");
    paths.filter(is_ports).collect()
}

/// The bytes of which job, and what they are.
const JOB: &str = "k";
const BYTES: &[u8] = b"abc";
const HASH: [u8; 32] = [
    0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
    0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad,
];

/// Begins a job, saves for it as a worker does, and tells where the services are and where that lies.
async fn with_checkpoint(beam: &mut Beam) -> (PathBuf, PathBuf) {
    beam.with_talker(&[]).await;
    let key = format!("pool => <<\"talk\">>, key => <<\"{JOB}\">>");
    beam.say(&format!("{{control, 20, job_start, #{{{key}}}}}"))
        .await;
    let job = beam.until("{reply,20,{ok,").await;
    let (_, fence) = job.split_once("<<\"fence\">> => ").unwrap();
    let fence = fence.split([',', '}']).next().unwrap();
    let own = of_ports(beam).remove(0);
    let agent = format!("unix:{}", own.join("agent.sock").display());
    let agent = Client::connect(&agent.parse().unwrap());
    let begin = SaveCheckpointBegin {
        pool: "talk".to_owned(),
        key: JOB.to_owned(),
        fence: fence.parse().unwrap(),
        seq: 1,
        sha256: HASH.into(),
        bytes: BYTES.len() as u64,
    };
    let parts = [Part::Begin(begin), Part::Chunk(BYTES.into())];
    let parts = parts.map(|part| SaveCheckpointRequest { part: Some(part) });
    let saved = CheckpointServiceClient::new(agent.channel())
        .save_checkpoint(tokio_stream::iter(parts))
        .await;
    let uri = saved.unwrap().into_inner().checkpoint.unwrap().uri;
    let file = Path::new(uri.strip_prefix("file://").unwrap()).to_owned();
    assert_eq!(fs::read(&file).unwrap(), BYTES);
    (own, file)
}

#[tokio::test]
async fn checkpoints_go_with_the_services_that_knew_of_them() {
    let mut stopped = Beam::usual(&[]).await;
    let (_, of_stopped) = with_checkpoint(&mut stopped).await;
    stopped.say("still").await;
    stopped.say("{bye, 30}").await;
    stopped.until("{exit,0}").await;
    assert!(!of_stopped.exists());

    let mut killed = Beam::usual(&[]).await;
    let (own, of_killed) = with_checkpoint(&mut killed).await;
    killed.say("still").await;
    let port = fs::read_to_string(own.join("agent.lock")).unwrap();
    kill(port.trim().parse().unwrap(), Signal::KILL);
    killed.until("{exit,").await;
    assert!(of_killed.exists(), "nobody could remove it");
    eventually("nothing of its worker is left", async || {
        mentioning(&own).is_empty().then_some(())
    })
    .await;

    let mut next = killed.beside();
    next.hello(&[], ", ttl => 4000, heartbeat_timeout => 4000")
        .await;
    next.until("{session,opened,").await;

    eventually("what the killed one left is gone", async || {
        (!own.exists()).then_some(())
    })
    .await;
    assert!(!of_killed.exists());
    assert_eq!(of_ports(&killed).len(), 1, "its own is there");
}

#[tokio::test]
async fn a_stream_gives_what_there_is_credit_for_and_the_worker_waits_meanwhile() {
    let mut beam = Beam::usual(&[]).await;
    beam.with_talker(&[]).await;

    beam.stream(10, "Flood").await;
    beam.say("{send, 10, <<\"3000 65536\">>}").await;
    beam.say("{close_send, 10}").await;
    beam.say("{credit, 10, 3}").await;
    beam.until("{headers,10,").await;
    for _ in 0..3 {
        beam.until("{message,10,").await;
    }
    // While another one goes through the same gateway and worker from its beginning to its end.
    beam.stream(11, "Quiet").await;
    beam.say("{send, 11, <<\"1000 65536\">>}").await;
    beam.say("{close_send, 11}").await;
    beam.say("{credit, 11, 10000}").await;
    let end = beam.until("{reply,11,").await;
    assert!(end.contains("{ok,"), "{end}");
    assert_eq!(beam.count("{message,11,"), 1_000);
    // What is on its way fits into windows and sockets: a small part of what there is to say.
    let made = made(&mut beam).await;
    assert!(
        (3..500).contains(&made),
        "{made} messages were made for 3 that are read"
    );
    assert_eq!(beam.count("{message,10,"), 3);

    // Of logs as much as there is credit for, where that is asked for.
    let logs = "worker => {<<\"talk\">>, 0, 0}, tail_bytes => 64";
    beam.say(&format!("{{control, 90, logs, #{{{logs}, window => 0}}}}"))
        .await;
    beam.say(&format!("{{control, 91, logs, #{{{logs}}}}}"))
        .await;
    beam.until("{reply,91,{ok,").await;
    assert_eq!(beam.count("{item,90,") + beam.count("{reply,90,"), 0);
    beam.say("{credit, 90, 100}").await;
    beam.until("{reply,90,{ok,").await;
    assert!(beam.count("{item,90,") > 0);

    beam.say("{credit, 10, 10000}").await;
    let end = beam.until("{reply,10,").await;
    assert!(end.contains("{ok,"), "{end}");
    assert_eq!(beam.count("{message,10,"), 3_000);
}

/// How many messages of a flood the worker has made.
async fn made(beam: &mut Beam) -> usize {
    beam.say("{control, 100, logs, #{worker => {<<\"talk\">>, 0, 0}, tail_bytes => 64}}")
        .await;
    beam.until("{reply,100,{ok,").await;
    let log = beam.said("{item,100,").concat();
    let last = log.rsplit("flood ").find_map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().ok()
    });
    last.map_or(0, |last| last + 1)
}

#[tokio::test]
async fn a_stream_in_both_directions_is_said_again_and_one_that_nobody_hears_takes_no_more_than_may_be_unsent()
 {
    let mut beam = Beam::usual(&[]).await;
    beam.with_talker(&[]).await;

    beam.stream(10, "Chat").await;
    beam.say("{credit, 10, 100}").await;
    for text in ["one", "two"] {
        beam.say(&format!("{{send, 10, <<\"{text}\">>}}")).await;
        beam.until(&format!("{{message,10,<<\"{text}\">>}}")).await;
    }
    assert_eq!(beam.count("{sent,10,1}"), 2);
    beam.say("{close_send, 10}").await;
    beam.until("{reply,10,{ok,").await;

    beam.stream(11, "Deaf").await;
    let mut given = 0;
    while beam.count("{reply,11,") == 0 && given < 3_000 {
        beam.say("{send, 11, <<0:8000000>>}").await;
        beam.say(&format!(
            "{{control, {}, session_list, #{{}}}}",
            1_000 + given
        ))
        .await;
        beam.until(&format!("{{reply,{},", 1_000 + given)).await;
        given += 1;
    }
    let end = beam.said("{reply,11,").concat();
    assert!(
        end.contains("code => 8") && end.contains("OVERLOADED"),
        "{end}"
    );
}

#[tokio::test]
async fn a_cancelled_call_is_cancelled_at_the_worker() {
    let mut beam = Beam::usual(&[]).await;
    beam.with_talker(&[]).await;
    beam.say("{control, 3, logs, #{worker => {<<\"talk\">>, 0, 0}, follow => true}}")
        .await;

    beam.call(10, "Hang", "body => <<>>").await;
    beam.until("hangs").await;
    beam.say("{cancel, 10}").await;

    let answer = beam.until("{reply,10,").await;
    assert!(
        answer.contains("code => 1") && answer.contains("outcome => unknown"),
        "{answer}"
    );
    beam.until("gone").await;

    beam.stream(11, "Deaf").await;
    beam.until("hangs").await;
    beam.say("{cancel, 11}").await;
    beam.until("gone").await;
    assert_eq!(beam.count("{reply,11,"), 1);
}

#[tokio::test]
async fn a_coupled_worker_and_its_daemon_go_with_a_killed_beam_at_once() {
    let cluster = Cluster::start().await;
    for gateways in [vec![], vec![cluster.gateway()]] {
        let gateways: Vec<_> = gateways.iter().map(String::as_str).collect();
        let mut took = Vec::new();
        for _ in 0..3 {
            took.push(kill_with_daemon(&gateways).await);
        }
        // On a machine that does nothing else all of them are; none waits for a lease, which is of 4 s.
        let (least, most) = (took.iter().min().unwrap(), took.iter().max().unwrap());
        assert!(
            *least < AT_ONCE && *most < LEASE / 2,
            "{took:?}, with gateways {gateways:?}"
        );
    }
}

/// How long a coupled worker and its daemon live on after their BEAM is killed.
async fn kill_with_daemon(gateways: &[&str]) -> Duration {
    let mut beam = Beam::usual(gateways).await;
    beam.with_talker(&["--daemonize-child"]).await;
    let script = beam.dir().join("talker.py");
    eventually("the worker and its daemon are there", async || {
        (mentioning(&script).len() >= 2).then_some(())
    })
    .await;

    let start = Instant::now();
    beam.signal(Signal::KILL);
    let (took, _) = eventually("the worker and its daemon are gone", async || {
        mentioning(&script).is_empty().then(|| start.elapsed())
    })
    .await;
    eventually("nothing is left", async || {
        mentioning(beam.dir()).is_empty().then_some(())
    })
    .await;
    took
}

#[tokio::test]
async fn the_session_of_a_beam_that_hangs_ends_at_its_timeout_and_that_of_one_that_comes_back_goes_on()
 {
    let cluster = Cluster::start().await;
    let mut beam = Beam::usual(&[&cluster.gateway()]).await;
    beam.with_talker(&[]).await;
    let script = beam.dir().join("talker.py");

    // Half of the timeout is not enough.
    beam.signal(Signal::STOP);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    beam.signal(Signal::CONT);
    beam.call(10, "Echo", "body => <<\"still\">>").await;
    beam.until("{reply,10,{ok,").await;

    let start = Instant::now();
    beam.signal(Signal::STOP);
    let (took, _) = eventually("its worker is gone", async || {
        mentioning(&script).is_empty().then(|| start.elapsed())
    })
    .await;
    beam.signal(Signal::CONT);

    beam.until("{session,warning,").await;
    let lost = beam.until("{session,lost,").await;
    assert!(lost.contains("lease_expired"), "{lost}");
    // Its last renewal was a sixth of the lease before that at most, and what it takes to see and to kill is over at once.
    let (least, most) = (LEASE * 3 / 4, LEASE + Duration::from_secs(1));
    assert!((least..most).contains(&took), "{took:?} after it hung");
    beam.call(11, "Echo", "body => <<>>").await;
    let refused = beam.until("{reply,11,").await;
    assert!(
        refused.contains("LEASE_EXPIRED") && refused.contains("not_sent"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_beam_that_hangs_before_its_first_beat_is_seen_where_it_has_said_that_it_will() {
    let about = ", ttl => 2000, heartbeat_timeout => 2000, beats => true";
    let mut beam = Beam::said_hello(&[], about).await;
    beam.until("{welcome,").await;
    beam.until("{session,opened,").await;

    beam.until("{session,warning,").await;
    let lost = beam.until("{session,lost,").await;
    assert!(lost.contains("lease_expired"), "{lost}");

    // One that says nothing of beats may never beat.
    let mut beam = Beam::said_hello(&[], ", ttl => 1000, heartbeat_timeout => 1000").await;
    beam.until("{session,opened,").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    beam.say("{control, 9, ping, #{}}").await;
    beam.until("{reply,9,{ok,").await;
    assert_eq!(beam.count("{session,lost,"), 0);
}

#[tokio::test]
async fn of_an_id_that_is_used_twice_each_call_is_answered_once_and_the_second_can_be_cancelled() {
    let mut beam = Beam::usual(&[]).await;
    beam.with_talker(&[]).await;
    beam.call(10, "Hang", "body => <<>>").await;
    beam.call(10, "Hang", "body => <<>>").await;

    let first = beam.until("{reply,10,").await;
    assert!(first.contains("code => 1,"), "{first}");
    beam.say("{cancel, 10}").await;
    let second = beam.until("{reply,10,").await;
    assert!(second.contains("code => 1,"), "{second}");
    beam.call(11, "Echo", "body => <<>>").await;
    beam.until("{reply,11,").await;
    assert_eq!(beam.count("{reply,10,"), 2);
}

#[tokio::test]
async fn a_beam_that_says_anything_does_not_hang() {
    let mut beam = Beam::usual(&[]).await;
    beam.say("still").await;
    let start = Instant::now();
    // Well beyond its timeout, and the lease after that.
    for id in 10.. {
        beam.say(&format!("{{control, {id}, ping, #{{}}}}")).await;
        beam.until(&format!("{{reply,{id},{{ok,")).await;
        if start.elapsed() > 3 * LEASE {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(beam.count("{session,lost,"), 0);
    assert_eq!(beam.count("{session,warning,"), 0);

    beam.until("{session,lost,").await;
}

/// A gateway beside that of the cluster, which can be killed alone.
struct Beside {
    file: std::path::PathBuf,
    address: String,
    child: tokio::process::Child,
}

impl Beside {
    fn start(cluster: &Cluster, name: &str) -> Self {
        let socket = cluster.dir().join(name).join("gateway.sock");
        Self::at(cluster, name, &format!("unix:{}", socket.display()), "")
    }

    fn at(cluster: &Cluster, name: &str, address: &str, more: &str) -> Self {
        let at = |name: &str| format!("unix:{}", cluster.runtime().join(name).display());
        let text = format!(
            "[listen]\nruntime_dir = {:?}\ngateway = [{address:?}]\n{more}[connect]\narbiter = {:?}\ndiscovery = {:?}\n",
            cluster.dir().join(name).display().to_string(),
            at("arbiter.sock"),
            at("discovery.sock"),
        );
        let file = cluster.dir().join(format!("{name}.toml"));
        std::fs::write(&file, text).unwrap();
        let child = Self::run(&file);
        Self {
            file,
            address: address.to_owned(),
            child,
        }
    }

    fn run(file: &std::path::Path) -> tokio::process::Child {
        let log = std::fs::File::create(file.with_extension("log")).unwrap();
        tokio::process::Command::new(program("tether-gateway"))
            .arg("--config")
            .arg(file)
            .stdin(std::process::Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    async fn kill(&mut self) {
        kill(self.child.id().unwrap(), Signal::KILL);
        self.child.wait().await.unwrap();
    }

    fn again(&mut self) {
        self.child = Self::run(&self.file);
    }
}

#[tokio::test]
async fn a_gateway_that_is_killed_and_comes_back_costs_the_calls_it_had_and_no_event_is_missed_or_told_twice()
 {
    let cluster = Cluster::start().await;
    let mut gateway = Beside::start(&cluster, "one");
    let mut beam = Beam::usual(&[&gateway.address]).await;
    beam.with_talker(&[]).await;
    beam.say("{control, 3, logs, #{worker => {<<\"talk\">>, 0, 0}, follow => true}}")
        .await;
    beam.call(10, "Hang", "body => <<>>").await;
    beam.until("hangs").await;

    gateway.kill().await;
    beam.until("{connection,down,").await;
    let broken = beam.until("{reply,10,").await;
    assert!(
        broken.contains("code => 14") && broken.contains("outcome => unknown"),
        "{broken}"
    );
    // It waits for a connection, and its answer shows that there is one.
    beam.call(11, "Echo", "body => <<\"waits\">>, timeout => 30000")
        .await;
    let scaled = cluster.tether().run(&["pool", "scale", "talk", "2"]).await;
    assert_eq!(scaled.code, Some(0), "{}", scaled.err);
    gateway.again();

    beam.until("{reply,11,{ok,").await;
    assert_eq!(beam.count("{connection,up,"), 2);
    beam.say("{control, 12, pool_scale, #{name => <<\"talk\">>, size => 3}}")
        .await;
    beam.until("{reply,12,{ok,").await;
    while beam.count("<<\"WORKER_READY\">>") < 3 {
        beam.until("<<\"WORKER_READY\">>").await;
    }
    let told = revisions(&beam.said("{item,2,"));
    let lines = cluster
        .tether()
        .json_lines(&["events", "--pool", "talk"])
        .await;
    let all: Vec<u64> = lines
        .iter()
        .map(|event| event["revision"].as_u64().unwrap())
        .collect();
    assert_eq!(told, all[..told.len()]);
    assert_eq!(beam.count("{session,lost,"), 0);
}

fn revisions(items: &[String]) -> Vec<u64> {
    let of = |item: &String| {
        let (_, rest) = item.split_once("<<\"revision\">> => ")?;
        rest.split(',').next()?.parse().ok()
    };
    items.iter().filter_map(of).collect()
}

#[tokio::test]
async fn of_several_gateways_one_that_is_there_is_taken_and_another_when_it_goes() {
    let cluster = Cluster::start().await;
    let mut first = Beside::start(&cluster, "one");
    let second = Beside::start(&cluster, "two");
    let nobody = format!("unix:{}", cluster.dir().join("nobody.sock").display());
    let mut beam = Beam::usual(&[&nobody, &first.address, &second.address]).await;
    beam.with_talker(&[]).await;
    assert!(beam.said("{connection,up,")[0].contains("/one/"));

    first.kill().await;
    beam.call(10, "Echo", "body => <<\"on\">>, timeout => 20000")
        .await;

    beam.until("{reply,10,{ok,").await;
    assert!(beam.said("{connection,up,")[1].contains("/two/"));
    // The session goes on over the other one too.
    until_renewed(&mut beam).await;
    beam.call(11, "Echo", "body => <<\"on\">>").await;
    beam.until("{reply,11,{ok,").await;
    assert_eq!(beam.count("{session,lost,"), 0);
}

#[tokio::test]
async fn a_gateway_whose_arbiter_is_away_is_left_for_another() {
    let mut away = Cluster::start().await;
    let cluster = Cluster::start().await;
    let first = Beside::start(&away, "one");
    away.kill().await;
    let second = Beside::start(&cluster, "two");

    let options = ", ttl => 4000, heartbeat_timeout => 4000";
    let mut beam = Beam::with(&[&first.address, &second.address], options).await;

    beam.until("{session,opened,").await;
}

/// Waits until the arbiter has had another beat of the only session.
async fn until_renewed(beam: &mut Beam) {
    let start = Instant::now();
    let mut before = u64::MAX;
    for id in 1_000.. {
        beam.say(&format!("{{control, {id}, session_list, #{{}}}}"))
            .await;
        let listed = beam.until(&format!("{{reply,{id},")).await;
        let (_, left) = listed.split_once("<<\"remaining_ms\">> => ").unwrap();
        let digits = left.find(|letter: char| !letter.is_ascii_digit()).unwrap();
        let left: u64 = left[..digits].parse().unwrap();
        if left > before {
            return;
        }
        before = left;
        assert!(start.elapsed() < 3 * LEASE, "it is not renewed: {listed}");
    }
}

#[tokio::test]
async fn gateways_are_found_by_name_and_known_by_their_certificates() {
    let cluster = Cluster::start().await;
    let certificates = Certificates::make(cluster.dir(), &[Ipv4Addr::LOCALHOST.into()]);
    let file = |name: &str| certificates.file(name).display().to_string();
    // Nobody else takes it in the moment between.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let tls = format!(
        "[listen.tls]\ncertificate = {:?}\nkey = {:?}\nclient_ca = {:?}\n",
        file("server.pem"),
        file("server.key"),
        file("ca.pem")
    );
    let _gateway = Beside::at(&cluster, "one", &format!("https://127.0.0.1:{port}"), &tls);

    let tls = format!(
        ", ttl => 4000, heartbeat_timeout => 4000, tls => #{{ca => <<{:?}>>, cert => <<{:?}>>, key => <<{:?}>>, name => <<\"127.0.0.1\">>}}",
        file("ca.pem"),
        file("client.pem"),
        file("client.key")
    );
    let mut beam = Beam::with(&[&format!("dns:localhost:{port}")], &tls).await;
    beam.until("{session,opened,").await;
    beam.with_talker(&[]).await;
    beam.call(10, "Echo", "body => <<\"in private\">>").await;

    beam.until("{reply,10,{ok,").await;
}

#[tokio::test]
async fn services_of_its_own_may_listen_elsewhere_too() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("gateway.sock");
    let config = format!(
        ", heartbeat_timeout => 4000, config => #{{listen => #{{gateway => [<<\"unix:{}\">>]}}}}",
        socket.display()
    );

    let mut beam = Beam::with(&[], &config).await;

    beam.until("{session,opened,").await;
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok());
}

#[tokio::test]
async fn what_is_no_frame_is_refused_in_words() {
    for (raw, reason) in [
        ("<<\"garbage\">>", "NOT_A_TERM"),
        ("<<131, 108, 255, 255, 255, 255, 106>>", "NOT_A_TERM"),
        ("<<131, 97, 1>>", "NOT_UNDERSTOOD"),
        ("<<>>", "NOT_A_TERM"),
    ] {
        let mut beam = Beam::start();
        beam.say(&format!("{{raw, {raw}}}")).await;

        let refused = beam.until("{refused,").await;

        assert!(refused.contains(reason), "{raw}: {refused}");
        beam.until("{exit,1}").await;
    }
    let mut beam = Beam::start();
    beam.say("{hello, #{version => 2, owner => <<\"beam\">>, heartbeat_timeout => 1000}}")
        .await;
    let refused = beam.until("{refused,").await;
    assert!(refused.contains("belong together"), "{refused}");
}
