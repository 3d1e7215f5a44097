//! Settings that the BEAM says as a tree: what a TOML file would say.

use tether_port::{Fields, Meaningless, Term};
use tether_proto::pool::PoolSpec;
use tether_settings::PoolFile;
use toml::{Table, Value};

/// A tree as a table of TOML.
pub(crate) fn table(term: Term) -> Result<Table, Meaningless> {
    match value("the settings", term)? {
        Value::Table(table) => Ok(table),
        other => Err(Meaningless(format!(
            "the settings are of the kind {}, where a map is expected",
            other.type_str()
        ))),
    }
}

fn value(of: &str, term: Term) -> Result<Value, Meaningless> {
    Ok(match term {
        Term::Int(number) => {
            let number = i64::try_from(number);
            Value::Integer(
                number.map_err(|_| Meaningless(format!("`{of}` is too large a number")))?,
            )
        }
        Term::Float(number) => Value::Float(number),
        Term::Atom(name) => word(name),
        Term::Name(name) => word(&name),
        Term::Binary(bytes) => {
            let text = String::from_utf8(bytes.into());
            Value::String(text.map_err(|_| Meaningless(format!("`{of}` is no text")))?)
        }
        Term::List(items) => {
            let items = items.into_iter().filter(|item| !item.is_nil());
            Value::Array(
                items
                    .map(|item| value(of, item))
                    .collect::<Result<_, _>>()?,
            )
        }
        Term::Tuple(_) => {
            let text = format!("`{of}` is a tuple, which no setting is");
            return Err(Meaningless(text));
        }
        map @ Term::Map(_) => {
            let entries = Fields::new("a table of settings", map)?.rest().into_iter();
            let entries = entries.filter(|(_, value)| !value.is_nil());
            let read = |(key, term)| Ok((String::clone(&key), value(&key, term)?));
            Value::Table(entries.map(read).collect::<Result<_, _>>()?)
        }
    })
}

fn word(name: &str) -> Value {
    match name {
        "true" => Value::Boolean(true),
        "false" => Value::Boolean(false),
        other => Value::String(other.to_owned()),
    }
}

/// A pool out of the tree that a pool file has under its name, with its template in it.
pub(crate) fn pool(name: &str, spec: Term) -> Result<PoolSpec, Meaningless> {
    let mut pool = table(spec)?;
    let mut file = Table::new();
    if let Some(Value::Table(template)) = pool.get("template").cloned() {
        pool.insert("template".to_owned(), Value::String(name.to_owned()));
        let templates = Table::from_iter([(name.to_owned(), Value::Table(template))]);
        file.insert("template".to_owned(), Value::Table(templates));
    }
    let pools = Table::from_iter([(name.to_owned(), Value::Table(pool))]);
    file.insert("pool".to_owned(), Value::Table(pools));
    let refuse = |text: String| Meaningless(text.trim().to_owned());
    let file: PoolFile = file
        .try_into()
        .map_err(|error: toml::de::Error| refuse(error.to_string()))?;
    tether_settings::check_templates(&file.template).map_err(|wrong| refuse(wrong.to_string()))?;
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let specs = file.specs(&here, Some(name));
    let mut specs = specs.map_err(|error| refuse(format!("{error:#}")))?;
    specs
        .pop()
        .ok_or_else(|| refuse(format!("there is no pool `{name}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, Term)]) -> Term {
        let entries = entries
            .iter()
            .map(|(key, value)| ((*key).into(), value.clone()));
        Term::Map(entries.collect())
    }

    #[test]
    fn a_pool_has_its_template_in_it_or_names_one() {
        let template = map(&[("command", "python3".into()), ("capacity", 2_u32.into())]);
        let inline = pool("ml", map(&[("size", 3_u32.into()), ("template", template)])).unwrap();
        let named = pool("ml", map(&[("template", "usual".into())])).unwrap();

        assert_eq!(
            (inline.size, &*inline.template.unwrap().command),
            (3, "python3")
        );
        assert_eq!((named.template, &*named.template_name), (None, "usual"));
    }

    #[test]
    fn what_a_pool_file_would_not_take_is_refused_by_its_key() {
        let wrong = pool("ml", map(&[("sizes", 3_u32.into())])).unwrap_err();
        assert!(
            wrong.0.contains("`sizes`") && wrong.0.contains("`size`"),
            "{wrong}"
        );

        let wrong = pool("ml", map(&[("size", "many".into())])).unwrap_err();
        assert!(wrong.0.contains("pool.ml.size"), "{wrong}");
    }
}
