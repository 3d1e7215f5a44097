//! Starts the worker: everything that can be prepared is prepared before the fork.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open};
use tether_shim_protocol::{Launch, SpawnFailure, Stage};

use crate::cgroup::Cgroup;
use crate::sys;

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// A forked worker that may not have reached its program yet.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pid: Pid,
    pub(crate) pidfd: Option<OwnedFd>,
    /// Ends empty when the program runs, and holds five bytes when it could not be run.
    pub(crate) report: Option<OwnedFd>,
}

/// A forked worker and the reading ends of its standard output and standard error.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) worker: Worker,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// What the child needs to become the worker.
struct Program {
    argv: Vec<CString>,
    env: Vec<CString>,
    /// Where the program may be, in the order of the path.
    places: Vec<CString>,
    cwd: CString,
}

/// Forks the worker.
pub(crate) fn start(launch: &Launch, cgroup: Option<&Cgroup>) -> Result<Started, SpawnFailure> {
    let program = Program::new(launch).ok_or_else(|| failed(Stage::Exec, Errno::INVAL))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed(Stage::Pipe, errno))?;
    let (stdout, stdout_end) = pipe()?;
    let (stderr, stderr_end) = pipe()?;
    let (report, report_end) = pipe()?;

    let shim = getpid();
    let forked = sys::fork().map_err(|error| {
        failed(
            Stage::Fork,
            Errno::from_io_error(&error).unwrap_or(Errno::AGAIN),
        )
    })?;
    let Some(pid) = forked else {
        let failure = program.run(shim, cgroup, [&null, &stdout_end, &stderr_end]);
        // The pipe is empty and takes five bytes; where the shim is gone nobody wants them.
        let _ = rustix::io::write(&report_end, &to_bytes(failure));
        sys::exit_child();
    };
    // The child is not reaped before this, so the pid is its own.
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok();
    Ok(Started {
        worker: Worker {
            pid,
            pidfd,
            report: Some(report),
        },
        stdout,
        stderr,
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

impl Program {
    /// `None` where there is no program, or a NUL byte that no program could be given.
    fn new(launch: &Launch) -> Option<Self> {
        let text = |bytes: &[u8]| CString::new(bytes).ok();
        let name = launch.argv.first()?;
        let path = launch.env.iter().find(|(name, _)| name == b"PATH");
        let path = path.map_or(DEFAULT_PATH, |(_, path)| path);
        Some(Self {
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
    fn run(&self, shim: Pid, cgroup: Option<&Cgroup>, stdio: [&OwnedFd; 3]) -> SpawnFailure {
        // The session first: from here on no terminal and no group signal reaches the worker.
        let _ = rustix::process::setsid();
        if let Some(Err(error)) = cgroup.map(Cgroup::join) {
            return failed(
                Stage::Cgroup,
                Errno::from_io_error(&error).unwrap_or(Errno::IO),
            );
        }
        sys::reset_signals();
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // A shim that died before the line above will never send that signal.
        if getppid() != Some(shim) {
            sys::exit_child();
        }
        if !self.cwd.is_empty()
            && let Err(errno) = rustix::process::chdir(&self.cwd)
        {
            return failed(Stage::Chdir, errno);
        }
        let [input, output, error] = stdio;
        if let Err(errno) = rustix::stdio::dup2_stdin(input)
            .and_then(|()| rustix::stdio::dup2_stdout(output))
            .and_then(|()| rustix::stdio::dup2_stderr(error))
        {
            return failed(Stage::Pipe, errno);
        }
        failed(Stage::Exec, self.exec())
    }

    /// Tries each place as `execvp` does: a file that may not be run is a better answer than
    /// one that is not there.
    fn exec(&self) -> Errno {
        let mut best = Errno::NOENT;
        for place in &self.places {
            match Errno::from_raw_os_error(sys::exec(place, &self.argv, &self.env)) {
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

/// A pipe whose reading end never makes the shim wait.
fn pipe() -> Result<(OwnedFd, OwnedFd), SpawnFailure> {
    let make = || -> rustix::io::Result<_> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        fcntl_setfl(read.as_fd(), OFlags::NONBLOCK)?;
        Ok((read, write))
    };
    make().map_err(|errno| failed(Stage::Pipe, errno))
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

const STAGES: [Stage; 5] = [
    Stage::Pipe,
    Stage::Fork,
    Stage::Cgroup,
    Stage::Chdir,
    Stage::Exec,
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
