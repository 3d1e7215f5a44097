//! Services of runit: what runsv writes into `supervise/status`, and what it takes from `supervise/control`.
//!
//! runsv tells nobody how a service ended but its `finish`, so that one that writes down what it was told counts first
//! (`echo "$1 $2" >supervise/tether-end`), then what the kernel says. Where runsv is killed, its service runs on: it is
//! then held by its process alone, and signalled there.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    process::Signal,
};
use tether_sys::Exit;
use tokio::time::{Instant, sleep};

use super::{
    Errand, Part,
    kin::{Kin, Mark, Moment},
    last_word::{End, How},
    supervisor::{ANSWERS_OF_KNOWN, State, Supervisor},
    watched::{self, Watched},
};

/// What a `finish` leaves of the two numbers that it was told.
const FINISHED: &str = "tether-end";

/// Longest time for runsv to take up what it was told.
const TAKEN_UP: Duration = Duration::from_secs(10);

const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// One service.
pub(crate) struct RunitService {
    supervise: PathBuf,
    name: String,
    connect_only: bool,
    dir: PathBuf,
    part: Part,
    main: Option<Watched>,
    /// Whether runsv was to keep it up when it was last seen to run.
    was_wanted: bool,
    kin: Kin,
}

impl RunitService {
    pub(crate) fn connect(errand: &Errand, dir: &Path, part: Part) -> io::Result<Self> {
        let service = directory(Path::new(&errand.at), &errand.name)?;
        // As `$PWD` has it in its `run`.
        let own = fs::canonicalize(&service).ok();
        let mark = own.map(|own| Mark::Says(format!("TETHER_KEPT={}", own.display())));
        Ok(Self {
            supervise: service.join("supervise"),
            name: errand.name.clone(),
            connect_only: errand.connect_only,
            dir: dir.to_owned(),
            part,
            main: Watched::recall(dir),
            was_wanted: false,
            kin: Kin::of(mark.into_iter().collect()),
        })
    }

    /// Whether there is a runsv to talk to.
    fn is_kept(&self) -> io::Result<bool> {
        match open(&self.supervise.join("ok")) {
            Ok(_) => Ok(true),
            Err(Errno::NXIO | Errno::NOENT) => Ok(false),
            Err(error) => Err(self.refused(error.into())),
        }
    }

    fn status(&self) -> io::Result<Status> {
        let bytes = fs::read(self.supervise.join("status"));
        let bytes = bytes.map_err(|error| self.refused(error))?;
        Status::parse(&bytes).ok_or_else(|| {
            let at = self.supervise.display();
            io::Error::other(format!("`{at}/status` is not as runit writes it"))
        })
    }

