//! Workers that are services of supervisord and runit: real ones, with the digits worker as their service.

#![allow(clippy::unwrap_used, reason = "test helpers outside of test functions")]

use std::{fs, path::PathBuf};

use rustix::process::Signal;
use tether_proto::common::WorkerPhase;
use tether_tests::{
    Cluster, Owner, Process, Setup,
    digits::PredictRequest,
    digits_client, eventually, example, held_out, kill, marked, python,
    supervisor::{Kind, Services, Supervisor},
};

/// Names of services, one for each place.
const SERVICES: [&str; 2] = ["digits-1", "digits-2"];

/// Of one service: the worker, and what it daemonises.
const PROCESSES: usize = 3;

/// A supervisor with those services, which it does not start by itself, and a cluster whose agent may use it.
struct Stage {
    cluster: Cluster,
    supervisor: Supervisor,
    kind: Kind,
    dir: tempfile::TempDir,
}

impl Stage {
    async fn new(kind: Kind) -> Self {
        Self::with(kind, "export TETHER_KEPT=$PWD").await
    }

    /// Services of runit whose `run` begins like this.
    async fn with(kind: Kind, first: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("tether-")
            .tempdir()
            .unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::write(
            at("digits.sh"),
            format!(
                "setsid sh -c 'trap \"\" TERM; while :; do sleep 600; done' &\nexec {python} {worker} --listen \"$1\"\n",
                python = python().display(),
                worker = example("digits").join("worker.py").display(),
            ),
        )
        .unwrap();
        let mut services = Services::new(kind, dir.path()).unwrap();
        for name in SERVICES {
            let command = format!(
                "sh {} unix:{}",
                at("digits.sh"),
                at(&format!("{name}.sock"))
            );
            services = match kind {
                Kind::Supervisord => services.add(
                    name,
                    &format!(
                        "[program:{name}]\ncommand={command}\nautostart=false\nautorestart=true\nstartsecs=0\nstopwaitsecs=5\n"
                    ),
                ),
                Kind::Runit => {
                    let run = format!("#!/bin/sh\n{first}\nexec {command} 2>/dev/null\n");
                    let finish = "#!/bin/sh\necho \"$1 $2\" >supervise/tether-end\n";
                    services
                        .add(name, &run)
                        .and_then(|services| services.script(name, "finish", finish))
                        .and_then(|services| services.script(name, "down", ""))
                }
            }
            .unwrap();
        }
        let supervisor = services.start().await.unwrap();
        let cluster = Setup::default()
            .set("agent.supervisord.socket", &at("supervisor.sock"))
            .set("agent.runit.directory", &at("services"))
            .start()
            .await;
        Self {
            cluster,
            supervisor,
            kind,
            dir,
        }
    }

    fn pool(&self, size: usize, more: &str) -> PathBuf {
        self.pool_with(size, more, "")
    }

    /// The same with more lines of its template.
    fn pool_with(&self, size: usize, more: &str, lines: &str) -> PathBuf {
        let dir = self.dir.path().display();
        let launcher = self.kind.name();
        let text = format!(
            "[template.digits]\nservice = {{ name = \"digits-{{1..2}}\", address = \"unix:{dir}/digits-{{instance}}.sock\"{more} }}\n{lines}[pool.digits]\ntemplate = \"digits\"\nmode = \"supervised\"\nsize = {size}\n[pool.digits.policy]\nlauncher = {launcher:?}\n"
        );
        let file = self.dir.path().join("pool.toml");
        fs::write(&file, text).unwrap();
        file
    }

    /// The main process of a service, as its supervisor knows it.
    async fn main_of(&self, name: &str) -> Option<u32> {
        let said = match self.kind {
            Kind::Supervisord => self.supervisor.say(&["pid", name]).await.unwrap().out,
            Kind::Runit => {
                let file = self
                    .dir
                    .path()
                    .join(format!("services/{name}/supervise/pid"));
                fs::read_to_string(file).unwrap_or_default()
            }
        };
        said.trim().parse().ok().filter(|pid| *pid > 0)
    }

