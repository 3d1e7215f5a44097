//! How many descriptors may be open: three and more for each worker, where systems give a thousand.

use rustix::{
    io::fcntl_dupfd_cloexec,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// What a thousand workers take, each with a connection that is being made.
const ROOM: i32 = 4096;

/// Has the kernel make room for the descriptors of many workers, to be called while there is one thread.
///
/// A table of descriptors that is too small is doubled, and with more than one thread the one that needs it
/// waits until every processor has passed a quiet state: some milliseconds, several times over, and in the
/// middle of taking over a thousand workers.
pub fn make_room() {
    let given = getrlimit(Resource::Nofile);
    ask_for_all();
    // Where it is refused, the table grows as it always did.
    drop(fcntl_dupfd_cloexec(std::io::stdin(), ROOM - 1));
    let _ = setrlimit(Resource::Nofile, given);
}

/// Asks for as many as this process may have; how many it had been given.
///
/// Programs that use `select(2)` break where they get descriptors above 1,023, so what is asked for here is
/// the agent's alone: the zygote goes back to what was given.
pub(crate) fn ask_for_all() -> Option<u64> {
    let given = getrlimit(Resource::Nofile);
    let all = Rlimit {
        current: given.maximum,
        ..given
    };
    // What is refused stays as it was, and is told where it runs out.
    let _ = setrlimit(Resource::Nofile, all);
    given.current
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_also_beyond_what_was_given_and_what_was_given_stays() {
        let given = getrlimit(Resource::Nofile);

        make_room();

        assert_eq!(getrlimit(Resource::Nofile), given);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let room = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        let room: u64 = room.unwrap().trim().parse().unwrap();
        assert!(room >= given.maximum.unwrap_or(u64::MAX).min(ROOM as u64));
    }
}
