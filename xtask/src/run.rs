//! Runs one program, passes on what it says as it says it, and counts the results it announces.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use crate::tally::{Announcements, Tally};

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Whether it ran and exited with status 0.
    pub(crate) ok: bool,
    /// What it announced.
    pub(crate) announced: Tally,
    /// The last line it said, or why it could not be run.
    pub(crate) last_line: String,
}

#[derive(Default)]
struct Heard {
    announcements: Announcements,
    last_line: String,
}

/// Runs `command` to its end.
pub(crate) fn run(mut command: Command) -> Ended {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            let program = command.get_program().to_string_lossy();
            let last_line = format!("cannot run `{program}`: {error}");
            eprintln!("{last_line}");
            return Ended {
                ok: false,
                announced: Tally::default(),
                last_line,
            };
        }
    };
    let heard = Mutex::new(Heard::default());
    thread::scope(|scope| {
        let (out, err) = (child.stdout.take(), child.stderr.take());
        scope.spawn(|| out.map(|out| pass_on(out, |line| print!("{line}"), &heard)));
        scope.spawn(|| err.map(|err| pass_on(err, |line| eprint!("{line}"), &heard)));
    });
    let status = child.wait();
    let heard = heard.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ended {
        ok: status.is_ok_and(|status| status.success()),
        announced: heard.announcements.tally(),
        last_line: heard.last_line,
    }
}

fn pass_on(from: impl Read, say: impl Fn(&str), heard: &Mutex<Heard>) {
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    while from
        .read_until(b'\n', &mut bytes)
        .is_ok_and(|count| count > 0)
    {
        let line = String::from_utf8_lossy(&bytes);
        say(&line);
        let line = plain(&line);
        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.announcements.on_line(&line);
        if !line.trim().is_empty() {
            heard.last_line = line.trim().to_owned();
        }
        bytes.clear();
    }
}

/// The line without terminal colours.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some(start) = rest.find("\x1b[") {
        plain.push_str(&rest[..start]);
        let tail = &rest[start + 2..];
        let end = tail.find(|letter: char| letter.is_ascii_alphabetic());
        rest = end.map_or("", |end| &tail[end + 1..]);
    }
    plain + rest.trim_end_matches(['\n', '\r'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_not_part_of_a_line() {
        assert_eq!(
            plain("\x1b[32;1m   Summary\x1b[0m [ 1s]\n"),
            "   Summary [ 1s]"
        );
        assert_eq!(plain("cut off \x1b[3"), "cut off ");
    }

    #[test]
    fn both_streams_are_counted_and_the_status_is_kept() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out' >&2
             echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out'; exit 3",
        ]);

        let ended = run(command);

        assert!(!ended.ok);
        assert_eq!(ended.announced.to_string(), "5 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let ended = run(Command::new("no-such-program"));

        assert!(
            !ended.ok && ended.last_line.contains("`no-such-program`"),
            "{ended:?}"
        );
    }
}
