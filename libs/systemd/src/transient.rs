//! Units that exist for as long as they run, and how limits are said to systemd.

use std::time::Duration;

use zbus::Variant;

/// Limits of all processes of a unit; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Processor time in thousandths of one processor.
    pub cpu_millis: u32,
    /// Processes and threads.
    pub tasks: u32,
}

impl Limits {
    pub(crate) fn properties(self) -> Vec<(&'static str, Variant<'static>)> {
        let mut properties = Vec::new();
        if self.memory_bytes > 0 {
            properties.push(("MemoryMax", Variant::from(self.memory_bytes)));
        }
        if self.cpu_millis > 0 {
            // Microseconds of processor time in a second.
            let quota = u64::from(self.cpu_millis) * 1000;
            properties.push(("CPUQuotaPerSecUSec", Variant::from(quota)));
        }
        if self.tasks > 0 {
            properties.push(("TasksMax", Variant::from(u64::from(self.tasks))));
        }
        properties
    }
}

/// A service to start.
#[derive(Debug, Clone, Default)]
pub struct Transient {
    /// For people.
    pub description: String,
    /// Program and arguments; the first is a full path.
    pub argv: Vec<String>,
    /// What systemd runs once its main process is gone, however that came; empty for nothing.
    pub after: Vec<String>,
    /// Environment of both, each as `NAME=value`.
    pub env: Vec<String>,
    /// In which slice.
    pub slice: String,
    /// The unit with which it ends; empty for none.
    pub binds_to: String,
    /// Between SIGTERM to its main process and SIGKILL to all.
    pub stop_timeout: Duration,
    /// Most open files; 0 is what systemd gives.
    pub files: u64,
    /// Limits of all of it.
    pub limits: Limits,
    /// What none of it may ever have.
    pub bounds: Bounds,
}

/// A scope to make around a process that runs already; what is below it belongs to whoever asked for it.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// For people.
    pub description: String,
    /// Its first process.
    pub pid: u32,
    /// In which slice.
    pub slice: String,
}

impl Scope {
    pub(crate) fn properties(&self) -> Vec<(&'static str, Variant<'static>)> {
        vec![
            ("Description", Variant::from(self.description.clone())),
            ("PIDs", Variant::from(vec![self.pid])),
            ("Slice", Variant::from(self.slice.clone())),
            ("Delegate", Variant::from(true)),
        ]
    }

    /// From systemd 253 on, the end of one process for want of memory would otherwise be the end of all; before, there is
    /// no such property.
    pub(crate) fn sparing(&self) -> Vec<(&'static str, Variant<'static>)> {
        let mut properties = self.properties();
        properties.push(("OOMPolicy", Variant::from("continue")));
        properties
    }
}

/// What no process of a unit can win back; the default takes nothing away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    /// No program has more than who runs it.
    pub no_new_privileges: bool,
    /// The only capabilities that there can be, a bit for each.
    pub capabilities: Option<u64>,
}

impl Bounds {
    /// Those of a process, from its `/proc/PID/status`.
    pub fn of(status: &str) -> Self {
        let value = |key: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| Some(line.strip_prefix(key)?.trim()))
        };
        Self {
            no_new_privileges: value("NoNewPrivs:") == Some("1"),
            capabilities: value("CapBnd:").and_then(|set| u64::from_str_radix(set, 16).ok()),
        }
    }

    fn properties(self) -> Vec<(&'static str, Variant<'static>)> {
        let mut properties = Vec::new();
        if self.no_new_privileges {
            properties.push(("NoNewPrivileges", Variant::from(true)));
        }
        if let Some(set) = self.capabilities {
            properties.push(("CapabilityBoundingSet", Variant::from(set)));
        }
        properties
    }
}

impl Transient {
    pub(crate) fn properties(&self) -> Vec<(&'static str, Variant<'static>)> {
        let micros = u64::try_from(self.stop_timeout.as_micros()).unwrap_or(u64::MAX);
        let runs = |argv: &[String]| {
            let program = argv.first().cloned().unwrap_or_default();
            Variant::from(vec![(program, argv.to_vec(), false)])
        };
        let mut properties = vec![
            ("Description", Variant::from(self.description.clone())),
            ("Type", Variant::from("simple")),
            ("ExecStart", runs(&self.argv)),
            ("Slice", Variant::from(self.slice.clone())),
            // Its main process ends the others in its own order; what is left of them is killed.
            ("KillMode", Variant::from("mixed")),
            ("TimeoutStopUSec", Variant::from(micros)),
            // Who starts the next one is the arbiter.
            ("Restart", Variant::from("no")),
            // All of it or nothing, as elsewhere.
            ("OOMPolicy", Variant::from("kill")),
        ];
        if !self.after.is_empty() {
            properties.push(("ExecStopPost", runs(&self.after)));
        }
        if !self.env.is_empty() {
            properties.push(("Environment", Variant::from(self.env.clone())));
        }
        if self.files > 0 {
            properties.push(("LimitNOFILE", Variant::from(self.files)));
            properties.push(("LimitNOFILESoft", Variant::from(self.files)));
        }
        if !self.binds_to.is_empty() {
            let unit = || Variant::from(vec![self.binds_to.clone()]);
            properties.extend([("BindsTo", unit()), ("After", unit())]);
        }
        properties.extend(self.limits.properties());
        properties.extend(self.bounds.properties());
        properties
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_bound_as_a_process_says_that_it_is() {
        let status =
            "Name:\tagent\nCapEff:\t0000000000000003\nCapBnd:\t00000000012002eb\nNoNewPrivs:\t1\n";
        let bounds = Bounds::of(status);
        let unit = Transient {
            bounds,
            ..Transient::default()
        };

        let properties = unit.properties();

        let has = |wanted| properties.contains(&wanted);
        assert!(has(("NoNewPrivileges", Variant::from(true))));
        assert!(has((
            "CapabilityBoundingSet",
            Variant::from(0x0120_02eb_u64)
        )));
        assert_eq!(Bounds::of("NoNewPrivs:\t0\n"), Bounds::default());
    }

    #[test]
    fn a_scope_is_made_around_a_process_and_belongs_to_who_asked_for_it() {
        let scope = Scope {
            pid: 42,
            slice: "tether-workers.slice".to_owned(),
            ..Scope::default()
        };
        let (old, new) = (scope.properties(), scope.sparing());

        assert!(old.contains(&("PIDs", Variant::from(vec![42_u32]))));
        assert!(old.contains(&("Slice", Variant::from("tether-workers.slice"))));
        assert!(old.contains(&("Delegate", Variant::from(true))));
        let more = new.strip_prefix(old.as_slice()).unwrap();
        assert_eq!(more, [("OOMPolicy", Variant::from("continue"))]);
    }
}
