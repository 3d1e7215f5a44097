//! Every row of the design's testing matrix and of its matrix of crashes and recoveries, with what proves it.
//!
//! What is expected is in the design's words, as [corrected](../../../docs/adr/0014-corrections-to-the-first-design.md):
//! where it allowed orphans until the next start, none are allowed now.

use crate::plan::{Claim, Row, Suite};

/// Every row, in the design's order.
pub(crate) const ALL: &[Row] = &[
    row(
        "coupled",
        "normal shutdown of the BEAM",
        "no orphans",
        &[beams("coupled, it ends in good order")],
    ),
    row(
        "coupled",
        "crash of the BEAM, Ctrl-C",
        "workers die at once, no orphans",
        &[beams("coupled, it crashes")],
    ),
    row(
        "coupled",
        "kill -9 of the BEAM",
        "workers die at once, no orphans",
        &[
            beams("killed, services in the port, workers busy"),
            beams("killed, services apart, workers busy"),
        ],
    ),
    row(
        "coupled",
        "kill -9 of the BEAM and the agent at once",
        "workers die at once, no orphans",
        &[beams("coupled, killed with its agent")],
    ),
    row(
        "coupled",
        "crash of a worker",
        "the BEAM is told at once, the worker is restarted",
        &[beams("coupled, a worker crashes")],
    ),
    row(
        "coupled",
        "fast restarts by a developer",
        "fast cleanup, nothing grows",
        &[
            beams("coupled, restarted again and again, services in the port"),
            beams("coupled, restarted again and again, services apart"),
        ],
    ),
    row(
        "supervised",
        "systemctl stop of the BEAM, no BindsTo",
        "Python continues",
        &[launchers("systemctl stop of a BEAM")],
    ),
    row(
        "supervised",
        "systemctl stop of the BEAM, BindsTo",
        "Python dies",
        &[launchers(
            "systemctl stop of a BEAM to which its workers are bound",
        )],
    ),
    row(
        "supervised",
        "kill -9 of the BEAM, no BindsTo",
        "Python continues, systemd restarts the BEAM, which reconnects",
        &[
            launchers("kill -9 of a BEAM"),
            launchers("kill -9 of an owner"),
        ],
    ),
    row(
        "supervised",
        "kill -9 of the BEAM, BindsTo",
        "Python dies",
        &[
            launchers("kill -9 of a BEAM to which its workers are bound"),
            launchers("kill -9 of an owner to which its workers are bound"),
        ],
    ),
    row(
        "supervised",
        "crash of a worker",
        "it is restarted, the BEAM is told",
        &[launchers("kill -9 of a BEAM's worker")],
    ),
    row(
        "supervised",
        "crash of a worker that is a unit of its own",
        "the arbiter has its unit started again, and says why it died",
        &[launchers("kill -9 of such a unit's main process")],
    ),
    row(
        "supervised",
        "restart of the system",
        "clean shutdown, pools of those that come back come back",
        &[launchers("reboot of the machine")],
    ),
    row(
        "independent",
        "crash of the BEAM, nobody returns",
        "Python continues until the timeout (60 s, here 2 s), then exits",
        &[beams("independent, nobody comes back")],
    ),
    row(
        "independent",
        "crash of the BEAM, it returns before",
        "reconnect, to the same process and its job",
        &[beams("independent, another BEAM comes for its job")],
    ),
    row(
        "independent",
        "BEAMs, agent and worker crash while it trains",
        "training survives, state is kept",
        &[beams("ten minutes of work")],
    ),
    row(
        "independent",
        "crash of a worker",
        "the BEAM detects it, the worker is restarted",
        &[beams("independent, a worker crashes")],
    ),
    row(
        "independent",
        "BEAM that hangs",
        "heartbeat timeout, both end",
        &[beams("stopped, independent")],
    ),
    row(
        "independent",
        "out of memory",
        "the worker dies with all it started, the death says why, the agent lives",
        &[
            systemd("a worker out of memory dies with its daemon, and the death says why"),
            systemd("the agent does not die of its worker's death"),
        ],
    ),
    row(
        "independent",
        "network partition",
        "heartbeat timeout, both self-terminate",
        &[partitions("gateway x> owner, independent, heals after")],
    ),
    row(
        "distributed",
        "crash of the BEAM",
        "Python continues, the next BEAM reconnects",
        &[
            compose("BEAM killed", "workers over a BEAM's death"),
            compose("BEAM killed", "calls of the next BEAM"),
        ],
    ),
    row(
        "distributed",
        "crash of a worker",
        "the BEAM is told, it is restarted, the others are not touched",
        &[
            compose("worker killed", "what its owner is told of a killed worker"),
            compose("worker killed", "workers over a worker's death"),
        ],
    ),
    row(
        "distributed",
        "eviction of workers' container",
        "started elsewhere first, no call fails",
        &[
            compose(
                "scaled",
                "calls while there are three of each, and two again",
            ),
            compose("scaled", "workers that died meanwhile"),
        ],
    ),
    row(
        "distributed",
        "kill -9 of workers' container",
        "started again there or elsewhere, the others are not touched",
        &[compose(
            "agent killed",
            "workers of a killed agent's container",
        )],
    ),
    row(
        "distributed",
        "calls while that container is gone",
        "only calls under way there fail, all others go elsewhere",
        &[
            compose("agent killed", "calls over an agent's death"),
            compose("agent killed", "calls after it"),
        ],
    ),
    row(
        "distributed",
        "node cut off",
        "self-terminates, and only then is its place filled elsewhere",
        &[compose("node cut off", "workers of a node that is cut off")],
    ),
    row(
        "distributed",
        "calls while a node is cut off",
        "only calls that are sent there fail until its lease is over",
        &[compose("node cut off", "calls over the cut")],
    ),
    row(
        "distributed",
        "node that never comes back",
        "its places are filled elsewhere when its lease is over, nobody lives twice",
        &[
            compose("node lost", "workers of a node that never comes back"),
            compose("node lost", "processes for their four places"),
        ],
    ),
    row(
        "distributed",
        "calls while a node is lost",
        "only calls that are sent there fail until its lease is over",
        &[compose("node lost", "calls over the loss")],
    ),
    row(
        "distributed",
        "network partition",
        "the worker self-terminates, its owner goes on, placed again when that is safe",
        &[partitions("arbiter <x node-1, distributed, heals after")],
    ),
];

