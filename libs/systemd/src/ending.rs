//! How the last run of a unit ended, from what systemd says of it.

/// The codes of `waitid(2)`, as `ExecMainCode` has them.
const CLD_EXITED: i32 = 1;
const CLD_KILLED: i32 = 2;
const CLD_DUMPED: i32 = 3;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its main process exited with this code.
    Exited(i32),
    /// This signal ended its main process.
    Signaled(i32),
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// It sent no WATCHDOG=1 in time.
    Watchdog,
    /// It did not start within its time.
    NeverStarted,
    /// systemd could not start it at all.
    Unstartable,
}

impl Ending {
    /// From the properties `Result`, `ExecMainCode` and `ExecMainStatus`; `ran` tells whether it counted as started.
    /// None where it has not run yet.
    pub fn of(result: &str, code: i32, status: i32, ran: bool) -> Option<Self> {
        let by_process = match code {
            CLD_EXITED => Some(Self::Exited(status)),
            CLD_KILLED | CLD_DUMPED => Some(Self::Signaled(status)),
            _ => None,
        };
        match result {
            // The reason comes before how the process went: a watchdog ends it by a signal.
            "oom-kill" => Some(Self::OutOfMemory),
            "watchdog" => Some(Self::Watchdog),
            "timeout" if !ran => Some(Self::NeverStarted),
            "success" | "exit-code" | "signal" | "core-dump" | "timeout" => by_process,
            // `protocol`, `resources`, `start-limit-hit`, `exec-condition`, and what later versions may have.
            _ => by_process.or(Some(Self::Unstartable)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_counts_for_more_than_the_process() {
        let ended = |result, code, status| Ending::of(result, code, status, true);

        assert_eq!(ended("success", 0, 0), None);
        assert_eq!(ended("success", 1, 0), Some(Ending::Exited(0)));
        assert_eq!(ended("exit-code", 1, 3), Some(Ending::Exited(3)));
        assert_eq!(ended("signal", 2, 9), Some(Ending::Signaled(9)));
        assert_eq!(ended("core-dump", 3, 11), Some(Ending::Signaled(11)));
        assert_eq!(ended("oom-kill", 2, 9), Some(Ending::OutOfMemory));
        assert_eq!(ended("watchdog", 3, 6), Some(Ending::Watchdog));
        assert_eq!(ended("timeout", 2, 9), Some(Ending::Signaled(9)));
        assert_eq!(
            Ending::of("timeout", 2, 15, false),
            Some(Ending::NeverStarted)
        );
        assert_eq!(ended("start-limit-hit", 0, 0), Some(Ending::Unstartable));
    }
}
