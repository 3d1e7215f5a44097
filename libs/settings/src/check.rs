//! Whether a configuration that could be read can be used as a whole, before anything is opened.

use std::{fmt, time::Duration};

use tether_kit::config::Loaded;

/// What a program reads of a configuration, and can judge without touching anything.
pub trait Check {
    /// Judges all of it.
    ///
    /// # Errors
    /// Names the first setting that cannot be used.
    fn check(&self) -> Result<(), Wrong>;
}

/// A setting that can be read and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    /// The settings concerned, the first being the one to name.
    keys: Vec<String>,
    why: String,
}

impl Wrong {
    /// `key` cannot be used, and why.
    pub fn new(key: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            keys: vec![key.into()],
            why: why.into(),
        }
    }

    /// An error about several settings, the one to name first.
    pub fn among(keys: &[&str], error: impl Into<anyhow::Error>) -> Self {
        Self {
            keys: keys.iter().map(|&key| key.to_owned()).collect(),
            why: format!("{:#}", error.into()),
        }
    }

    /// It is as much about this other setting.
    #[must_use]
    pub fn and(mut self, key: impl Into<String>) -> Self {
        self.keys.push(key.into());
        self
    }

    /// A report that points at where the setting was set.
    pub fn report<T>(&self, loaded: &Loaded<T>) -> miette::Report {
        loaded.refuse(&self.keys, self.to_string())
    }
}

impl Wrong {
    /// Whether the reason says by itself which setting it is about.
    fn names(&self, key: &str) -> bool {
        self.why.starts_with(&format!("{key} ")) || self.why.contains(&format!("`{key}`"))
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keys.first() {
            Some(key) if !self.names(key) => write!(f, "`{key}`: {}", self.why),
            _ => f.write_str(&self.why),
        }
    }
}

impl std::error::Error for Wrong {}

/// Says which setting an error is about.
pub trait At<T> {
    /// The same, as a fault of `key`.
    ///
    /// # Errors
    /// As before.
    fn at(self, key: impl Into<String>) -> Result<T, Wrong>;
}

impl<T, E: Into<anyhow::Error>> At<T> for Result<T, E> {
    fn at(self, key: impl Into<String>) -> Result<T, Wrong> {
        // With its sources: whoever prints it has only this one sentence.
        self.map_err(|error| Wrong::new(key, format!("{:#}", error.into())))
    }
}

/// A duration that makes no sense when it is nothing.
///
/// # Errors
/// When it is nothing.
pub fn some_time(key: &str, value: Duration) -> Result<(), Wrong> {
    match value.is_zero() {
        true => Err(Wrong::new(key, "must be longer than 0s")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_key_once() {
        let unnamed = Wrong::new("agent.node", "it is empty");
        let named = Wrong::new("lease.node_ttl", "lease.node_ttl (1s) is short");

        assert_eq!(unnamed.to_string(), "`agent.node`: it is empty");
        assert_eq!(named.to_string(), "lease.node_ttl (1s) is short");
        assert!(some_time("gateway.drain", Duration::ZERO).is_err());
    }
}
