//! Starts the worker: everything that can be prepared is prepared before the fork.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};
use tether_shim_protocol::{Launch, SpawnFailure, Stage};
use tether_sys::Birth;

use crate::cgroup::{Cgroup, Limiting};
use crate::stdio::{Ours, Stdio};
use crate::{namespace, terms};

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// A forked worker that may not have reached its program yet.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    /// Ends empty when the program runs, and holds five bytes when it could not be run.
    pub(crate) report: Option<OwnedFd>,
}

/// A forked worker, and the shim's ends of its standard streams.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) worker: Worker,
    pub(crate) streams: Ours,
}

/// What surrounds the worker at its birth.
pub(crate) struct Place<'a> {
    pub(crate) cgroup: Option<&'a Cgroup>,
    pub(crate) limiting: &'a [Limiting],
    /// The shim's own pidfd, for the child to see whether the shim is still there.
    pub(crate) shim: &'a OwnedFd,
    /// Descriptors to pass on, listening sockets first.
    pub(crate) sockets: &'a [OwnedFd],
}

/// What the child needs to become the worker.
struct Program<'a> {
    launch: &'a Launch,
    argv: Vec<CString>,
    env: Vec<CString>,
    /// Where the program may be, in the order of the path.
    places: Vec<CString>,
    cwd: CString,
}

/// Forks the worker.
pub(crate) fn start(launch: &Launch, place: &Place<'_>) -> Result<Started, SpawnFailure> {
    let program = Program::new(launch).ok_or_else(|| failed(Stage::Exec, Errno::INVAL))?;
    let (streams, theirs) =
        Stdio::open(&launch.input).map_err(|error| failed_io(Stage::Pipe, &error))?;
    let (report, report_end) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(Stage::Pipe, errno))?;
    rustix::io::ioctl_fionbio(&report, true).map_err(|errno| failed(Stage::Pipe, errno))?;

    let born_in = place.cgroup.filter(|_| launch.walls.born_in_cgroup);
    let birth = Birth {
        cgroup: born_in.map(Cgroup::directory),
    };
    let forked = tether_sys::fork(&birth).map_err(|error| failed_io(Stage::Fork, &error))?;
    let Some(child) = forked else {
        let failure = program.run(place, &theirs);
        // The pipe is empty and takes five bytes; where the shim is gone nobody wants them.
        let _ = rustix::io::write(&report_end, &to_bytes(failure));
        tether_sys::exit_child(127);
    };
    Ok(Started {
        worker: Worker {
            pid: child.pid,
            pidfd: child.pidfd,
            report: Some(report),
        },
        streams,
    })
}

impl Worker {
    /// Reads the report: `None` while the program has not been reached, then whether it runs.
    pub(crate) fn read_report(&mut self) -> Option<Result<(), SpawnFailure>> {
        let mut bytes = [0; 5];
        let read = rustix::io::read(self.report.as_ref()?, &mut bytes);
        if matches!(read, Err(Errno::AGAIN | Errno::INTR)) {
            return None;
        }
        self.report = None;
        Some(if read == Ok(bytes.len()) {
            Err(from_bytes(bytes))
        } else {
            Ok(())
        })
    }
}

impl<'a> Program<'a> {
    /// `None` where there is no program, or a NUL byte that no program could be given.
    fn new(launch: &'a Launch) -> Option<Self> {
        let text = |bytes: &[u8]| CString::new(bytes).ok();
        let name = launch.argv.first()?;
        let path = launch.env.iter().find(|(name, _)| name == b"PATH");
        let path = path.map_or(DEFAULT_PATH, |(_, path)| path);
        Some(Self {
            launch,
            argv: launch
                .argv
                .iter()
                .map(|argument| text(argument))
                .collect::<Option<_>>()?,
            env: launch
                .env
                .iter()
                .map(|(name, value)| text(&[name, b"=".as_slice(), value].concat()))
                .collect::<Option<_>>()?,
            places: places(name, path)
                .iter()
                .map(|place| text(place))
                .collect::<Option<_>>()?,
            cwd: text(&launch.cwd)?,
        })
    }

    /// In the child: becomes the worker, or returns why not.
    fn run(mut self, place: &Place<'_>, streams: &Stdio) -> SpawnFailure {
        match self.prepare(place, streams) {
            Ok(()) => failed(Stage::Exec, self.exec()),
            Err(failure) => failure,
        }
    }

