//! How many descriptors may be open: three and more for each worker, where systems give a thousand.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