    fn processes(&self, name: &str) -> Vec<Process> {
        let mark = match self.kind {
            Kind::Supervisord => format!("SUPERVISOR_PROCESS_NAME={name}"),
            Kind::Runit => format!("TETHER_KEPT={}/services/{name}", self.dir.path().display()),
        };
        let ours = format!("TETHER_TEST={}", self.dir.path().display());
        let ours = marked(&ours);
        let mut found = marked(&mark);
        found.retain(|process| ours.contains(process));
        found
    }

    fn lives(&self, pid: u32) -> bool {
        let ours = marked(&format!("TETHER_TEST={}", self.dir.path().display()));
        ours.iter().any(|process| process.pid == pid)
    }

    /// Waits until as many are ready, and a call succeeds.
    async fn serves(&self, size: usize) {
        eventually("all are ready", async || {
            let workers = self.cluster.workers("digits").await;
            let ready = workers
                .iter()
                .filter(|worker| worker.phase() == WorkerPhase::Ready);
            (ready.count() == size).then_some(())
        })
        .await;
        let mut client = digits_client(self.cluster.client().channel(), "digits");
        let digit = held_out(1).remove(0);
        // One may have just died under a call.
        eventually("they answer", async || {
            let pixels = digit.pixels.clone();
            client.predict(PredictRequest { pixels }).await.ok()
        })
        .await;
    }

    async fn first_death(&self) -> serde_json::Value {
        let (death, _) = eventually("its death is told", async || {
            let events = self.cluster.tether().json_lines(&["events"]).await;
            let mut events = events.into_iter();
            events.find(|event| event["kind"] == "WORKER_DIED")
        })
        .await;
        death
    }

    async fn remove_pool(&self) {
        let ran = self.cluster.tether().run(&["pool", "rm", "digits"]).await;
        assert_eq!(ran.code, Some(0), "{}", ran.err);
    }
}

async fn a_service_is_started_followed_adopted_and_stopped(kind: Kind) {
    let mut stage = Stage::new(kind).await;
    assert_eq!(stage.main_of("digits-1").await, None);
    let file = stage.pool(2, "");
    let owner = Owner::with_pool(&stage.cluster, "beam", &file).await;
    stage.serves(2).await;
    let first = stage.main_of("digits-1").await.unwrap();
    let other = stage.main_of("digits-2").await.unwrap();
    assert_eq!(stage.processes("digits-1").len(), PROCESSES);

    // The supervisor starts it anew, and the owner is told of the end of the first.
    kill(first, Signal::KILL);
    let death = stage.first_death().await;
    assert_eq!(death["death"]["signal"], 9, "{death}");
    let detail = death["death"]["detail"].as_str().unwrap();
    assert!(detail.contains(kind.name()), "{death}");
    let (second, _) = eventually("it runs again", async || {
        stage.main_of("digits-1").await.filter(|pid| *pid != first)
    })
    .await;
    stage.serves(2).await;
    eventually("of the first nothing is left", async || {
        (stage.processes("digits-1").len() == PROCESSES).then_some(())
    })
    .await;

    // An agent that is killed takes nothing with it, and the next one goes on.
    stage.cluster.kill().await;
    stage.cluster.up().await;
    stage.serves(2).await;
    let now = (
        stage.main_of("digits-1").await,
        stage.main_of("digits-2").await,
    );
    assert_eq!(now, (Some(second), Some(other)));

    drop(owner);
    stage.remove_pool().await;
    eventually("nothing is left of the services", async || {
        let left = SERVICES.map(|name| stage.processes(name).len());
        (left == [0, 0]).then_some(())
    })
    .await;
    assert_eq!(stage.main_of("digits-1").await, None);
}

#[tokio::test]
async fn a_program_of_supervisord_is_started_followed_adopted_and_stopped() {
    a_service_is_started_followed_adopted_and_stopped(Kind::Supervisord).await;
}