const fn claim(suite: Suite, name: &'static str) -> Claim {
    Claim {
        suite,
        name,
        scene: name,
    }
}

const fn beams(name: &'static str) -> Claim {
    claim(Suite::Beams, name)
}

const fn partitions(name: &'static str) -> Claim {
    claim(Suite::Partitions, name)
}

const fn systemd(name: &'static str) -> Claim {
    claim(Suite::Systemd, name)
}

const fn launchers(name: &'static str) -> Claim {
    claim(Suite::Launchers, name)
}

/// One of several that a scene makes.
const fn compose(scene: &'static str, name: &'static str) -> Claim {
    Claim {
        suite: Suite::Compose,
        name,
        scene,
    }
}

const fn row(
    mode: &'static str,
    scenario: &'static str,
    expected: &'static str,
    claims: &'static [Claim],
) -> Row {
    Row {
        mode,
        scenario,
        expected,
        claims,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::needs;

    /// What the first design's matrices ask for, by their headings, and the rows that answer. Not asked here: what was no
    /// loss (examples, which `cargo xtask demo` runs), and partitions of one host, which cannot be.
    const DESIGN: &[(&str, &[(&str, &str)])] = &[
        (
            "development",
            &[
                ("coupled", "normal shutdown of the BEAM"),
                ("coupled", "crash of the BEAM, Ctrl-C"),
                ("coupled", "kill -9 of the BEAM"),
                ("coupled", "fast restarts by a developer"),
            ],
        ),
        (
            "production monolith",
            &[
                ("supervised", "systemctl stop of the BEAM, no BindsTo"),
                ("supervised", "systemctl stop of the BEAM, BindsTo"),
                ("supervised", "kill -9 of the BEAM, no BindsTo"),
                ("supervised", "kill -9 of the BEAM, BindsTo"),
                ("supervised", "restart of the system"),
                ("independent", "out of memory"),
            ],
        ),
        (
            "production distributed",
            &[
                ("distributed", "crash of the BEAM"),
                ("distributed", "eviction of workers' container"),
                ("distributed", "kill -9 of workers' container"),
                ("distributed", "node cut off"),
                ("distributed", "node that never comes back"),
                ("distributed", "network partition"),
            ],
        ),
        (
            "long-running jobs",
            &[
                (
                    "independent",
                    "BEAMs, agent and worker crash while it trains",
                ),
                ("independent", "crash of the BEAM, it returns before"),
            ],
        ),
        (
            "BEAM crashes",
            &[
                ("coupled", "kill -9 of the BEAM"),
                ("supervised", "kill -9 of the BEAM, no BindsTo"),
                ("supervised", "kill -9 of the BEAM, BindsTo"),
                ("independent", "crash of the BEAM, nobody returns"),
                ("independent", "crash of the BEAM, it returns before"),
                ("distributed", "crash of the BEAM"),
            ],
        ),
        (
            "Python crashes",
            &[
                ("coupled", "crash of a worker"),
                ("supervised", "crash of a worker"),
                ("independent", "crash of a worker"),
                ("distributed", "crash of a worker"),
            ],
        ),
        (
            "network partition",
            &[
                ("independent", "network partition"),
                ("distributed", "network partition"),
            ],
        ),
    ];

    const PAGE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/reference/modes-matrix.md"
    );

    #[test]
    fn every_row_that_the_design_asks_for_is_there() {
        for (heading, pairs) in DESIGN {
            for (mode, scenario) in *pairs {
                let mut rows = ALL.iter();
                let found = rows.any(|row| (row.mode, row.scenario) == (*mode, *scenario));
                assert!(found, "{heading}: {mode}, {scenario}");
            }
        }
    }

    #[test]
    fn the_page_has_a_line_for_each_row_and_no_other() {
        let page = std::fs::read_to_string(PAGE).expect("a page");
        let lines = page.lines().filter(|line| line.starts_with("| "));
        let names: Vec<_> = lines
            .skip(2)
            .map(|line| line.split(" | ").take(2).collect::<Vec<_>>().join(": "))
            .map(|name| name.trim_start_matches("| ").to_owned())
            .collect();
        let rows: Vec<_> = ALL.iter().map(Row::name).collect();

        assert_eq!(names, rows, "`cargo xtask matrix modes --docs` writes it");
    }

    #[test]
    fn each_row_has_a_name_of_its_own_and_something_that_proves_it() {
        let mut names: Vec<_> = ALL.iter().map(Row::name).collect();
        names.sort();
        names.dedup();

        assert_eq!(names.len(), ALL.len());
        assert!(ALL.iter().all(|row| !row.claims.is_empty()));
    }

    #[test]
    fn a_scene_that_proves_two_rows_is_asked_for_once() {
        let rows: Vec<_> = ALL.iter().filter(|row| row.mode == "distributed").collect();

        assert_eq!(
            needs(&rows)[&Suite::Compose],
            [
                "BEAM killed",
                "worker killed",
                "scaled",
                "agent killed",
                "node cut off",
                "node lost"
            ]
        );
    }
}
