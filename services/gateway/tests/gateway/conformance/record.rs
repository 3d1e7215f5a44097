//! What a client saw of a call, and when two of them count as equal.

use serde::Deserialize;

use super::case::{Case, Compare};

/// Keys whose values say when, not what.
const PASSING: &[&str] = &["date"];

/// What the gateway may add to what a worker says.
const OWN: &str = "tether-";

/// Metadata sorted by key; values of one key in their order, binary ones in hexadecimal.
pub(super) type Pairs = Vec<(String, String)>;

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) code: i32,
    pub(super) details: String,
    pub(super) initial: Pairs,
    /// Length and CRC-32 of each.
    pub(super) messages: Vec<(usize, u32)>,
    pub(super) trailing: Pairs,
    /// How the call ended for the worker, where it was asked.
    pub(super) fate: Option<String>,
}

impl Record {
    fn code_alone(&self) -> Self {
        Self {
            name: self.name.clone(),
            code: self.code,
            details: String::new(),
            initial: Vec::new(),
            messages: Vec::new(),
            trailing: Vec::new(),
            fate: None,
        }
    }
}

/// What is wrong with the two records of a case, if anything is.
pub(super) fn difference(case: &Case, direct: &Record, through: &Record) -> Option<String> {
    let expected = (case.ends, case.answers);
    let ended = |record: &Record| (record.code, record.messages.len());
    let mut pair = [direct.clone(), through.clone()];
    for record in &mut pair {
        set_aside(record);
        if case.open {
            // To grpcio's and tonic's workers an upload that was cancelled is one that has ended.
            record.fate = record
                .fate
                .take()
                .map(|fate| fate.replace("complete", "cancelled"));
        }
        match case.compare {
            Compare::All => {}
            Compare::AllButDetails => {
                record.details.clear();
                let told = |key: &str| key != "grpc-status-details-bin";
                record.trailing.retain(|(key, _)| told(key));
            }
            Compare::Code => *record = record.code_alone(),
            Compare::Failing => {
                *record = record.code_alone();
                record.code = record.code.min(1);
            }
            Compare::Ending => {
                *record = record.code_alone();
                record.code = 0;
            }
            Compare::Readable if through.code == 0 => *record = through.clone(),
            Compare::Readable => {}
            Compare::Deadline => {
                record.details.clear();
                record.trailing.clear();
                // tonic's word for a deadline that has passed.
                if record.code == 1 {
                    record.code = 4;
                }
            }
        }
    }
    let [direct, through] = pair;
    let problem = match case.ends_somehow || ended(&direct) == expected {
        false => format!("should end with code and messages {expected:?}"),
        true if direct != through => "differs through the gateway".to_owned(),
        true => return None,
    };
    Some(format!(
        "`{}` {problem}:\n  direct:  {direct:?}\n  gateway: {through:?}",
        case.name
    ))
}

fn set_aside(record: &mut Record) {
    for pairs in [&mut record.initial, &mut record.trailing] {
        tidy(pairs);
    }
}

/// Takes out what may differ.
pub(super) fn tidy(pairs: &mut Pairs) {
    pairs.retain(|(key, _)| !key.starts_with(OWN));
    for (key, value) in pairs.iter_mut() {
        if PASSING.contains(&key.as_str()) {
            value.clear();
        }
    }
}
