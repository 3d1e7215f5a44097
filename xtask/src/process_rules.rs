//! Rules on how processes are made and ended, each of which was broken once somewhere and cost an orphan,
//! an innocent death or a second of every spawn.

use crate::lints::Finding;

/// Something that Rust code of this workspace does not say, but in the places named.
struct Rule {
    /// Written in two halves where it would be found here.
    needle: &'static str,
    /// Beginnings of the paths in which it may be said.
    allowed: &'static [&'static str],
    why: &'static str,
}

const SYS: &str = "libs/sys/";
const SHIM: &str = "services/shim/";
const AGENT: &str = "services/agent/";

/// Has one thread, and shows what the kernel takes for a start.
const FLOOR: &str = "benches/src/bin/floor.rs";

const RULES: &[Rule] = &[
    Rule {
        needle: concat!("kill_", "process"),
        allowed: &[],
        why: "signals a process id, which is somebody else's within seconds; open a pidfd, check that it is the one, and use `pidfd_send_signal`",
    },
    Rule {
        needle: concat!("libc::", "kill("),
        allowed: &[],
        why: "signals a process id, which is somebody else's within seconds; open a pidfd, check that it is the one, and use `pidfd_send_signal`",
    },
    Rule {
        needle: concat!("kill_current_", "process_group"),
        allowed: &[],
        why: "signals a process group, whose members are somebody else's to know",
    },
    Rule {
        needle: concat!("call!(", "kill"),
        allowed: &[],
        why: "signals a process id, which is somebody else's within seconds; open a pidfd, check that it is the one, and use `pidfd_send_signal`",
    },
    Rule {
        needle: concat!("call!(", "tkill"),
        allowed: &[],
        why: "signals a thread id, which is somebody else's within seconds",
    },
    Rule {
        needle: concat!("call!(", "tgkill"),
        allowed: &[],
        why: "signals a thread id, which is somebody else's within seconds",
    },
    Rule {
        needle: concat!("set_parent_process_", "death_signal"),
        allowed: &[SHIM],
        why: "goes off when the thread that forked ends, not the process; only the shim and its children, which have one thread, may ask for it",
    },
    Rule {
        needle: concat!("unsafe", " {"),
        allowed: &[SYS],
        why: "raw calls are made in `libs/sys` alone, where somebody can audit all of them",
    },
    Rule {
        needle: concat!("allow(", "unsafe_code)"),
        allowed: &[SYS],
        why: "raw calls are made in `libs/sys` alone, where somebody can audit all of them",
    },
    Rule {
        needle: concat!("tether_sys::", "fork("),
        allowed: &[SYS, SHIM, FLOOR],
        why: "forks without exec, which is safe only in a program with one thread: the zygote and what comes of it",
    },
    Rule {
        needle: concat!("start_", "init("),
        allowed: &[SYS, SHIM, FLOOR],
        why: "shares memory between processes, which is safe only in a shim",
    },
    Rule {
        needle: concat!("become_", "beside("),
        allowed: &[SYS, SHIM, FLOOR],
        why: "shares memory between processes, which is safe only in a program with one thread",
    },
    Rule {
        needle: concat!("Rooms::", "set_aside("),
        allowed: &[SYS, SHIM],
        why: "shares memory between processes, which is safe only in a zygote",
    },
];

/// Where code runs in processes that share memory: the program's own file has only what comes before them.
const SHARED: &[&str] = &[
    "services/shim/src/",
    "libs/clock/src/",
    "libs/shim-protocol/src/",
];
/// What of these is in no shim: its program's beginning, and what only programs with `std` have.
const NOT_SHARED: &[&str] = &["services/shim/src/main.rs", "libs/clock/src/source.rs"];

/// Where cgroups of workers are made. A leaf is made with a call that refuses one which is there already: it is
/// another's, or was killed once, and then the kernel kills whoever is born in it.
const LEAVES: &[&str] = &[
    "services/shim/src/cgroup.rs",
    "services/agent/src/limits.rs",
];
const REUSES: &str = concat!("create_dir", "_all(");

/// What the agent does not do when it starts a program: each of these makes the standard library fork a
/// process with all of the agent's memory instead of spawning.
const AGENT_RULES: &[&str] = &[
    concat!(".pre_", "exec("),
    concat!(".uid", "("),
    concat!(".gid", "("),
    concat!(".groups", "("),
];

/// Lines of Rust code that break one of the rules.
pub(crate) fn broken(path: &str, text: &str) -> Vec<Finding> {
    if !path.ends_with(".rs") {
        return Vec::new();
    }
    let is_test =
        path.starts_with("tests/") || path.starts_with("benches/") || path.contains("/tests/");
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        let mut find = |needle: &str, why: &str| {
            findings.push(Finding {
                line: index + 1,
                problem: format!("`{needle}` {why}"),
            });
        };
        for rule in RULES {
            let may = rule.allowed.iter().any(|place| path.starts_with(place));
            // A test program's own memory is its own business.
            let excused = is_test && rule.needle.starts_with("unsafe");
            if !may && !excused && code.contains(rule.needle) {
                find(rule.needle, rule.why);
            }
        }
        let is_shared =
            SHARED.iter().any(|shared| path.starts_with(shared)) && !NOT_SHARED.contains(&path);
        if is_shared && (code.starts_with("static ") || code.contains(" static ")) {
            find(
                "static",
                "is every shim's at once; keep it in the shim, or in what it shares with its own children",
            );
        }
        if LEAVES.contains(&path) && code.contains(REUSES) {
            find(REUSES, "takes a cgroup that is there already for a new one");
        }
        if path.starts_with(AGENT) && !is_test {
            for needle in AGENT_RULES {
                if code.contains(needle) {
                    find(
                        needle,
                        "makes the agent fork all of its memory at each start; the shim's child does this",
                    );
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_is_kept_but_where_it_may_be_broken() {
        for rule in RULES {
            let text = format!("fn f() {{\n    {}\n}}\n", rule.needle);

            assert_eq!(
                broken("services/gateway/src/x.rs", &text).len(),
                1,
                "{}",
                rule.needle
            );
            for place in rule.allowed {
                assert_eq!(
                    broken(&format!("{place}src/x.rs"), &text).len(),
                    0,
                    "{}",
                    rule.needle
                );
            }
            let comment = format!("// {}\n", rule.needle);
            assert_eq!(broken("services/gateway/src/x.rs", &comment).len(), 0);
        }
    }

    #[test]
    fn no_cgroup_is_used_twice() {
        for path in LEAVES {
            let text = format!("fs::{REUSES}path);\n");

            assert_eq!(broken(path, &text).len(), 1);
        }
    }

    #[test]
    fn shims_share_no_variable() {
        let text = "static COUNT: AtomicU32 = AtomicU32::new(0);\n";

        assert_eq!(broken("services/shim/src/plan.rs", text).len(), 1);
        assert_eq!(broken("services/shim/src/main.rs", text).len(), 0);
        assert_eq!(
            broken("services/shim/src/plan.rs", "fn f(_: &'static str) {}\n").len(),
            0
        );
    }

    #[test]
    fn the_agent_spawns_and_does_not_fork() {
        for needle in AGENT_RULES {
            let text = format!("command{needle}0);\n");

            assert_eq!(broken("services/agent/src/x.rs", &text).len(), 1);
            assert_eq!(broken("services/agent/tests/x.rs", &text).len(), 0);
        }
    }
}