    fn refused(&self, error: io::Error) -> io::Error {
        let (at, name) = (self.supervise.display(), &self.name);
        let advice = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "have the agent run as root, or give `supervise` and what is in it to its user"
            }
            _ => {
                "see that there is such a directory with a `run`, and that runsvdir runs on what is above it"
            }
        };
        io::Error::new(
            error.kind(),
            format!("cannot reach the runit service `{name}` at `{at}` ({error}): {advice}"),
        )
    }

    /// Tells runsv; false where there is none.
    fn tell(&self, what: &[u8]) -> io::Result<bool> {
        match open(&self.supervise.join("control")) {
            Ok(mut control) => control.write_all(what).map(|()| true),
            Err(Errno::NXIO | Errno::NOENT) => Ok(false),
            Err(error) => Err(self.refused(error.into())),
        }
    }

    async fn until(&self, is: impl Fn(&Status) -> bool) -> io::Result<()> {
        let within = self.main.as_ref().map_or(TAKEN_UP, |_| ANSWERS_OF_KNOWN);
        let until = Instant::now() + within;
        while !is(&self.status()?) {
            if Instant::now() > until {
                let why = format!("runsv of `{}` does not do what it is told", self.name);
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// How the run ended that was watched; none where none was.
    fn ended(&mut self, is_wanted: bool) -> Option<End> {
        let main = self.main.take()?;
        let exit = self.finished(&main).or_else(|| main.exit());
        let end = match exit {
            Some(exit) => {
                let how = match exit {
                    Exit::Code(code) => format!("exit status {code}"),
                    Exit::Signal(signal) => format!("signal {signal}"),
                };
                watched::end(exit, format!("runit: {how}"))
            }
            None => End::new(
                How::Signaled(0),
                "runit: it ended, and neither its `finish` nor the kernel says how",
            ),
        };
        if self.was_wanted && !is_wanted {
            return Some(End::new(
                How::Stopped,
                format!("{}, after somebody had it stopped", end.said),
            ));
        }
        Some(end)
    }

    /// What its `finish` was told, where it has written that down since.
    fn finished(&self, main: &Watched) -> Option<Exit> {
        let file = self.supervise.join(FINISHED);
        let written = fs::metadata(&file).ok()?.modified().ok()?;
        (written >= main.since).then_some(())?;
        exit_told(&fs::read_to_string(file).ok()?)
    }

    async fn state(&mut self) -> io::Result<State> {
        let now = Moment::now();
        if !self.is_kept()? {
            return match &self.main {
                Some(main) if !main.has_ended() => Ok(State::Runs(main.life("runsv is gone"))),
                Some(_) => {
                    // Before its end is told, should this be dropped.
                    self.end_kin(now).await;
                    let end = self.ended(true);
                    Ok(State::Rests(end))
                }
                None => {
                    if matches!(self.part, Part::End) {
                        self.end_kin(now).await;
                    }
                    Ok(State::Rests(None))
                }
            };
        }
        let status = self.status()?;
        // One that has ended is told once runsv has reaped it: the kernel does not say how before.
        let is_same = |main: &Watched| main.pid == status.pid && main.has_its_number();
        match status.stage {
            Stage::Run if self.main.as_ref().is_some_and(is_same) => {}
            // Another run, or none any more: the one before is told first.
            Stage::Run if self.main.is_some() => {
                let is_next = |main: &Watched| main.pid != status.pid;
                let until = match self.main.as_ref().is_some_and(is_next) {
                    true => now.or_start_of(status.pid),
                    false => now,
                };
                self.leave_nothing().await;
                let end = self.ended(status.is_wanted);
                self.end_kin(until).await;
                return Ok(State::Waits(end));
            }
            Stage::Run => {
                self.main = Watched::open(status.pid)?;
                if let Some(main) = &self.main {
                    main.remember(&self.dir);
                }
            }
            Stage::Finish => {
                let asked = self.was_wanted && !status.is_wanted;
                return Ok(match &self.main {
                    Some(main) => State::Ends {
                        life: main.life(""),
                        asked,
                    },
                    None => State::Waits(None),
                });
            }
            Stage::Down => {
                self.leave_nothing().await;
                let end = self.ended(status.is_wanted);
                self.end_kin(now).await;
                return Ok(match status.is_wanted {
                    true => State::Waits(end),
                    false => State::Rests(end),
                });
            }
        }
        let Some(main) = &self.main else {
            return Ok(State::Waits(None));
        };
        if status.is_told_to_end {
            let life = main.life("");
            return Ok(State::Ends { life, asked: true });
        }
        self.was_wanted = status.is_wanted;
        self.kin.look(main.pid);
        Ok(State::Runs(main.life(self.kin.said())))
    }

    /// A runsv that came after one that was killed knows nothing of what that one ran.
    async fn leave_nothing(&mut self) {
        if let Some(main) = self.main.as_ref().filter(|_| !self.connect_only)
            && main.leave_nothing().await
        {
            // What it wants by now is no order of anybody's.
            self.was_wanted = false;
        }
    }

    async fn end_kin(&mut self, now: Moment) {
        if !self.connect_only {
            self.kin.end(now).await;
        }
    }
}

impl Supervisor for RunitService {
    async fn look(&mut self) -> io::Result<State> {
        self.state().await
    }

    async fn changed(&mut self) {
        watched::changed(self.main.as_ref()).await;
    }

    async fn start(&mut self) -> io::Result<()> {
        if !self.tell(b"u")? {
            let at = self.supervise.display();
            let why = format!(
                "no runsv runs on `{at}`: see that runsvdir does, and that `run` is there and executable"
            );
            return Err(io::Error::new(io::ErrorKind::NotFound, why));
        }
        // Until it has begun it has no process by which it could be held, should runsv be killed then. A runsv that has
        // just come listens before it has `ok`, by which it is known to be there.
        let has_begun = |status: &Status| {
            status.is_wanted && status.stage != Stage::Down && matches!(self.is_kept(), Ok(true))
        };
        self.until(has_begun).await
    }

    async fn stop(&mut self) -> io::Result<()> {
        self.kin.may_have_more();
        if self.tell(b"d")? {
            match self.until(|status| !status.is_wanted).await {
                // One that hangs.
                Err(error) if error.kind() == io::ErrorKind::TimedOut && self.main.is_some() => {}
                taken_up => return taken_up,
            }
        }
        if let Some(main) = &self.main {
            main.signal(Signal::TERM);
        }
        Ok(())
    }

    async fn kill(&mut self) -> io::Result<()> {
        self.tell(b"dk")?;
        if let Some(main) = &self.main {
            main.signal(Signal::KILL);
        }
        Ok(())
    }
}

/// Whether services can be had in this directory.
///
/// # Errors
/// Says what is missing and how to get it.
pub(crate) fn check(directory: &Path) -> Result<(), String> {
    let at = directory.display();
    let services = fs::read_dir(directory).map_err(|error| {
        format!("cannot look into `{at}` ({error}): set `agent.runit.directory` to where runsvdir has its services")
    })?;
    let mut services = services.flatten();
    match services.any(|service| open(&service.path().join("supervise/ok")).is_ok()) {
        true => Ok(()),
        false => Err(format!(
            "no runsv that this user may talk to has a service in `{at}`: start runsvdir, have the agent run as root, or set `agent.runit.directory`"
        )),
    }
}

/// The service's own; its name may not lead out of where services are.
fn directory(services: &Path, name: &str) -> io::Result<PathBuf> {
    if name.contains('/') || name.starts_with('.') {
        let why = format!("`{name}` is no name of a runit service: it is that of its directory");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    Ok(services.join(name))
}

/// Opens a fifo for writing, which only succeeds while somebody reads.
fn open(fifo: &Path) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(fifo, flags, Mode::empty()).map(File::from)
}

/// What runsv says of its service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Status {
    pid: u32,
    /// Whether it is to be kept up.
    is_wanted: bool,
    /// Whether it was sent SIGTERM.
    is_told_to_end: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Down,
    Run,
    Finish,
}

impl Status {
    /// 20 bytes: the time of the last change in twelve, the process id in four, whether it is stopped, what is wanted,
    /// whether SIGTERM was sent, and what it does.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 20] = bytes.try_into().ok()?;
        let pid = [bytes[12], bytes[13], bytes[14], bytes[15]];
        Some(Self {
            pid: u32::from_le_bytes(pid),
            is_wanted: bytes[17] == b'u',
            is_told_to_end: bytes[18] != 0,
            stage: match bytes[19] {
                0 => Stage::Down,
                1 => Stage::Run,
                2 => Stage::Finish,
                _ => return None,
            },
        })
    }
}

