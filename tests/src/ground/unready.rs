//! Why nothing is played on a ground: this machine cannot have it, or what was to run there does not.

use super::Refused;
use crate::evidence::{Evidence, Report};

/// The difference between what says nothing of Tether and what does.
#[derive(Debug)]
pub enum Unready {
    /// This machine cannot boot it.
    Refused(Refused),
    /// It was booted, and is not what the rows need.
    Broken(anyhow::Error),
}

impl From<Refused> for Unready {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<anyhow::Error> for Unready {
    fn from(why: anyhow::Error) -> Self {
        Self::Broken(why)
    }
}

impl Unready {
    /// Records it of the rows that cannot be played: only what this machine cannot do is skipped.
    pub fn record(self, names: impl IntoIterator<Item = impl Into<String>>, report: &mut Report) {
        match self {
            Self::Refused(Refused(why)) => report.skip(names, &why),
            Self::Broken(why) => {
                for name in names {
                    report.add(Evidence::failed(name, format!("{why:#}")));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::Found;

    fn recorded(unready: Unready) -> Report {
        let mut report = Report::default();
        unready.record(["one", "other"], &mut report);
        report
    }

    #[test]
    fn what_this_machine_cannot_do_is_skipped() {
        let report = recorded(Refused("no root".to_owned()).into());

        assert_eq!(report.failed(), 0);
        assert!(matches!(report.find("other"), Found::Skipped("no root")));
    }

    #[test]
    fn what_does_not_run_on_a_machine_that_was_booted_fails_every_row() {
        let report = recorded(anyhow::anyhow!("no such file").context("install").into());

        assert_eq!(report.failed(), 2);
        assert!(
            matches!(report.find("other"), Found::Seen(row) if row.seen() == "install: no such file")
        );
    }
}
