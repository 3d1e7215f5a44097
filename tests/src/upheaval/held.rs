//! What processes hold over time, and whether it grows.

use std::{collections::BTreeMap, fs, time::Duration};

use tokio::{sync::watch, task::JoinHandle, time::interval};

use crate::place::Processes;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// Memory and descriptors of one process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Held {
    pub(crate) kib: u64,
    pub(crate) descriptors: u64,
}

impl Held {
    /// Of a process that lives.
    pub(crate) fn by(pid: u32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        Some(Self {
            kib: line.split_whitespace().next()?.parse().ok()?,
            descriptors: descriptors as u64,
        })
    }
}

/// Looks at each of several processes; a process that is replaced begins anew.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    held: BTreeMap<(String, u32), Vec<Held>>,
    count: usize,
}

/// Looks that go on until they are ended.
pub(crate) struct Watch {
    go_on: watch::Sender<()>,
    looking: JoinHandle<Looks>,
}

impl Watch {
    pub(crate) fn start(processes: watch::Receiver<Processes>) -> Self {
        let (go_on, mut ended) = watch::channel(());
        let looking = tokio::spawn(async move {
            let (mut looks, mut pace) = (Looks::default(), interval(PAUSE));
            loop {
                tokio::select! {
                    _ = pace.tick() => {}
                    _ = ended.changed() => return looks,
                }
                looks.look(&processes.borrow());
            }
        });
        Self { go_on, looking }
    }

    pub(crate) async fn end(self) -> anyhow::Result<Looks> {
        drop(self.go_on);
        Ok(self.looking.await?)
    }
}

impl Looks {
    fn look(&mut self, processes: &Processes) {
        self.count += 1;
        for process in processes {
            if let Some(held) = Held::by(process.1) {
                self.held.entry(process.clone()).or_default().push(held);
            }
        }
    }

    /// Of each that has lived through the last third and lives still, by its name: how much more it had in the later half
    /// of that third than in the earlier one, and what it had at last. What comes before is needed to grow.
    pub(crate) fn growth(&self, living: &Processes) -> BTreeMap<String, (Held, Held)> {
        let third = self.count / 3;
        let looks = living.iter().filter_map(|key| {
            let looks = self.held.get(key)?;
            Some((key.0.clone(), looks.get(looks.len().checked_sub(third)?..)?))
        });
        looks
            .map(|(name, looks)| {
                let (early, late) = looks.split_at(looks.len() / 2);
                let (early, late) = (middle(early), middle(late));
                let grown = Held {
                    kib: late.kib.saturating_sub(early.kib),
                    descriptors: late.descriptors.saturating_sub(early.descriptors),
                };
                (name, (grown, late))
            })
            .collect()
    }
}

fn middle(looks: &[Held]) -> Held {
    let of = |read: fn(&Held) -> u64| {
        let mut all: Vec<_> = looks.iter().map(read).collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().unwrap_or(0)
    };
    Held {
        kib: of(|held| held.kib),
        descriptors: of(|held| held.descriptors),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(kib: impl Fn(u64) -> u64) -> Looks {
        let held = |number| Held {
            kib: kib(number),
            descriptors: 9,
        };
        let process = |name: &str, from| ((name.to_owned(), 1), (from..60).map(held).collect());
        Looks {
            held: BTreeMap::from([process("old", 0), process("young", 50)]),
            count: 60,
        }
    }

    #[test]
    fn what_grows_is_told_from_what_has_grown_and_the_young_are_not_judged() {
        let living = ["old", "young", "dead"].map(|name| (name.to_owned(), 1));
        let grown = |looks: &Looks| looks.growth(&living.to_vec());

        let still = grown(&looks(|number| number.min(30) * 100));
        let grows = grown(&looks(|number| number * 100));

        assert_eq!((still["old"].0.kib, still["old"].0.descriptors), (0, 0));
        assert_eq!((grows["old"].0.kib, grows["old"].0.descriptors), (1_000, 0));
        assert_eq!(still.len(), 1);
    }

    #[test]
    fn this_process_holds_something() {
        let held = Held::by(std::process::id()).unwrap();

        assert!(held.kib > 0 && held.descriptors > 0);
    }
}