#[tokio::test]
async fn a_service_of_runit_is_started_followed_adopted_and_stopped() {
    a_service_is_started_followed_adopted_and_stopped(Kind::Runit).await;
}

async fn what_runs_is_joined(kind: Kind) {
    let stage = Stage::new(kind).await;
    let start = match kind {
        Kind::Supervisord => "start",
        Kind::Runit => "up",
    };
    stage.supervisor.say(&[start, "digits-1"]).await.unwrap();
    let (before, _) = eventually("it runs", async || stage.main_of("digits-1").await).await;
    let file = stage.pool(1, ", connect_only = true");
    let owner = Owner::with_pool(&stage.cluster, "beam", &file).await;
    stage.serves(1).await;
    assert_eq!(stage.main_of("digits-1").await, Some(before));

    // Nor is it stopped.
    drop(owner);
    stage.remove_pool().await;
    eventually("the pool is gone", async || {
        let pools = stage.cluster.tether().json(&["pool", "ls"]).await;
        pools.as_array().unwrap().is_empty().then_some(())
    })
    .await;
    assert_eq!(stage.main_of("digits-1").await, Some(before));
    assert_eq!(stage.processes("digits-1").len(), PROCESSES);
}

#[tokio::test]
async fn a_running_program_of_supervisord_is_only_connected_to() {
    what_runs_is_joined(Kind::Supervisord).await;
}

#[tokio::test]
async fn a_running_service_of_runit_is_only_connected_to() {
    what_runs_is_joined(Kind::Runit).await;
}

