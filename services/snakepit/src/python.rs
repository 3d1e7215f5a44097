//! Which Python is the real one, and what is handed to it unseen.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, anyhow};

use crate::Refusal;

/// The programs by which Snakepit starts its workers.
const SERVERS: &[&str] = &["grpc_server.py", "grpc_server_threaded.py"];

/// Where a worker of Snakepit's finds the BEAM; its servers do not serve without.
const ELIXIR: &str = "--elixir-address";

/// Options of the interpreter that take the next argument for themselves.
const WITH_VALUE: &[&str] = &["-X", "-W", "--check-hash-based-pycs"];

/// Whether this starts a worker that serves: a script of Snakepit's with the BEAM's address, and no question to it.
pub(crate) fn is_worker_server(args: &[OsString]) -> bool {
    let Some(at) = script(args) else {
        return false;
    };
    let is_server = Path::new(&args[at])
        .file_name()
        .is_some_and(|name| SERVERS.iter().any(|server| OsStr::new(server) == name));
    let rest = &args[at + 1..];
    let says = |flag: &str| {
        rest.iter().any(|arg| {
            let arg = arg.to_string_lossy();
            arg == flag
                || arg
                    .strip_prefix(flag)
                    .is_some_and(|more| more.starts_with('='))
        })
    };
    is_server && says(ELIXIR) && !["--health-check", "--help", "-h"].into_iter().any(says)
}

/// Where among the interpreter's arguments its script is; none where it runs something else.
pub(crate) fn script(args: &[OsString]) -> Option<usize> {
    let mut at = 0;
    loop {
        let arg = args.get(at)?.to_string_lossy();
        match &*arg {
            "-" | "-V" | "--version" => return None,
            arg if arg.starts_with("-c") || arg.starts_with("-m") => return None,
            arg if WITH_VALUE.contains(&arg) => at += 2,
            arg if arg.starts_with('-') => at += 1,
            _ => return Some(at),
        }
    }
}

/// Goes on as the real Python, with these arguments; comes back only where that cannot be.
pub(crate) fn become_it(args: &[OsString]) -> anyhow::Error {
    match find() {
        Ok(python) => {
            let error = Command::new(&python).args(args).exec();
            anyhow!(error).context(format!("cannot run `{}`", python.display()))
        }
        Err(error) => error,
    }
}

/// The real Python: `TETHER_PYTHON`, else `SNAKEPIT_PYTHON`, else `python3` on PATH; never this program.
pub(crate) fn find() -> anyhow::Result<PathBuf> {
    let own = env::current_exe().context("cannot tell which program this is")?;
    find_with(|name| env::var_os(name), &own)
}

fn find_with(variable: impl Fn(&str) -> Option<OsString>, own: &Path) -> anyhow::Result<PathBuf> {
    let path = variable("PATH").unwrap_or_default();
    // One that was named and is not there is a mistake to be told, not to be passed over.
    for name in ["TETHER_PYTHON", "SNAKEPIT_PYTHON"] {
        let Some(given) = variable(name).filter(|given| !given.is_empty()) else {
            continue;
        };
        let found = on_path(&given, &path, own).map_err(|error| {
            Refusal::Config(format!("`{name}` names `{}`: {error}", given.display()))
        })?;
        if let Some(found) = found {
            return Ok(found);
        }
    }
    let found = on_path("python3".as_ref(), &path, own);
    found.ok().flatten().ok_or_else(|| {
        Refusal::Config(
            "no `python3` on PATH but this program: name the real one with TETHER_PYTHON"
                .to_owned(),
        )
        .into()
    })
}

/// The program of that name; none where all there is is ourselves.
fn on_path(name: &OsStr, path: &OsStr, own: &Path) -> io::Result<Option<PathBuf>> {
    let is_own = |found: &Path| {
        let identity = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
        identity(found) == identity(own)
    };
    if Path::new(name).components().count() > 1 {
        let found = PathBuf::from(name);
        fs::metadata(&found)?;
        return Ok((!is_own(&found)).then_some(found));
    }
    let mut all = env::split_paths(path).map(|dir| dir.join(name));
    let is_program = |found: &PathBuf| {
        fs::metadata(found).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
    };
    let mut seen = false;
    let found = all.find(|found| {
        let there = is_program(found);
        seen |= there;
        there && !is_own(found)
    });
    if !seen {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "no such program on PATH",
        ));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn only_a_server_that_is_to_serve_is_a_worker() {
        let is_worker = |line| is_worker_server(&args(line));

        assert!(is_worker(
            "/a/grpc_server.py --adapter m.A --port 0 --elixir-address h:1"
        ));
        assert!(is_worker(
            "-u -X dev grpc_server_threaded.py --elixir-address=h:1"
        ));
        for other in [
            "",
            "--version",
            "-c import+os grpc_server.py --elixir-address h:1",
            "-m grpc_server.py --elixir-address h:1",
            "-",
            "/a/grpc_server.py --health-check --adapter m.A --elixir-address h:1",
            "/a/grpc_server.py --adapter m.A",
            "/a/other.py /a/grpc_server.py --elixir-address h:1",
        ] {
            assert!(!is_worker(other), "{other}");
        }
    }

    #[test]
    fn the_real_python_is_found_and_never_this_program() {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, name).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let own = program("tether/tether-python");
        let real = program("real/python3");
        let other = program("other/python");
        std::os::unix::fs::symlink(&own, dir.path().join("tether/python3")).unwrap();
        let path = env::join_paths([dir.path().join("tether"), dir.path().join("real")]).unwrap();
        let find = |set: &[(&str, &Path)], path: &OsStr| {
            find_with(
                |name| match name {
                    "PATH" => Some(path.to_owned()),
                    name => set.iter().find(|set| set.0 == name).map(|set| set.1.into()),
                },
                &own,
            )
        };

        assert_eq!(find(&[], &path).unwrap(), real);
        assert_eq!(find(&[("SNAKEPIT_PYTHON", &own)], &path).unwrap(), real);
        assert_eq!(find(&[("SNAKEPIT_PYTHON", &other)], &path).unwrap(), other);
        let both = [("TETHER_PYTHON", &*real), ("SNAKEPIT_PYTHON", &*other)];
        assert_eq!(find(&both, &path).unwrap(), real);
        let missing = find(&[("TETHER_PYTHON", &dir.path().join("no"))], &path).unwrap_err();
        assert!(
            missing.to_string().starts_with("`TETHER_PYTHON` names"),
            "{missing}"
        );
        let alone = find(&[], dir.path().join("tether").as_os_str()).unwrap_err();
        assert!(alone.to_string().contains("TETHER_PYTHON"), "{alone}");
    }
}
