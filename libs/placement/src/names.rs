//! What labels and counted resources may be called, and how many of one there may be.

/// Longest name, and longest value of a label, in bytes.
const LENGTH_MAX: usize = 63;

/// Most of one resource on a node, or for a worker: each is told apart by its number.
pub const COUNT_MAX: u32 = 1_024;

/// A label or resource that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The name or value of a label.
    #[error(
        "a label is `{0}`, and has 1 to {LENGTH_MAX} letters, digits, `.`, `_`, `-` or `/` on each side, as in `zone = \"a\"`"
    )]
    Label(String),
    /// The name of a resource.
    #[error(
        "a resource is called `{0}`, and has 1 to {LENGTH_MAX} small letters, digits or `_`, the first one a letter, as in `gpu = 4`"
    )]
    Resource(String),
    /// How many.
    #[error(
        "`{0} = {1}`: there are 0 to {COUNT_MAX} of a resource, as each is told apart by its number; limit memory and processor time with `limits` in the template"
    )]
    Count(String, u32),
}

/// Whether a label can be given, or asked for.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_label(name: &str, value: &str) -> Result<(), Unusable> {
    let plain = |text: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        (1..=LENGTH_MAX).contains(&text.len()) && text.bytes().all(known)
    };
    match plain(name) && plain(value) {
        true => Ok(()),
        false => {
            let shown = format!("{} = {}", name.escape_default(), value.escape_default());
            Err(Unusable::Label(shown))
        }
    }
}

/// Whether a node can have so many of a resource, or a worker ask for them.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_resource(name: &str, count: u32) -> Result<(), Unusable> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let begins = name.starts_with(|first: char| first.is_ascii_lowercase());
    if !begins || name.len() > LENGTH_MAX || !name.bytes().all(known) {
        return Err(Unusable::Resource(name.escape_default().to_string()));
    }
    match count <= COUNT_MAX {
        true => Ok(()),
        false => Err(Unusable::Count(name.to_owned(), count)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_said_with_what_can() {
        assert!(check_label("topology/zone", "eu-1.a").is_ok());
        assert!(check_resource("gpu", 4).is_ok());
        for wrong in [
            check_label("", "a"),
            check_label("zone", "a b"),
            check_label("zone", &"a".repeat(64)),
            check_resource("GPU", 1),
            check_resource("4gpu", 1),
            check_resource("", 1),
            check_resource("memory", 64_000),
        ] {
            let said = wrong.unwrap_err().to_string();
            assert!(
                said.contains("as in") || said.contains("`limits`"),
                "{said}"
            );
        }
    }
}
