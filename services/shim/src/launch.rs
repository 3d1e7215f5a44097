//! Starts the worker: everything that can be prepared is prepared before there is a child.
//!
//! The child goes through its few steps in the shim's memory, while the shim waits for it to become the
//! worker or say why it could not.

use alloc::ffi::CString;
use alloc::vec;
use alloc::vec::Vec;

use rustix::fd::{AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tether_shim_protocol::{Launch, SpawnFailure, Stage};
use tether_sys::{Birth, Words};

use crate::cgroup::{Cgroup, Limiting};
use crate::files::join;
use crate::stdio::{Ours, Stdio};
use crate::{namespace, terms};

/// Where programs are looked for when the environment has no `PATH`.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// The worker's main process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
}

/// A child, and the shim's ends of its standard streams.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) worker: Worker,
    pub(crate) streams: Ours,
    /// Why it could not become the worker, and has ended.
    pub(crate) failure: Option<SpawnFailure>,
}

/// What surrounds the worker at its birth.
pub(crate) struct Place<'a> {
    pub(crate) cgroup: Option<&'a Cgroup>,
    pub(crate) limiting: &'a [Limiting],
    /// The shim's own pidfd, for the child to see whether the shim is still there.
    pub(crate) shim: &'a OwnedFd,
    /// Descriptors to pass on, listening sockets first.
    pub(crate) passed: &'a [BorrowedFd<'a>],
}

/// What the child needs to become the worker.
struct Program<'a> {
    launch: &'a Launch,
    words: Words,
    /// Where the program may be, in the order of the path.
    places: Vec<CString>,
    cwd: CString,
}

/// Starts the worker.
pub(crate) fn start(launch: &Launch, place: &Place<'_>) -> Result<Started, SpawnFailure> {
    let mut program = Program::new(launch).ok_or_else(|| failed(Stage::Exec, Errno::INVAL))?;
    let (streams, theirs) = Stdio::open(&launch.input).map_err(failed_at(Stage::Pipe))?;
    let born_in = place.cgroup.filter(|_| launch.walls.born_in_cgroup);
    let birth = Birth {
        cgroup: born_in.map(Cgroup::directory),
    };
    let mut failure = None;
    let mut become_worker = || failure = Some(program.run(place, &theirs));
    let child = tether_sys::become_beside(&birth, &mut become_worker);
    let child = child.map_err(failed_at(Stage::Fork))?;
    Ok(Started {
        worker: Worker {
            pid: child.pid,
            pidfd: child.pidfd,
        },
        streams,
        failure,
    })
}

impl<'a> Program<'a> {
    /// `None` where there is no program, or a NUL byte that no program could be given.
    fn new(launch: &'a Launch) -> Option<Self> {
        let text = |bytes: &[u8]| CString::new(bytes).ok();
        let name = launch.argv.first()?;
        let path = launch.env.iter().find(|(name, _)| name == b"PATH");
        let path = path.map_or(DEFAULT_PATH, |(_, path)| path);
        let argv = launch.argv.iter().map(|argument| text(argument));
        let env = launch.env.iter();
        let env = env.map(|(name, value)| text(&[name, b"=".as_slice(), value].concat()));
        let is_told = |what: &[u8]| launch.env.iter().any(|(name, _)| name == what);
        let own_ids = [
            ("LISTEN_PID", is_told(b"LISTEN_FDS")),
            ("WATCHDOG_PID", is_told(b"WATCHDOG_USEC")),
        ];
        let own_ids = own_ids.iter().filter(|(_, is_told)| *is_told);
        let own_ids: Vec<&str> = own_ids.map(|(name, _)| *name).collect();
        Some(Self {
            launch,
            words: Words::new(
                argv.collect::<Option<_>>()?,
                env.collect::<Option<_>>()?,
                &own_ids,
            ),
            places: places(name, path)
                .iter()
                .map(|place| text(place))
                .collect::<Option<_>>()?,
            cwd: text(&launch.cwd)?,
        })
    }

    /// In the child: becomes the worker, or returns why not.
    fn run(&mut self, place: &Place<'_>, streams: &Stdio) -> SpawnFailure {
        match self.prepare(place, streams) {
            Ok(()) => failed(Stage::Exec, self.exec()),
            Err(failure) => failure,
        }
    }

    fn prepare(&mut self, place: &Place<'_>, streams: &Stdio) -> Result<(), SpawnFailure> {
        let walls = &self.launch.walls;
        let at = failed_at;
        // The session first: from here on no terminal and no group signal reaches the worker.
        let _ = rustix::process::setsid();
        if let Some(cgroup) = place.cgroup.filter(|_| !walls.born_in_cgroup) {
            cgroup.enter().map_err(at(Stage::Cgroup))?;
        }
        for limiting in place.limiting {
            limiting.enter().map_err(at(Stage::Cgroup))?;
        }
        if walls.private_proc {
            namespace::mount_proc().map_err(at(Stage::Namespace))?;
        }
        tether_sys::give_back_signals();
        terms::apply(&self.launch.terms)?;
        // After the user was changed, which clears it.
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        // A shim that died before the line above will never send that signal.
        if tether_sys::has_ended(place.shim.as_raw_fd()) {
            tether_sys::exit_child(127);
        }
        if !self.cwd.is_empty() {
            rustix::process::chdir(&self.cwd).map_err(at(Stage::Chdir))?;
        }
        streams.take().map_err(at(Stage::Pipe))?;
        if !place.passed.is_empty() {
            tether_sys::place(place.passed, 3).map_err(at(Stage::Pipe))?;
        }
        self.words.tell_own_id();
        Ok(())
    }

    /// Tries each place as `execvp` does: a file that may not be run is a better answer than
    /// one that is not there.
    fn exec(&self) -> Errno {
        let mut best = Errno::NOENT;
        for place in &self.places {
            match tether_sys::exec(place, &self.words) {
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
    path.split(|byte| *byte == b':')
        // An empty part has always meant the working directory.
        .map(|part| if part.is_empty() { b"." } else { part })
        .map(|part| join(part, name))
        .collect()
}

/// A failure at `stage`.
pub(crate) fn failed(stage: Stage, errno: Errno) -> SpawnFailure {
    SpawnFailure {
        stage,
        errno: errno.raw_os_error(),
    }
}

/// Makes an error of the system a failure at `stage`.
pub(crate) fn failed_at(stage: Stage) -> impl Fn(Errno) -> SpawnFailure {
    move |errno| failed(stage, errno)
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
}
