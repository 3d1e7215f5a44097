//! Grounds to deploy to: a Debian 12 of the test's own, booted with systemd as its first process, and gone with all that
//! was done in it when the test ends.
//!
//! Two ways to boot the same root. [`Nspawn`] is there within a second and can be talked to while it runs; what it has
//! of cgroups is what the machine has. [`uml`] is a kernel of its own, with cgroups of version 2 and every controller:
//! slower, and told beforehand what to do.
//!
//! Changes go to memory: nothing is written below the root, which is made once (`tools/ground.sh`) and shared.

mod cgroups;
mod nspawn;
mod uml;
mod unready;

use std::{
    fmt::Write as _,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

pub use nspawn::Nspawn;
pub use uml::{Said, uml};
pub use unready::Unready;

/// Where everything that a machine has of its own is mounted: in a mount namespace, which ends with it.
const LAYERS: &str = "
root=$1 folder=$2
mount -t tmpfs -o mode=755 ground \"$folder/memory\"
mkdir \"$folder/memory/upper\" \"$folder/memory/work\"
cp -a \"$folder/staged/.\" \"$folder/memory/upper/\"
mount -t overlay -o \"lowerdir=$root,upperdir=$folder/memory/upper,workdir=$folder/memory/work\" ground \"$folder/merged\"
";

/// Why there is no such ground on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused(pub String);

/// A machine before it is booted.
#[derive(Debug)]
pub struct Ground {
    root: PathBuf,
    /// What is mounted where, and files that are put in before; gone with this.
    folder: tempfile::TempDir,
    /// From here to there.
    binds: Vec<(PathBuf, String)>,
}

impl Ground {
    /// One that nothing has been done in, of the root that all share, which is made where it is missing.
    ///
    /// # Errors
    /// Says what this machine refuses.
    pub async fn new() -> Result<Self, Refused> {
        if !rustix::process::geteuid().is_root() {
            return Err(Refused("only root boots machines".to_owned()));
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/ground.sh");
        let made = Command::new(script).stdin(Stdio::null()).output().await;
        let made = made.map_err(|error| Refused(format!("`tools/ground.sh`: {error}")))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !made.status.success() {
            return Err(Refused(text(&made.stderr)));
        }
        let refused = |error: io::Error| Refused(format!("no room for files: {error}"));
        let folder = tempfile::tempdir().map_err(refused)?;
        for name in ["memory", "staged", "merged"] {
            fs::create_dir(folder.path().join(name)).map_err(refused)?;
        }
        Ok(Self {
            root: text(&made.stdout).into(),
            folder,
            binds: Vec::new(),
        })
    }

    /// Puts a file there.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.staged(path);
        fs::write(path, content).expect("the ground can be written");
    }

    /// Puts a program there.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn script(&self, path: &str, content: &str) {
        self.write(path, content);
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.staged(path), mode).expect("the ground can be written");
    }

    /// Shows a file or directory of the host there, in both directions.
    pub fn bind(&mut self, from: &Path, to: &str) {
        self.binds.push((from.to_owned(), to.to_owned()));
    }

    fn staged(&self, path: &str) -> PathBuf {
        let path = self.path("staged").join(path.trim_start_matches('/'));
        let parent = path.parent().expect("it is in a directory");
        fs::create_dir_all(parent).expect("the ground can be written");
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What mounts everything and becomes the program that boots it, whose arguments follow.
    fn command(&self, before: &str) -> Command {
        let mut script = LAYERS.to_owned();
        for (from, to) in &self.binds {
            let make = match from.is_dir() {
                true => "mkdir -p \"$to\"",
                false => "mkdir -p \"${to%/*}\"; touch \"$to\"",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(
                script,
                "to=\"$folder/merged/{to}\"; {make}; mount --bind '{}' \"$to\"",
                from.display()
            );
        }
        // Whatever kills this process, the machine goes with the thread that booted it: all of it is in one PID namespace,
        // whose first process goes with its parent.
        let mut command = Command::new("setpriv");
        command
            .args([
                "--pdeathsig=KILL",
                "unshare",
                "--mount",
                "--propagation=private",
                "--pid",
                "--mount-proc",
                "--fork",
                "--kill-child=KILL",
                "sh",
                "-ec",
            ])
            .arg(format!("{script}shift 2\n{before}\nexec \"$@\""))
            .arg("ground")
            .arg(&self.root)
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Where both streams of the first process go.
    fn console(&self) -> io::Result<(fs::File, fs::File)> {
        let file = fs::File::create(self.path("console.log"))?;
        Ok((file.try_clone()?, file))
    }

    /// The last words on the console.
    fn last_words(&self) -> String {
        let bytes = fs::read(self.path("console.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
}

/// A program that `cargo xtask` has fetched, as it is in its package, or the machine's own: to be shown to a machine.
///
/// # Errors
/// When there is none.
pub fn program_of_package(name: &str) -> Result<PathBuf, Refused> {
    let found = tool(name)?;
    let tools = found.ancestors().nth(2).unwrap_or(&found);
    let packaged = tools.join(name).join("usr/bin").join(name);
    Ok(if packaged.is_file() { packaged } else { found })
}

/// Packages that `cargo xtask` has fetched, to be installed in a machine.
///
/// # Errors
/// When there are none.
pub fn packages(name: &str) -> Result<PathBuf, Refused> {
    let own = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools")).join(name);
    // Beside tools of another checkout, where those are used.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = std::env::split_paths(&path).filter_map(|bin| Some(bin.parent()?.join(name)));
    let found = std::iter::once(own)
        .chain(beside)
        .find(|path| path.is_dir());
    let found = found.and_then(|path| path.canonicalize().ok());
    found.ok_or_else(|| {
        Refused(format!(
            "no packages of {name}; `cargo xtask ground` fetches them"
        ))
    })
}

/// A tool that `cargo xtask` has fetched, or the machine's own.
fn tool(name: &str) -> Result<PathBuf, Refused> {
    let fetched = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/bin")).join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path).map(|folder| folder.join(name));
    let mut all = std::iter::once(fetched).chain(own);
    let found = all.find(|path| path.is_file());
    let found = found.and_then(|path| path.canonicalize().ok());
    found.ok_or_else(|| Refused(format!("no `{name}`; `cargo xtask ground` fetches it")))
}