/// The numbers that a `finish` is told: the exit status, or -1, and the signal.
fn exit_told(text: &str) -> Option<Exit> {
    let (code, low) = text.trim_end().split_once(' ')?;
    let (code, low): (i32, i32) = (code.parse().ok()?, low.parse().ok()?);
    Some(match code {
        -1 => Exit::Signal(low & 0x7f),
        code => Exit::Code(code),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_as_runsv_writes_it() {
        let mut bytes = [0_u8; 20];
        bytes[12..16].copy_from_slice(&70_000_u32.to_le_bytes());
        bytes[17] = b'u';
        bytes[19] = 1;
        let status = Status::parse(&bytes).unwrap();

        assert_eq!((status.pid, status.stage), (70_000, Stage::Run));
        assert!(status.is_wanted && !status.is_told_to_end);
        assert_eq!(Status::parse(&bytes[1..]), None);
        bytes[19] = 3;
        assert_eq!(Status::parse(&bytes), None);
    }

    #[test]
    fn what_finish_was_told_is_an_exit_or_a_signal() {
        assert_eq!(exit_told("3 0\n"), Some(Exit::Code(3)));
        assert_eq!(exit_told("-1 9\n"), Some(Exit::Signal(9)));
        assert_eq!(exit_told("-1 139"), Some(Exit::Signal(11)), "with a core");
        assert_eq!(exit_told(""), None);
    }

    #[test]
    fn a_name_stays_where_services_are() {
        let services = Path::new("/etc/service");
        assert!(directory(services, "../x").is_err() && directory(services, ".").is_err());
        assert_eq!(directory(services, "w-1").unwrap(), services.join("w-1"));
    }

    #[test]
    fn a_directory_without_services_is_refused_with_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let why = check(dir.path()).unwrap_err();
        assert!(why.contains("start runsvdir"), "{why}");
        let why = check(&dir.path().join("none")).unwrap_err();
        assert!(why.contains("agent.runit.directory"), "{why}");
    }
}