/// supervisord and runsv leave what they run behind when they are killed: what their services came to be is ended all
/// the same, since the keeper holds the process itself.
async fn the_end_of_the_supervisor_orphans_nothing(kind: Kind) {
    let stage = Stage::new(kind).await;
    let file = stage.pool(1, "");
    let owner = Owner::with_pool(&stage.cluster, "beam", &file).await;
    stage.serves(1).await;
    let main = stage.main_of("digits-1").await.unwrap();
    let keeper = stage.supervisor.keeper_of(main).unwrap();
    // Else it starts another runsv.
    let root = stage.supervisor.pid().unwrap();
    kill(root, Signal::KILL);
    if keeper != root {
        kill(keeper, Signal::KILL);
    }

    stage.serves(1).await;
    assert_eq!(stage.processes("digits-1").len(), PROCESSES);
    drop(owner);
    stage.remove_pool().await;
    eventually("nothing is left of the service", async || {
        stage.processes("digits-1").is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_program_whose_supervisord_was_killed_is_ended_all_the_same() {
    the_end_of_the_supervisor_orphans_nothing(Kind::Supervisord).await;
}

#[tokio::test]
async fn a_service_whose_runsv_was_killed_is_ended_all_the_same() {
    the_end_of_the_supervisor_orphans_nothing(Kind::Runit).await;
}

/// Both have been told to start their services again, and the arbiter does not want another incarnation.
async fn the_next_run_waits_for_the_arbiter(kind: Kind) {
    let stage = Stage::new(kind).await;
    let file = stage.pool_with(1, "", "restart = { mode = \"never\" }\n");
    let owner = Owner::with_pool(&stage.cluster, "beam", &file).await;
    stage.serves(1).await;
    kill(stage.main_of("digits-1").await.unwrap(), Signal::KILL);

    let death = stage.first_death().await;

    assert_eq!(death["death"]["signal"], 9, "{death}");
    let left = stage.processes("digits-1");
    assert!(left.is_empty(), "{left:?}");
    let said = stage.supervisor.say(&["status", "digits-1"]).await.unwrap();
    let rests = match kind {
        Kind::Supervisord => ["STOPPED", "EXITED"],
        Kind::Runit => ["down: ", "down: "],
    };
    assert!(rests.iter().any(|word| said.out.contains(word)), "{said:?}");
    // Wanted up by runsv, it would be about to be.
    assert!(!said.out.contains("want up"), "{said:?}");
    drop(owner);
}

#[tokio::test]
async fn the_next_run_of_a_program_waits_for_the_arbiter() {
    the_next_run_waits_for_the_arbiter(Kind::Supervisord).await;
}

#[tokio::test]
async fn the_next_run_of_a_runit_service_waits_for_the_arbiter() {
    the_next_run_waits_for_the_arbiter(Kind::Runit).await;
}

/// The next runsv knows nothing of what the one before ran, and the process does not say whose it is.
#[tokio::test]
async fn a_service_whose_runsv_is_replaced_runs_once() {
    let stage = Stage::with(Kind::Runit, "").await;
    let file = stage.pool(1, "");
    let owner = Owner::with_pool(&stage.cluster, "beam", &file).await;
    stage.serves(1).await;
    let main = stage.main_of("digits-1").await.unwrap();

    kill(stage.supervisor.keeper_of(main).unwrap(), Signal::KILL);

    eventually("another one runs", async || {
        stage.main_of("digits-1").await.filter(|pid| *pid != main)
    })
    .await;
    assert!(
        !stage.lives(main),
        "process {main} of before runs beside it"
    );
    stage.serves(1).await;
    drop(owner);
    stage.remove_pool().await;
}

/// Everybody is gone who held the process, or knew of it.
async fn the_next_agent_ends_what_nobody_holds(kind: Kind) {
    let mut stage = Stage::new(kind).await;
    let file = stage.pool(1, "");
    let owner = Owner::with_pool(&stage.cluster, "beam", &file).await;
    stage.serves(1).await;
    let main = stage.main_of("digits-1").await.unwrap();
    let keeper = stage.cluster.workers("digits").await[0].pid;
    let runs_it = stage.supervisor.keeper_of(main).unwrap();
    let root = stage.supervisor.pid().unwrap();

    stage.cluster.kill().await;
    kill(root, Signal::KILL);
    if runs_it != root {
        kill(runs_it, Signal::KILL);
    }
    kill(keeper, Signal::KILL);
    assert!(stage.lives(main));

    stage.cluster.up().await;
    eventually("nothing is left of the service", async || {
        stage.processes("digits-1").is_empty().then_some(())
    })
    .await;
    assert!(!stage.lives(main));
    drop(owner);
    stage.remove_pool().await;
}

#[tokio::test]
async fn the_next_agent_ends_a_program_that_nobody_holds() {
    the_next_agent_ends_what_nobody_holds(Kind::Supervisord).await;
}

#[tokio::test]
async fn the_next_agent_ends_a_runit_service_that_nobody_holds() {
    the_next_agent_ends_what_nobody_holds(Kind::Runit).await;
}

#[tokio::test]
async fn a_launcher_that_no_agent_offers_is_refused_with_what_to_do() {
    let cluster = Setup::default()
        .set("agent.supervisord.socket", "/nowhere/supervisor.sock")
        .set("agent.runit.directory", "/nowhere/service")
        .start()
        .await;
    for launcher in ["supervisord", "runit"] {
        let file = cluster.dir().join("pool.toml").display().to_string();
        let text = format!(
            "[template.t]\nservice = {{ name = \"t-*\", address = \"127.0.0.1:5{{instance}}\" }}\n[pool.p]\ntemplate = \"t\"\nmode = \"supervised\"\nsize = 1\n[pool.p.policy]\nlauncher = {launcher:?}\n"
        );
        fs::write(&file, text).unwrap();
        let args = ["pool", "apply", "--file", &file, "--owner", "beam"];
        let refused = cluster.tether().run(&args).await;
        assert_ne!(refused.code, Some(0));
        let told = format!("no agent offers launcher `{launcher}`");
        assert!(refused.err.contains(&told), "{}", refused.err);
        let why = format!("launcher=\"{launcher}\"");
        assert!(cluster.log().contains(&why), "{}", cluster.log());
    }
}
