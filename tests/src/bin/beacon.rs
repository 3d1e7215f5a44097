//! A worker that says that it lives: a line with its incarnation and the time, every few milliseconds,
//! appended to a file that all incarnations share. Made to be killed.

use std::{
    env, fs::File, io::Write as _, net::TcpListener, process::ExitCode, thread, time::Duration,
};

use tether_clock::{BootClock, Clock as _};

/// Between two lines.
const PAUSE: Duration = Duration::from_millis(10);

fn main() -> ExitCode {
    let set = |name: &str| env::var(name).unwrap_or_default();
    let listening = TcpListener::bind(set("TETHER_LISTEN"));
    let file = File::options()
        .append(true)
        .create(true)
        .open(set("BEACON_FILE"));
    let (Ok(_listening), Ok(mut file)) = (listening, file) else {
        return ExitCode::FAILURE;
    };
    let incarnation = set("BEACON_INCARNATION");
    loop {
        let line = format!("{incarnation} {}\n", BootClock.now().as_nanos());
        if file.write_all(line.as_bytes()).is_err() {
            return ExitCode::FAILURE;
        }
        thread::sleep(PAUSE);
    }
}
