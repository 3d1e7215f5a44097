//! What a source says: targets with their traits, and what of it could not be taken.

use std::{collections::BTreeMap, net::IpAddr};

use tether_types::{Address, TEXT_MAX, is_plain};

pub use tether_types::WEIGHT_MAX;

/// Most targets of one answer: what is beyond is a mistake or an attack, and no reason to fill the memory of every
/// gateway.
pub const TARGETS_MAX: usize = 10_000;

/// So many reasons are kept of what an answer names and cannot be taken, and so many bytes of each.
const REASONS_MAX: usize = 8;
const REASON_MAX: usize = 400;

/// Addresses and what is known of each.
pub type Targets = BTreeMap<Address, Traits>;

/// What a source knows of one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traits {
    /// Where it is, as in `eu-west-1a`; empty where that is not known.
    pub zone: String,
    /// Its share of calls beside the others', 1 to [`WEIGHT_MAX`]. One of weight 0 takes none: it is draining.
    pub weight: u32,
    /// How many calls it serves at once; 0 where that is not known.
    pub capacity: u32,
    /// Whether it takes no new calls.
    pub draining: bool,
    /// How it is spoken to: `grpc` for HTTP/2 without TLS, `grpcs` with.
    pub protocol: String,
    /// Who serves there, as in a pod's uid: where another one serves at the same address, it is another worker.
    /// Empty where the source does not know.
    pub identity: String,
}

impl Default for Traits {
    fn default() -> Self {
        Self {
            zone: String::new(),
            weight: 1,
            capacity: 0,
            draining: false,
            protocol: "grpc".to_owned(),
            identity: String::new(),
        }
    }
}

/// All that a source says at one time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// Who serves; none of them is an answer too.
    pub targets: Targets,
    /// Why entries of it are left out, the first few; and how many are.
    pub reasons: Vec<String>,
    /// How many entries are left out.
    pub left_out: usize,
}

impl Answer {
    /// One with these addresses, of which nothing is known.
    pub fn of(addresses: impl IntoIterator<Item = Address>) -> Result<Self, String> {
        let mut answer = Self::default();
        for address in addresses {
            answer.take(address, Traits::default())?;
        }
        Ok(answer)
    }

    /// Takes in an entry, where it can be one; a second one of the same address follows the first, however an IP
    /// address is written. One that cannot be is left out with a word.
    ///
    /// # Errors
    /// Where there are more than [`TARGETS_MAX`]: nothing of such an answer is to be believed.
    pub fn take(&mut self, address: Address, mut traits: Traits) -> Result<(), String> {
        if let Err(why) = check(&address, &traits) {
            self.leave_out(why);
            return Ok(());
        }
        if traits.weight == 0 {
            (traits.weight, traits.draining) = (1, true);
        }
        self.targets.insert(canonical(address), traits);
        if self.targets.len() > TARGETS_MAX {
            return Err(format!(
                "it names more than {TARGETS_MAX} addresses, which is taken for a mistake"
            ));
        }
        Ok(())
    }

    /// Takes in an entry that could be read, and leaves out one that could not.
    ///
    /// # Errors
    /// As [`Answer::take`].
    pub fn take_or_leave(
        &mut self,
        entry: Result<(Address, Traits), String>,
    ) -> Result<(), String> {
        match entry {
            Ok((address, traits)) => self.take(address, traits),
            Err(why) => {
                self.leave_out(why);
                Ok(())
            }
        }
    }

    /// The answer, where it is one: of entries none of which can be taken, something else is wrong.
    ///
    /// # Errors
    /// Says how many there are and what is wrong with the first.
    pub fn settled(self) -> Result<Self, String> {
        match self.reasons.first() {
            Some(why) if self.targets.is_empty() => {
                let count = self.left_out;
                Err(format!(
                    "none of its {count} entries can be called, which is taken for a mistake; the first one: {why}"
                ))
            }
            _ => Ok(self),
        }
    }

    /// Leaves an entry out.
    pub fn leave_out(&mut self, why: String) {
        self.left_out += 1;
        if self.reasons.len() < REASONS_MAX {
            self.reasons.push(shortened(why));
        }
    }
}

