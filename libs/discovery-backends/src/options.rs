//! What may follow the target of a source: `?name=value&name=value`.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

/// The options of one source, of which its backend takes those that it knows.
#[derive(Debug, Default)]
pub struct Options {
    given: BTreeMap<String, String>,
    known: Vec<&'static str>,
}

impl Options {
    /// Reads what follows the first `?`.
    ///
    /// # Errors
    /// Names the one that is no option, or is there twice.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut given = BTreeMap::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| format!("the option `{part}` has no value, as in `{part}=...`"))?;
            if given.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(format!("the option `{name}` is there twice"));
            }
        }
        Ok(Self {
            given,
            known: Vec::new(),
        })
    }

    /// Takes an option, as it is.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        self.given.remove(name)
    }

    /// Takes an option that can be read.
    ///
    /// # Errors
    /// Says which it is and what it should be, as in "a number".
    pub fn read<T: FromStr>(
        &mut self,
        name: &'static str,
        what: &str,
    ) -> Result<Option<T>, String> {
        let read = |text: String| {
            text.parse()
                .map_err(|_| format!("the option `{name}` is `{text}`, and not {what}"))
        };
        self.text(name).map(read).transpose()
    }

    /// Takes a span of time, such as `500ms`.
    ///
    /// # Errors
    /// Where it is none, or nothing.
    pub fn duration(&mut self, name: &'static str) -> Result<Option<Duration>, String> {
        let span = self.read::<humantime::Duration>(name, "a span of time such as `500ms`")?;
        let span = span.map(Duration::from);
        match span {
            Some(Duration::ZERO) => Err(format!("the option `{name}` is over 0")),
            _ => Ok(span),
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// Names an option that nobody took.
    pub fn finish(self) -> Result<(), String> {
        let Some(unknown) = self.given.keys().next() else {
            return Ok(());
        };
        Err(match self.known.as_slice() {
            [] => format!("there is no option `{unknown}`, and no other one"),
            known => format!(
                "there is no option `{unknown}`, there are: {}",
                known.join(", ")
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_taken_once_and_one_that_nobody_knows_is_named() {
        let mut options = Options::parse("floor=2s&zone=a&last=").unwrap();
        assert_eq!(options.duration("floor"), Ok(Some(Duration::from_secs(2))));
        assert_eq!(options.text("zone").as_deref(), Some("a"));
        assert_eq!(options.text("zone"), None);
        let error = options.finish().unwrap_err();
        assert!(
            error.contains("`last`") && error.contains("floor, zone"),
            "{error}"
        );

        assert!(Options::parse("floor").is_err() && Options::parse("a=1&a=2").is_err());
        for wrong in ["floor=soon", "floor=0s"] {
            let mut options = Options::parse(wrong).unwrap();
            assert!(options.duration("floor").is_err(), "{wrong}");
        }
        assert!(Options::parse("").unwrap().finish().is_ok());
    }
}
