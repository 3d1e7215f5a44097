//! A machine with a kernel of its own, User-Mode Linux, which is a program like any other: its cgroups are those of
//! version 2 with every controller, whatever the machine below has.

use std::{fs, time::Duration};

use anyhow::anyhow;
use tokio::time::timeout;

use super::{Ground, Refused, Unready, tool};

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// On standard output.
    pub out: String,
    /// On standard error.
    pub err: String,
}

/// Boots the ground, runs a script in it as a unit of its systemd, and gives what that printed.
///
/// # Errors
/// Says what this machine refuses, or that the script took too long, with the last words of the console.
pub async fn uml(mut ground: Ground, script: &str, deadline: Duration) -> Result<Said, Unready> {
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
    let ended = timeout(deadline, child.wait()).await.is_ok();
    let read = |name| {
        let bytes = fs::read(shared.join(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let said = read("out").zip(read("err"));
    let said = said.map(|(out, err)| Said { out, err });
    judged(ended, said, &ground.last_words())
}

/// What is known of a machine that has ended, or was given up. systemd makes the files of what was said when the script
/// begins: what is wrong before that is this machine's fault, and from then on that of what is tried.
fn judged(ended: bool, said: Option<Said>, console: &str) -> Result<Said, Unready> {
    match (ended, said) {
        (true, Some(said)) => Ok(said),
        (false, Some(Said { out, err })) => {
            Err(anyhow!("the script does not end: {out}{err}{console}").into())
        }
        (true, None) => {
            let why = format!("the machine ended before the script began: {console}");
            Err(Refused(why).into())
        }
        (false, None) => {
            let why = format!("the script does not begin in time: {console}");
            Err(Refused(why).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said() -> Option<Said> {
        Some(Said {
            out: "level: G1\n".to_owned(),
            err: "not seen\n".to_owned(),
        })
    }

    #[test]
    fn a_script_that_ends_is_judged_by_what_it_said() {
        assert_eq!(judged(true, said(), "").ok(), said());
    }

    #[test]
    fn a_script_that_hangs_is_not_this_machines_fault() {
        let Err(Unready::Broken(why)) = judged(false, said(), "last words") else {
            panic!("it counts as refused");
        };

        assert!(why.to_string().ends_with("level: G1\nnot seen\nlast words"));
    }

    #[test]
    fn a_machine_that_does_not_come_up_is() {
        for ended in [true, false] {
            let judged = judged(ended, None, "panic");
            assert!(
                matches!(judged, Err(Unready::Refused(Refused(why))) if why.ends_with("panic"))
            );
        }
    }
}
