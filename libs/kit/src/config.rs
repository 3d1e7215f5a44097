//! Configuration in four layers: defaults, a TOML file, the environment, flags.
//!
//! Each layer is checked as it is laid on the ones before, so that an error names the layer, and in a
//! file the line. A configuration type has a default for everything and refuses what it does not know:
//! `#[serde(default, deny_unknown_fields)]`.

mod overrides;
mod refusal;
mod units;

use std::{collections::BTreeMap, fmt, fs, path::Path, path::PathBuf};

use miette::Report;
use serde::{Serialize, de::DeserializeOwned};
use toml::{
    Table, Value,
    de::{DeTable, DeValue},
};

use overrides::Override;
use refusal::Refusal;
pub use units::{duration, size, text};

/// A configuration with the place every key that is set came from.
#[derive(Debug, Clone)]
pub struct Loaded<T> {
    /// The configuration.
    pub value: T,
    /// Where each set key came from, by dotted key; what is missing here has its default.
    pub origins: BTreeMap<String, Origin>,
    /// What was ignored and was probably not meant to be, as sentences for people.
    pub warnings: Vec<String>,
}

impl<T> Loaded<T> {
    /// A report that refuses what can be read and cannot be used. It points at the first of `keys`
    /// that was set: at its line, its variable or its flag.
    pub fn refuse(&self, keys: &[String], message: impl Into<String>) -> Report {
        let set = keys.iter().find_map(|key| {
            let below = format!("{key}.");
            self.origins
                .get_key_value(key)
                .or_else(|| self.origins.iter().find(|(at, _)| at.starts_with(&below)))
        });
        match set {
            Some((key, origin)) => Refusal::at_origin(message, key, origin).into(),
            None => Refusal::new(message).into(),
        }
    }
}

/// Where a key was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In the file, at this line.
    File(PathBuf, usize),
    /// By this environment variable.
    Environment(String),
    /// By `--set`.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path, line) => write!(f, "file {}:{line}", path.display()),
            Self::Environment(name) => write!(f, "env {name}"),
            Self::Flag => f.write_str("--set"),
        }
    }
}

/// Loads a configuration: `file` where one is given, variables such as `TETHER_GATEWAY__LISTEN` out of
/// `env`, and `sets` of the form `gateway.listen=127.0.0.1:1`.
///
/// Of the environment only names with a `__` path or a known top key count: `TETHER_LOG` is no
/// configuration. A value is read as TOML where that fits its key, else as a string.
///
/// # Errors
/// A report for people, to be printed with `{report:?}`: what is wrong, where, and what to do.
pub fn load<T>(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
    sets: &[String],
) -> Result<Loaded<T>, Report>
where
    T: DeserializeOwned + Default + Serialize,
{
    let mut layers = Layers {
        merged: Table::new(),
        origins: BTreeMap::new(),
    };
    if let Some(path) = file {
        layers.read::<T>(path)?;
    }
    let shape = serde_json::to_value(T::default()).unwrap_or_default();
    let (variables, warnings) = overrides::from_environment(env, &shape, &layers.merged);
    layers.lay::<T>(variables)?;
    layers.lay::<T>(overrides::from_flags(sets)?)?;
    let value = check(&layers.merged).map_err(|error| Refusal::new(error.message()))?;
    Ok(Loaded {
        value,
        origins: layers.origins,
        warnings,
    })
}

struct Layers {
    merged: Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    fn read<T: DeserializeOwned>(&mut self, path: &Path) -> Result<(), Report> {
        let text = fs::read_to_string(path).map_err(|error| {
            Refusal::new(format!(
                "cannot read the configuration file `{}`: {error}",
                path.display()
            ))
            .help("give the path of a readable file, or leave it out to run on the defaults")
        })?;
        let refuse = |error: toml::de::Error| Refusal::in_file(path, &text, &error);
        toml::from_str::<T>(&text).map_err(refuse)?;
        self.merged = toml::from_str(&text).map_err(refuse)?;
        let spanned = DeTable::parse(&text).map_err(refuse)?;
        self.note_origins(path, &text, &mut Vec::new(), spanned.get_ref());
        Ok(())
    }

    fn note_origins(
        &mut self,
        file: &Path,
        text: &str,
        path: &mut Vec<String>,
        table: &DeTable<'_>,
    ) {
        for (key, value) in table {
            path.push(key.get_ref().to_string());
            match value.get_ref() {
                DeValue::Table(inner) => self.note_origins(file, text, path, inner),
                _ => {
                    let before = text.get(..key.span().start).unwrap_or_default();
                    let line = before.matches('\n').count() + 1;
                    let origin = Origin::File(file.to_owned(), line);
                    self.origins.insert(dotted(path), origin);
                }
            }
            path.pop();
        }
    }

    fn lay<T: DeserializeOwned>(&mut self, overrides: Vec<Override>) -> Result<(), Report> {
        let mut result = self.merged.clone();
        for over in &overrides {
            insert(&mut result, &over.path, self.value_of::<T>(over));
            let key = dotted(&over.path);
            let below = format!("{key}.");
            self.origins.retain(|known, _| !known.starts_with(&below));
            self.origins.insert(key, over.origin.clone());
        }
        let Err(error) = check::<T>(&result) else {
            self.merged = result;
            return Ok(());
        };
        // All together are wrong: the first that is wrong by itself is the one to name.
        let alone = overrides.iter().find_map(|over| {
            let error = self.error_with::<T>(over, self.value_of::<T>(over))?;
            Some(Refusal::in_override(over, error.message()))
        });
        Err(alone
            .unwrap_or_else(|| Refusal::new(error.message()))
            .into())
    }

    /// The override's value as TOML where that fits, else as a string where that fits.
    fn value_of<T: DeserializeOwned>(&self, over: &Override) -> Value {
        let plain = Value::String(over.text.clone());
        let Some(parsed) = overrides::parse(&over.text) else {
            return plain;
        };
        let fits = |value: &Value| self.error_with::<T>(over, value.clone()).is_none();
        match !fits(&parsed) && fits(&plain) {
            true => plain,
            false => parsed,
        }
    }

    /// What is wrong when only this override is laid on the layers below.
    fn error_with<T: DeserializeOwned>(
        &self,
        over: &Override,
        value: Value,
    ) -> Option<toml::de::Error> {
        let mut table = self.merged.clone();
        insert(&mut table, &over.path, value);
        check::<T>(&table).err()
    }
}

fn check<T: DeserializeOwned>(table: &Table) -> Result<T, toml::de::Error> {
    T::deserialize(Value::Table(table.clone()))
}

/// Sets `path` to `value`, making tables on the way.
fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [last] => drop(table.insert(last.clone(), value)),
        [first, rest @ ..] => {
            let inner = table
                .entry(first.clone())
                .or_insert_with(|| Value::Table(Table::new()));
            if !inner.is_table() {
                *inner = Value::Table(Table::new());
            }
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// The key as one would write it in TOML: `gateway.listen`, `pools."train.er".size`.
pub fn dotted(path: &[impl AsRef<str>]) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let parts: Vec<String> = path
        .iter()
        .map(AsRef::as_ref)
        .map(|part| match !part.is_empty() && part.chars().all(bare) {
            true => part.to_owned(),
            false => format!("{part:?}"),
        })
        .collect();
    parts.join(".")
}
