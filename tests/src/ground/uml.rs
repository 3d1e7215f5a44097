//! A machine with a kernel of its own, User-Mode Linux, which is a program like any other: its cgroups are those of
//! version 2 with every controller, whatever the machine below has.

use std::{fs, time::Duration};

use tokio::time::timeout;

use super::{Ground, Refused, tool};

/// What runs the script once the machine is up, and ends the machine with it. Its end is the machine's, so that one
/// that breaks does not wait for a deadline.
const UNIT: &str = "
[Unit]
After=multi-user.target
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate
[Service]
Type=oneshot
ExecStart=/usr/local/bin/ground-script
StandardOutput=file:/ground/out
StandardError=file:/ground/err
TimeoutStartSec=infinity
";

/// What a script printed in such a machine.
#[derive(Debug, Clone)]
pub struct Said {
    /// On standard output.
    pub out: String,
    /// On standard error.
    pub err: String,
}

/// Boots the ground, runs a script in it as a unit of its systemd, and gives what that printed.
///
/// # Errors
/// Says what this machine refuses, or that it took too long, with the last words of the console.
pub async fn uml(mut ground: Ground, script: &str, deadline: Duration) -> Result<Said, Refused> {
    let linux = tool("linux.uml")?;
    // Shared with the host: what is written to the ground itself is seen by nobody outside.
    let shared = ground.path("shared");
    let refused = |error: std::io::Error| Refused(format!("no room for files: {error}"));
    fs::create_dir(&shared).map_err(refused)?;
    ground.bind(&shared, "/ground");
    ground.script("usr/local/bin/ground-script", script);
    ground.write("etc/systemd/system/ground.service", UNIT);
    let (out, err) = ground.console().map_err(refused)?;
    let spawned = ground
        .command("")
        .arg(linux)
        .args(["mem=768M", "root=/dev/root", "rootfstype=hostfs", "rw"])
        .arg(format!("rootflags={}", ground.path("merged").display()))
        .args(["init=/lib/systemd/systemd", "con=null", "con0=null,fd:1"])
        .arg("systemd.wants=ground.service")
        .arg(format!("uml_dir={}", ground.path("memory").display()))
        .stdout(out)
        .stderr(err)
        .spawn();
    let mut child = spawned.map_err(|error| Refused(format!("`unshare`: {error}")))?;
    let ended = timeout(deadline, child.wait()).await;
    let read = |name| fs::read_to_string(shared.join(name));
    match (ended, read("out"), read("err")) {
        (Ok(Ok(_)), Ok(out), Ok(err)) => Ok(Said { out, err }),
        (ended, out, err) => {
            let how = match ended {
                Ok(_) => "the machine ended before it ran the script".to_owned(),
                Err(_) => format!("the machine still runs after {deadline:?}"),
            };
            let said = [out.unwrap_or_default(), err.unwrap_or_default()].concat();
            Err(Refused(format!("{how}: {said}{}", ground.last_words())))
        }
    }
}