    fn prepare(&mut self, place: &Place<'_>, streams: &Stdio) -> Result<(), SpawnFailure> {
        let walls = &self.launch.walls;
        let at = |stage| move |error: io::Error| failed_io(stage, &error);
        // The session first: from here on no terminal and no group signal reaches the worker.
        let _ = rustix::process::setsid();
        if let Some(cgroup) = place.cgroup.filter(|_| !walls.born_in_cgroup) {
            cgroup.join().map_err(at(Stage::Cgroup))?;
        }
        for limiting in place.limiting {
            limiting.join().map_err(at(Stage::Cgroup))?;
        }
        if walls.private_proc {
            namespace::mount_proc().map_err(at(Stage::Namespace))?;
        }
        tether_sys::give_back_signals();
        terms::apply(&self.launch.terms)?;
        // After the user was changed, which clears it.
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // A shim that died before the line above will never send that signal.
        if tether_sys::has_ended(std::os::fd::AsRawFd::as_raw_fd(place.shim)) {
            tether_sys::exit_child(127);
        }
        if !self.cwd.is_empty() {
            rustix::process::chdir(&self.cwd).map_err(|errno| failed(Stage::Chdir, errno))?;
        }
        streams.take().map_err(at(Stage::Pipe))?;
        if !place.sockets.is_empty() {
            tether_sys::place(place.sockets, 3).map_err(at(Stage::Pipe))?;
            self.tell_own_pid("LISTEN_PID");
        }
        let watched = |(name, _): &(Vec<u8>, Vec<u8>)| name == b"WATCHDOG_USEC";
        if self.launch.env.iter().any(watched) {
            self.tell_own_pid("WATCHDOG_PID");
        }
        Ok(())
    }

    /// Puts the worker's own process id into its environment. It is known only here: in a namespace it is
    /// another number than outside.
    fn tell_own_pid(&mut self, name: &str) {
        let own = format!("{name}={}", std::process::id());
        self.env.extend(CString::new(own));
    }

    /// Tries each place as `execvp` does: a file that may not be run is a better answer than
    /// one that is not there.
    fn exec(&self) -> Errno {
        let mut best = Errno::NOENT;
        for place in &self.places {
            match Errno::from_raw_os_error(tether_sys::exec(place, &self.argv, &self.env)) {
                Errno::ACCESS => best = Errno::ACCESS,
                Errno::NOENT | Errno::NOTDIR => {}
                errno => return errno,
            }
        }
        best
    }
}

/// Where a program called `name` may be.
fn places(name: &[u8], path: &[u8]) -> Vec<Vec<u8>> {
    if name.is_empty() || name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let name = Path::new(OsStr::from_bytes(name));
    path.split(|byte| *byte == b':')
        // An empty part has always meant the working directory.
        .map(|part| if part.is_empty() { b"." } else { part })
        .map(|part| {
            Path::new(OsStr::from_bytes(part))
                .join(name)
                .into_os_string()
        })
        .map(|place| place.as_bytes().to_vec())
        .collect()
}

/// A failure at `stage`.
pub(crate) fn failed(stage: Stage, errno: Errno) -> SpawnFailure {
    SpawnFailure {
        stage,
        errno: errno.raw_os_error(),
    }
}

/// A failure at `stage` from the standard library.
pub(crate) fn failed_io(stage: Stage, error: &io::Error) -> SpawnFailure {
    failed(stage, Errno::from_io_error(error).unwrap_or(Errno::IO))
}

const STAGES: [Stage; 8] = [
    Stage::Pipe,
    Stage::Fork,
    Stage::Cgroup,
    Stage::Chdir,
    Stage::Exec,
    Stage::Namespace,
    Stage::Limits,
    Stage::User,
];

/// What the child writes and the shim reads, both this same program.
fn to_bytes(failure: SpawnFailure) -> [u8; 5] {
    let stage = STAGES
        .iter()
        .position(|stage| *stage == failure.stage)
        .unwrap_or(0) as u8;
    let [a, b, c, d] = failure.errno.to_ne_bytes();
    [stage, a, b, c, d]
}

fn from_bytes([stage, a, b, c, d]: [u8; 5]) -> SpawnFailure {
    let stage = STAGES
        .get(usize::from(stage))
        .copied()
        .unwrap_or(Stage::Exec);
    SpawnFailure {
        stage,
        errno: i32::from_ne_bytes([a, b, c, d]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_looked_up_in_every_part_of_the_path() {
        let found = |name: &str| places(name.as_bytes(), b"/a:/b/::c");

        assert_eq!(
            found("run"),
            [
                b"/a/run".to_vec(),
                b"/b/run".into(),
                b"./run".into(),
                b"c/run".into()
            ]
        );
        assert_eq!(found("./run"), [b"./run"]);
        assert_eq!(found(""), [b""]);
    }

    #[test]
    fn a_failure_comes_through_the_pipe_as_it_was() {
        for stage in STAGES {
            let failure = SpawnFailure { stage, errno: 13 };

            assert_eq!(from_bytes(to_bytes(failure)), failure);
        }
    }
}
