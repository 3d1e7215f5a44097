//! What is put on a machine: what its page says, and pools to try it with.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use tether_tests::{
    ground::{Ground, packages, program_of_package},
    program,
};

/// As they are called where they are installed.
const PROGRAMS: [&str; 5] = [
    "tether",
    "tether-gateway",
    "tether-arbiter",
    "tether-discovery",
    "tether-agent",
];

/// Runs a pool for as long as it runs, as an application would.
const APPLICATION: &str = "
[Service]
ExecStart=/usr/bin/tether run --file /opt/%i.toml --owner beam
";

/// A store that several services can read.
const ETCD: &str = "
[Service]
Type=notify
ExecStart=/usr/bin/etcd --data-dir=/run/etcd/data --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 --initial-cluster=default=http://127.0.0.1:2380
RuntimeDirectory=etcd
";

/// Headings of the page on systemd below which there are commands, all of which are run.
const FOLLOWED: [&str; 6] = [
    "Install",
    "Or as a package",
    "One machine",
    "Each service by itself",
    "Started by the first caller",
    "What outlives what",
];

pub(super) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Pools by the names of their files, each with one worker.
const POOLS: [(&str, &str, &str, &str); 6] = [
    ("coupled", "unix", "mode = 'coupled'", ""),
    ("independent", "unix", "mode = 'independent'", ""),
    (
        "unit",
        "unix",
        "mode = 'supervised'\npolicy = { launcher = 'systemd' }",
        "",
    ),
    ("tcp", "tcp", "mode = 'independent'", ""),
    (
        "bound",
        "unix",
        "mode = 'independent'\npolicy = { on_agent_loss = 'kill' }",
        "",
    ),
    (
        "greedy",
        "unix",
        "mode = 'independent'",
        "limits = { memory = '96MiB' }",
    ),
];

/// Puts everything there but what the page installs.
pub(super) fn put(ground: &mut Ground) {
    ground.bind(&repository().join("deploy"), "/src/deploy");
    for name in PROGRAMS {
        ground.bind(&program(name), &format!("/src/target/release/{name}"));
    }
    if let Ok(supervisors) = packages("supervisors") {
        ground.bind(&supervisors, "/supervisors");
    }
    if let Ok(etcd) = program_of_package("etcd") {
        ground.bind(&etcd, "/usr/bin/etcd");
        ground.write("etc/systemd/system/etcd.service", ETCD);
    }
    ground.write("opt/worker.py", include_str!("worker.py"));
    ground.write("opt/greedy.py", include_str!("greedy.py"));
    ground.write("opt/caller.py", include_str!("caller.py"));
    ground.write("etc/systemd/system/beam@.service", APPLICATION);
    for (name, listen, mode, limits) in POOLS {
        let script = match name {
            "greedy" => "greedy.py",
            _ => "worker.py",
        };
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "[template.w]\ncommand = '/usr/bin/python3'\nargs = ['/opt/{script}']\nlisten = '{listen}'\n\
             readiness = {{ kind = 'connect' }}\n{limits}\n[pool.w]\ntemplate = 'w'\nsize = 1\n{mode}\n"
        );
        ground.write(&format!("opt/{name}.toml"), text);
    }
}

/// A page of docs/how-to.
pub(super) struct Page(String);

impl Page {
    pub(super) fn read(name: &str) -> Self {
        let path = repository().join(format!("docs/how-to/{name}.md"));
        Self(fs::read_to_string(path).expect("the page is there"))
    }

    /// Each heading of any level, with what stands below it up to the next one.
    fn sections(&self) -> Vec<(&str, String)> {
        let mut sections = vec![("", String::new())];
        let mut is_code = false;
        for line in self.0.lines() {
            is_code ^= line.starts_with("```");
            match line.trim_start_matches('#').strip_prefix(' ') {
                Some(heading) if line.starts_with('#') && !is_code => {
                    sections.push((heading, String::new()));
                }
                _ => {
                    if let Some((_, text)) = sections.last_mut() {
                        // Writing to a String cannot fail.
                        let _ = writeln!(text, "{line}");
                    }
                }
            }
        }
        sections
    }

    /// The blocks in this language below a heading.
    pub(super) fn blocks(&self, heading: &str, language: &str) -> Vec<String> {
        let begin = format!("```{language}\n");
        let sections = self.sections();
        let mut text = sections.iter().filter(|(name, _)| *name == heading);
        let text = text.next().map_or("", |(_, text)| text);
        let blocks = text.split(begin.as_str()).skip(1);
        blocks
            .filter_map(|rest| rest.split("```").next())
            .map(str::to_owned)
            .collect()
    }
}

/// The commands below a heading of the page on systemd.
pub(super) fn commands(heading: &str) -> String {
    assert!(FOLLOWED.contains(&heading), "`{heading}`");
    let commands = Page::read("systemd").blocks(heading, "sh").concat();
    assert!(!commands.is_empty(), "no commands below `{heading}`");
    commands
}

/// The commands that install it, where the programs are not copied but shown.
pub(super) fn install() -> String {
    format!("cd /src\n{}", commands("Install"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_commands_of_the_page_on_systemd_are_left_out() {
        let page = Page::read("systemd");
        let sections = page.sections();
        let with = sections.iter().filter(|(_, text)| text.contains("```sh\n"));

        let headings: Vec<_> = with.map(|(heading, _)| *heading).collect();

        assert_eq!(headings, FOLLOWED);
    }

    #[test]
    fn blocks_are_those_below_their_own_heading() {
        let page = Page(
            "# A\n```sh\na\n# b\n```\n```ini\nc\n```\n### D\n```sh\nd\n```\n```sh\ne\n```\n"
                .to_owned(),
        );

        assert_eq!(page.blocks("A", "sh"), ["a\n# b\n"]);
        assert_eq!(page.blocks("D", "sh"), ["d\n", "e\n"]);
        assert_eq!(page.blocks("A", "toml"), [""; 0]);
    }
}
