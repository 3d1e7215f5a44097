//! Where things are: the checkout, the target folder, the programs.

use std::{
    env,
    ffi::OsString,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The checkout a command works on.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
    cargo: OsString,
    path: OsString,
}

impl Workspace {
    /// The checkout that `cargo xtask` was called in.
    pub(crate) fn find() -> Result<Self, String> {
        // Cargo sets it at every run; what it was when xtask was built may belong to another
        // checkout that shares the target folder.
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .ok_or("`CARGO_MANIFEST_DIR` is not set; call it as `cargo xtask`")?;
        let root = Path::new(&manifest)
            .parent()
            .ok_or("`CARGO_MANIFEST_DIR` has no parent; call it as `cargo xtask`")?
            .to_owned();
        let here = env::current_dir().map_err(|error| format!("no current directory: {error}"))?;
        // Commands run at the top of the checkout, where a relative folder would be another one.
        let target = env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), |target| here.join(target));
        let mut folders = vec![root.join("target/tools/bin")];
        folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
        let path =
            env::join_paths(folders).map_err(|error| format!("cannot extend `PATH`: {error}"))?;
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        Ok(Self {
            root,
            target,
            cargo,
            path,
        })
    }

    /// The top of the checkout.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo builds.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// A program at the top of the checkout, with the tools this workspace installs on its `PATH`.
    pub(crate) fn program(&self, name: impl Into<OsString>) -> Command {
        let mut command = Command::new(name.into());
        command
            .current_dir(&self.root)
            .env("PATH", &self.path)
            .env("CARGO_TARGET_DIR", &self.target)
            .stdin(Stdio::null());
        // What it says goes through a pipe on its way to the terminal.
        if std::io::stdout().is_terminal() && env::var_os("CARGO_TERM_COLOR").is_none() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        command
    }

    /// Cargo, with these arguments, separated by spaces.
    pub(crate) fn cargo(&self, arguments: &str) -> Command {
        let mut command = self.program(&self.cargo);
        command.args(arguments.split_whitespace());
        command
    }

    /// Whether a program is there and runs.
    pub(crate) fn runs(&self, mut command: Command) -> bool {
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    }

    /// Whether `cargo NAME` is there.
    pub(crate) fn has_cargo(&self, name: &str) -> bool {
        self.runs(self.cargo(&format!("{name} --version")))
    }
}