/// A name stays as it is: with a dot at its end it is another one to whoever searches in domains.
fn canonical(address: Address) -> Address {
    match &address {
        Address::Tcp { host, .. } if host.parse::<IpAddr>().is_ok() => address.canonical(),
        _ => address,
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > REASON_MAX {
        text.truncate(text.floor_char_boundary(REASON_MAX));
        text.push('…');
    }
    text
}

/// Whether calls can go there.
///
/// # Errors
/// Says why they cannot.
pub(super) fn check(address: &Address, traits: &Traits) -> Result<(), String> {
    address.check_callable().map_err(|why| why.to_string())?;
    let texts = [&traits.zone, &traits.identity, &traits.protocol];
    if let Some(odd) = texts.into_iter().find(|text| !is_plain(text)) {
        let shown: String = odd.chars().take(40).collect();
        return Err(format!(
            "`{}…` at `{address}` is no text of at most {TEXT_MAX} bytes without control characters",
            shown.escape_default()
        ));
    }
    if traits.weight > WEIGHT_MAX {
        return Err(format!("the weight of `{address}` is over {WEIGHT_MAX}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn what_cannot_be_called_is_left_out_with_a_word_and_the_rest_is_taken() {
        let mut answer = Answer::default();
        let odd = Traits {
            zone: "a\nb".to_owned(),
            ..Traits::default()
        };
        let heavy = Traits {
            weight: WEIGHT_MAX + 1,
            ..Traits::default()
        };
        for (text, traits) in [
            ("10.0.0.1:1", Traits::default()),
            ("10.0.0.2:0", Traits::default()),
            ("0.0.0.0:1", Traits::default()),
            ("[ff02::1]:1", Traits::default()),
            ("255.255.255.255:1", Traits::default()),
            ("10.0.0.3:1", odd),
            ("10.0.0.4:1", heavy),
        ] {
            answer.take(address(text), traits).unwrap();
        }
        let host = "a\u{7}b".to_owned();
        answer
            .take(Address::Tcp { host, port: 1 }, Traits::default())
            .unwrap();

        let taken: Vec<_> = answer.targets.keys().map(ToString::to_string).collect();
        assert_eq!(taken, ["10.0.0.1:1"]);
        assert_eq!((answer.left_out, answer.reasons.len()), (7, 7));
        for (reason, part) in answer.reasons.iter().zip([
            "port 0",
            "no machine",
            "no machine",
            "no machine",
            "a\\nb",
            "weight",
            "character '\\u{7}'",
        ]) {
            assert!(reason.contains(part), "{reason}");
        }
    }

    #[test]
    fn of_two_entries_for_one_address_the_later_one_counts_however_it_is_written() {
        let mut answer = Answer::default();
        for (number, text) in [
            "[fd00::1]:1",
            "[fd00:0:0::1]:1",
            "10.0.0.1:1",
            "[::ffff:10.0.0.1]:1",
        ]
        .into_iter()
        .enumerate()
        {
            let traits = Traits {
                identity: number.to_string(),
                ..Traits::default()
            };
            answer.take(address(text), traits).unwrap();
        }
        let taken = answer.targets.iter();
        let taken: Vec<_> = taken.map(|(a, t)| format!("{a}#{}", t.identity)).collect();
        assert_eq!(taken, ["10.0.0.1:1#3", "[fd00::1]:1#1"]);
    }

    #[test]
    fn one_of_no_weight_drains_and_thousands_of_records_are_no_answer() {
        let mut answer = Answer::default();
        let none = Traits {
            weight: 0,
            ..Traits::default()
        };
        answer.take(address("10.0.0.1:1"), none).unwrap();
        let taken = &answer.targets[&address("10.0.0.1:1")];
        assert!(taken.draining && taken.weight == 1);

        let many = (0..=TARGETS_MAX).map(|number| {
            let port = u16::try_from(number % 60_000 + 1).unwrap();
            Address::Tcp {
                host: "10.0.0.9".to_owned(),
                port,
            }
        });
        let error = Answer::of(many).unwrap_err();
        assert!(error.contains("more than 10000"), "{error}");
        let mut bad = Answer::default();
        (0..1_000).for_each(|_| bad.leave_out("ü".repeat(1 << 10)));
        assert_eq!(
            (
                bad.left_out,
                bad.reasons.len(),
                bad.reasons[0].chars().count()
            ),
            (1_000, 8, 201),
            "and memory is bounded"
        );
    }
}
