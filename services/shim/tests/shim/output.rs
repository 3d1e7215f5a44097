//! Output: a worker never waits for its log, and a log never outgrows its limit.

use std::fs;

use tether_shim_protocol::{STDERR_FILE, STDERR_TAIL_BYTES, STDOUT_FILE};

use crate::harness::{Shim, python, sh};

#[test]
fn a_worker_that_prints_50_mib_neither_waits_nor_fills_the_disk() {
    let limit = 1 << 20;
    let mut launch = python(
        "
line = b'x' * 1023 + b'\\n'
for _ in range(50 * 1024): os.write(1, line)
os.write(1, b'the end\\n')",
    );
    launch.logs.limit_bytes = limit;
    let mut shim = Shim::start(launch);

    let dead = shim.dead();

    assert_eq!((dead.exit_code, dead.log_lost_bytes), (Some(0), 0));
    let newest = fs::read(shim.path(STDOUT_FILE)).unwrap();
    let older = fs::metadata(shim.path(&format!("{STDOUT_FILE}.1")))
        .unwrap()
        .len();
    assert!(newest.ends_with(b"the end\n"));
    assert!(
        newest.len() as u64 <= limit && older == limit,
        "{} and {older}",
        newest.len()
    );
}

#[test]
fn a_worker_whose_log_cannot_be_written_lives_on() {
    let mut launch = sh("read go < $EVENTS; echo lost; echo lost too >&2; exit 5");
    launch.cwd = b"/".to_vec();
    let mut shim = Shim::start(launch);
    shim.started();
    for log in [STDOUT_FILE, STDERR_FILE] {
        fs::create_dir(shim.path(log)).unwrap();
    }

    fs::write(shim.path("events"), "go\n").unwrap();
    let dead = shim.dead();

    assert_eq!((dead.exit_code, dead.log_lost_bytes), (Some(5), 14));
    assert_eq!(dead.stderr_tail, b"lost too\n");
}

#[test]
fn only_the_end_of_standard_error_goes_with_the_death() {
    let mut shim = Shim::start(sh("seq 1 5000 >&2"));

    let dead = shim.dead();

    assert_eq!(dead.stderr_tail.len(), STDERR_TAIL_BYTES);
    assert!(dead.stderr_tail.ends_with(b"\n4999\n5000\n"));
    let kept = fs::read_to_string(shim.path(STDERR_FILE)).unwrap();
    assert!(kept.starts_with("1\n2\n") && kept.ends_with("\n5000\n"));
}
