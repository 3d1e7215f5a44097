//! The driver of keepers: has done what is decided, and hears meanwhile what changes that.
//!
//! A supervisor may hang in any of what it is asked. So nothing is waited for alone: what a service is to have done next is
//! dropped where its worker is to end, or is to be killed.

use std::{io, os::unix::net::UnixDatagram, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};

use super::{
    Errand,
    last_word::End,
    own_dir, patience,
    plan::{Next, Plan},
    supervisor::{Life, State, Supervisor},
};

/// Between two kills of what does not end: time to see whether it has.
const KILL_AGAIN: Duration = Duration::from_secs(2);

/// Has a service ended, and comes back when it does not run.
pub(super) async fn end(errand: &Errand, mut service: impl Supervisor) -> io::Result<()> {
    if errand.connect_only {
        return Ok(());
    }
    let mut kill_at = Instant::now() + Duration::from_millis(errand.patience_ms);
    let mut next = Next::Stop;
    loop {
        next = tokio::select! {
            seen = perform(&next, &mut service) => match seen? {
                Some(State::Rests(_)) => return Ok(()),
                Some(_) => Next::Wait,
                None => Next::Look,
            },
            () = sleep_until(kill_at) => {
                kill_at = Instant::now() + KILL_AGAIN;
                Next::Kill
            }
        };
    }
}

/// Stands for a service: does what the plan says, hears meanwhile that the worker is to end, and tells the agent.
pub(super) async fn keep(errand: &Errand, mut service: impl Supervisor) -> io::Result<Option<End>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut plan = Plan::new(errand.connect_only);
    let mut kill_at: Option<Instant> = None;
    let mut next = Next::Look;
    loop {
        match &next {
            Next::Over(end) => return Ok(Some(end.clone())),
            Next::Done => return Ok(None),
            Next::Began(life, ready) => tell(errand, life, *ready),
            // Again, for an agent that has come since.
            Next::Wait => plan
                .life()
                .into_iter()
                .for_each(|(life, ready)| tell(errand, life, ready)),
            Next::Stop => {
                // Should that fail, or this be killed meanwhile, it is known how the worker ended.
                if let Some(end) = plan.ended() {
                    let _ = end.write(&own_dir());
                }
                kill_at.get_or_insert_with(|| Instant::now() + patience(errand));
            }
            Next::Look | Next::Start | Next::Kill => {}
        }
        // What a supervisor that hangs is asked does not keep anything else from being heard.
        next = tokio::select! {
            biased;
            _ = terminate.recv() => {
                // From here on its shim counts as well.
                let at = Instant::now() + patience(errand);
                kill_at = Some(kill_at.map_or(at, |before| before.min(at)));
                plan.on_stop()
            }
            () = until(kill_at) => {
                kill_at = Some(Instant::now() + KILL_AGAIN);
                Next::Kill
            }
            seen = perform(&next, &mut service) => match seen? {
                Some(state) => plan.on_look(state),
                None => Next::Look,
            },
        };
    }
}

/// Has that done for a service, and tells how it stands where it was looked at.
async fn perform(next: &Next, service: &mut impl Supervisor) -> io::Result<Option<State>> {
    match next {
        Next::Look => return service.look().await.map(Some),
        Next::Start => service.start().await?,
        Next::Stop => service.stop().await?,
        Next::Kill => service.kill().await?,
        Next::Wait | Next::Began(..) => service.changed().await,
        Next::Over(_) | Next::Done => {}
    }
    Ok(None)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Tells the agent which process it is about, and that its supervisor counts it as started, as in sd_notify(3).
fn tell(errand: &Errand, life: &Life, ready: bool) {
    let Some(agent) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let ready = if ready { "READY=1\n" } else { "" };
    let Errand { launcher, name, .. } = errand;
    let Life { pid, said, .. } = life;
    let comma = if said.is_empty() { "" } else { ", " };
    let text =
        format!("{ready}MAINPID={pid}\nSTATUS={launcher}: {name}, process {pid}{comma}{said}");
    // An agent that is away asks anew when it is back.
    let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(text.as_bytes(), agent));
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        os::unix::net::UnixListener,
        process::{Command, Stdio},
    };

    use rustix::process::Signal;
    use tokio::time::timeout;

    use super::{
        super::{
            Part,
            supervisord::Program,
            watched::{self, Watched},
        },
        *,
    };

    #[tokio::test]
    async fn the_end_is_heard_while_a_supervisor_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s.sock");
        let _silent = UnixListener::bind(&socket).unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "trap '' TERM; echo; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = child.stdout.take().unwrap();
        BufReader::new(said).read_line(&mut String::new()).unwrap();
        let main = Watched::open(child.id()).unwrap().unwrap();
        main.remember(dir.path());
        let keeper = Watched::open(std::process::id()).unwrap().unwrap();
        let errand = Errand::of_program(&socket);
        let program = Program::connect(&errand, dir.path(), Part::Keep);

        // Each answer alone is waited for longer than the service has.
        let ended = async {
            keeper.signal(Signal::TERM);
            while !main.has_ended() {
                watched::changed(Some(&main)).await;
            }
        };
        tokio::select! {
            biased;
            kept = keep(&errand, program) => panic!("it may be started again: {kept:?}"),
            ended = timeout(Duration::from_secs(5), ended) => ended.unwrap(),
        }

        child.wait().unwrap();
    }
}
