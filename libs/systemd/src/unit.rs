//! How a unit stands.

use std::{collections::HashMap, fmt};

use zbus::{OwnedVariant, Variant};

use crate::Ending;

/// What is known of a unit at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Whether there is such a unit, or why not: `not-found`, `masked`, `bad-setting` and so on.
    pub load: String,
    /// Where it stands.
    pub active: Active,
    /// The same in the unit's own words, as in `stop-sigterm`.
    pub sub: String,
    /// Another one for each run; empty where it has not run.
    pub invocation: String,
    /// Its main process; 0 where it has none.
    pub main_pid: u32,
    /// Whether something is under way for it.
    pub has_job: bool,
    /// systemd's word for how its last run ended.
    pub result: String,
    code: i32,
    status: i32,
    /// Memory that all of it has, and may have; none where that is not counted, or not limited.
    pub memory: (Option<u64>, Option<u64>),
    /// Processor time in thousandths of one processor that it may have.
    pub cpu_millis: Option<u64>,
    /// Processes and threads that it may have.
    pub tasks_max: Option<u64>,
}

/// Where a unit stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Active {
    /// It runs.
    Active,
    /// It is being started, or waits to be started again.
    Activating,
    /// It is being stopped.
    Deactivating,
    /// It does not run.
    Inactive,
    /// It does not run, and ended badly.
    Failed,
}

type Properties = HashMap<String, OwnedVariant>;

impl Unit {
    pub(crate) fn of(unit: &Properties, service: &Properties) -> Self {
        let limit = |name| number(service, name).filter(|&value| value != u64::MAX);
        Self {
            load: text(unit, "LoadState"),
            active: match text(unit, "ActiveState").as_str() {
                "active" | "reloading" | "refreshing" => Active::Active,
                "activating" => Active::Activating,
                "deactivating" => Active::Deactivating,
                "failed" => Active::Failed,
                _ => Active::Inactive,
            },
            sub: text(unit, "SubState"),
            invocation: bytes(unit, "InvocationID")
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            main_pid: number(service, "MainPID")
                .and_then(|pid| u32::try_from(pid).ok())
                .unwrap_or_default(),
            has_job: has_job(unit),
            result: text(service, "Result"),
            code: signed(service, "ExecMainCode"),
            status: signed(service, "ExecMainStatus"),
            memory: (limit("MemoryCurrent"), limit("MemoryMax")),
            cpu_millis: limit("CPUQuotaPerSecUSec").map(|quota| quota / 1000),
            tasks_max: limit("TasksMax"),
        }
    }

    /// Whether systemd waits to start it again by itself.
    pub fn will_be_restarted(&self) -> bool {
        self.active == Active::Activating && self.sub.starts_with("auto-restart")
    }

    /// Whether it is being stopped because somebody asked for that.
    pub fn is_being_stopped(&self) -> bool {
        // Without a job it is the service's own doing, or that of a watchdog.
        self.active == Active::Deactivating
            && matches!(self.sub.as_str(), "stop" | "stop-sigterm")
            && self.has_job
    }

    /// How its last run ended; `ran` tells whether that counted as started.
    pub fn ending(&self, ran: bool) -> Option<Ending> {
        Ending::of(&self.result, self.code, self.status, ran)
    }

    /// What it has and may have, in words; empty where nothing is limited.
    pub fn limits(&self) -> String {
        let mut said = Vec::new();
        match self.memory {
            (Some(has), Some(max)) => said.push(format!("memory {} of {}", Mib(has), Mib(max))),
            (None, Some(max)) => said.push(format!("memory at most {}", Mib(max))),
            (_, None) => {}
        }
        if let Some(millis) = self.cpu_millis {
            said.push(format!("cpu at most {}%", millis / 10));
        }
        if let Some(tasks) = self.tasks_max {
            said.push(format!("tasks at most {tasks}"));
        }
        said.join(", ")
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            result,
            code,
            status,
            ..
        } = self;
        let how = match code {
            1 => format!(", exit code {status}"),
            2 | 3 => format!(", signal {status}"),
            _ => String::new(),
        };
        write!(f, "Result={result}{how}")
    }
}

struct Mib(u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

fn text(properties: &Properties, name: &str) -> String {
    match properties.get(name).map(|value| &**value) {
        Some(Variant::Str(text)) => text.as_str().to_owned(),
        _ => String::new(),
    }
}

fn number(properties: &Properties, name: &str) -> Option<u64> {
    match properties.get(name).map(|value| &**value)? {
        Variant::U32(value) => Some(u64::from(*value)),
        Variant::U64(value) => Some(*value),
        _ => None,
    }
}

fn signed(properties: &Properties, name: &str) -> i32 {
    match properties.get(name).map(|value| &**value) {
        Some(Variant::I32(value)) => *value,
        _ => 0,
    }
}

fn bytes(properties: &Properties, name: &str) -> Vec<u8> {
    match properties.get(name).map(|value| &**value) {
        Some(Variant::Array(array)) => array
            .iter()
            .filter_map(|byte| match byte {
                Variant::U8(byte) => Some(*byte),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn has_job(properties: &Properties) -> bool {
    match properties.get("Job").map(|value| &**value) {
        Some(Variant::Structure(job)) => {
            matches!(job.fields().first(), Some(Variant::U32(id)) if *id != 0)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(given: &[(&str, Variant<'static>)]) -> Unit {
        let properties = given
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.try_to_owned().unwrap()))
            .collect::<Properties>();
        Unit::of(&properties, &properties)
    }

    #[test]
    fn what_systemd_says_is_read_and_what_it_does_not_say_is_nothing() {
        let seen = unit(&[
            ("LoadState", "loaded".into()),
            ("ActiveState", "activating".into()),
            ("SubState", "auto-restart".into()),
            ("InvocationID", vec![0x0au8, 0xff].into()),
            ("MainPID", 42u32.into()),
            ("Result", "signal".into()),
            ("ExecMainCode", 2i32.into()),
            ("ExecMainStatus", 9i32.into()),
            ("MemoryMax", (100u64 << 20).into()),
            ("MemoryCurrent", u64::MAX.into()),
            ("CPUQuotaPerSecUSec", 500_000u64.into()),
        ]);

        assert!(seen.will_be_restarted());
        assert_eq!((seen.invocation.as_str(), seen.main_pid), ("0aff", 42));
        assert_eq!(seen.ending(true), Some(Ending::Signaled(9)));
        assert_eq!(seen.to_string(), "Result=signal, signal 9");
        assert_eq!(seen.limits(), "memory at most 100 MiB, cpu at most 50%");
        let none = unit(&[]);
        assert_eq!((none.active, none.has_job), (Active::Inactive, false));
        assert_eq!(none.limits(), "");
    }
}
