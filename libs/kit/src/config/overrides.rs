//! Single keys set from outside the file: environment variables and `--set`.

use miette::Report;
use toml::{Table, Value};

use super::{Origin, refusal::Refusal};

const PREFIX: &str = "TETHER_";

/// One key set to one text.
#[derive(Debug)]
pub(super) struct Override {
    pub(super) path: Vec<String>,
    pub(super) text: String,
    pub(super) origin: Origin,
}

/// The variables that are configuration, sorted by name so that the outcome does not depend on the
/// order of the environment. `shape` is the default configuration and `merged` what was set so far:
/// they tell how a key is spelled, which a variable in capitals cannot. The second value warns of
/// variables that look like keys and are none.
pub(super) fn from_environment(
    env: impl Iterator<Item = (String, String)>,
    shape: &serde_json::Value,
    merged: &Table,
) -> (Vec<Override>, Vec<String>) {
    let mut variables: Vec<(String, String)> = env
        .filter(|(name, _)| name.starts_with(PREFIX) && name.len() > PREFIX.len())
        .collect();
    variables.sort();
    let mut warnings = Vec::new();
    let overrides = variables
        .into_iter()
        .filter_map(|(name, text)| {
            let given: Vec<&str> = name[PREFIX.len()..].split("__").collect();
            let (path, known) = spell(&given, shape, merged);
            // `TETHER_GATEWAY` tells the command line where the gateway is; it does not set the table
            // of that name.
            let is_table = path
                .first()
                .and_then(|key| shape.get(key))
                .is_some_and(|value| value.is_object());
            if given.len() == 1
                && !known
                && let Some(right) = meant(&name[PREFIX.len()..], shape)
            {
                warnings.push(format!(
                    "the environment variable `{name}` sets nothing: two underscores part a section from its key, as in `{right}`"
                ));
            }
            (given.len() > 1 || (known && !is_table)).then_some(Override {
                path,
                text,
                origin: Origin::Environment(name),
            })
        })
        .collect();
    (overrides, warnings)
}

/// The variable that was meant by one that has single underscores where a section ends.
fn meant(given: &str, shape: &serde_json::Value) -> Option<String> {
    let (section, rest) = given.split_once('_')?;
    let fits = |key: &str| key.replace('-', "_").eq_ignore_ascii_case(section);
    let (_, below) = shape
        .as_object()?
        .iter()
        .find(|(key, value)| value.is_object() && fits(key))?;
    // Kubernetes gives every pod such names for a Service called `tether-gateway`.
    let of_kubernetes = rest.starts_with("SERVICE_") || rest.starts_with("PORT");
    match parted(rest, below) {
        Some(rest) => Some(format!("{PREFIX}{section}__{rest}")),
        None if rest.is_empty() || of_kubernetes => None,
        None => Some(format!("{PREFIX}{section}__{rest}")),
    }
}

/// `text` with two underscores wherever a section of `shape` ends, if that makes it a key of it.
fn parted(text: &str, shape: &serde_json::Value) -> Option<String> {
    shape.as_object()?.iter().find_map(|(key, below)| {
        let key = key.replace('-', "_").to_uppercase();
        if key == text {
            return Some(key);
        }
        let rest = text.strip_prefix(&key)?.strip_prefix('_')?;
        Some(format!("{key}__{}", parted(rest, below)?))
    })
}

/// Finds the spelling of each part, and says whether the first one is a known key.
fn spell(given: &[&str], shape: &serde_json::Value, merged: &Table) -> (Vec<String>, bool) {
    let fold = |text: &str| text.to_lowercase().replace('-', "_");
    let mut shape = Some(shape);
    let mut merged = Some(merged);
    let mut first_known = None;
    let path = given
        .iter()
        .map(|part| {
            let part = fold(part);
            let in_shape = shape.and_then(|value| value.as_object()).into_iter();
            let in_merged = merged.into_iter();
            let known = in_shape
                .flat_map(|object| object.keys())
                .chain(in_merged.flat_map(|table| table.keys()))
                .find(|key| fold(key) == part)
                .cloned();
            first_known = first_known.or_else(|| Some(known.is_some()));
            let key = known.unwrap_or(part);
            shape = shape.and_then(|value| value.get(&key));
            merged = merged.and_then(|table| table.get(&key)?.as_table());
            key
        })
        .collect();
    (path, first_known == Some(true))
}

/// Reads `a.b=value` pairs.
pub(super) fn from_flags(sets: &[String]) -> Result<Vec<Override>, Report> {
    sets.iter()
        .map(|set| {
            let wrong = || {
                let text = format!("`--set {set}` is not of the form `key.path=value`");
                Report::from(
                    Refusal::new(text)
                        .help("write for example `--set gateway.listen=127.0.0.1:7437`"),
                )
            };
            let (key, text) = set.split_once('=').ok_or_else(wrong)?;
            Ok(Override {
                path: path_of(key).ok_or_else(wrong)?,
                text: text.to_owned(),
                origin: Origin::Flag,
            })
        })
        .collect()
}

/// Reads a key as TOML does, quotes included.
fn path_of(key: &str) -> Option<Vec<String>> {
    let mut table: Table = toml::from_str(&format!("{key} = 0")).ok()?;
    let mut path = Vec::new();
    loop {
        let (key, value) = table.into_iter().next()?;
        path.push(key);
        match value {
            Value::Table(inner) => table = inner,
            _ => return Some(path),
        }
    }
}

/// Reads a text as a TOML value.
pub(super) fn parse(text: &str) -> Option<Value> {
    let mut table: Table = toml::from_str(&format!("value = {text}")).ok()?;
    table.remove("value")
}
