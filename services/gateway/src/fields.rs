//! Keeps fields that somebody may fail to read out of the tables of header compression.
//!
//! grpc-core remembers with a table's entry that it could not read it, and refuses each later field that takes its name
//! from there. Clients of the gateway share the connections to workers, and workers those to clients: whoever says
//! `grpc-encoding: snappy` would spoil the key for everybody. A sensitive field is never put in a table.

use http::HeaderMap;

/// Keys whose values grpc-core reads as numbers.
const NUMBERS: [&str; 3] = [
    "grpc-status",
    "grpc-previous-rpc-attempts",
    "grpc-retry-pushback-ms",
];
/// Keys whose values it reads as one of the encodings it knows.
const ENCODINGS: [&str; 2] = ["grpc-encoding", "grpc-internal-encoding-request"];
const KNOWN: [&[u8]; 3] = [b"identity", b"deflate", b"gzip"];

/// Marks what grpc-core cannot read.
pub(crate) fn keep_apart(headers: &mut HeaderMap) {
    for (key, value) in headers.iter_mut() {
        if !is_readable(key.as_str(), value.as_bytes()) {
            value.set_sensitive(true);
        }
    }
}

fn is_readable(key: &str, value: &[u8]) -> bool {
    if key.ends_with("-bin") {
        return is_base64(value);
    }
    if !key.starts_with("grpc-") {
        return true;
    }
    if ENCODINGS.contains(&key) {
        return KNOWN.contains(&value);
    }
    !NUMBERS.contains(&key) || is_number(value)
}

fn is_number(value: &[u8]) -> bool {
    (1..=9).contains(&value.len()) && value.iter().all(u8::is_ascii_digit)
}

/// Whether it is base64, with its padding or without.
fn is_base64(value: &[u8]) -> bool {
    let padding = value.iter().rev().take_while(|byte| **byte == b'=');
    let padding = padding.count();
    let rest = &value[..value.len() - padding];
    let whole = match padding {
        0 => rest.len() % 4 != 1,
        1 | 2 => value.len().is_multiple_of(4),
        _ => false,
    };
    let known = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    whole && rest.iter().all(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept_apart(key: &'static str, value: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(key, value.parse().unwrap());
        keep_apart(&mut headers);
        headers[key].is_sensitive()
    }

    #[test]
    fn what_is_well_formed_may_be_in_tables() {
        for (key, value) in [
            ("grpc-status", "0"),
            ("grpc-encoding", "gzip"),
            ("grpc-accept-encoding", "snappy,br"),
            ("grpc-message", "%zz"),
            ("a-bin", ""),
            ("a-bin", "AAE"),
            ("a-bin", "AA=="),
            ("a", "anything"),
        ] {
            assert!(!kept_apart(key, value), "{key}: {value}");
        }
    }

    #[test]
    fn what_is_not_is_kept_apart() {
        for (key, value) in [
            ("grpc-status", "OK"),
            ("grpc-status", "-1"),
            ("grpc-status", ""),
            ("grpc-encoding", "snappy"),
            ("grpc-retry-pushback-ms", "soon"),
            ("a-bin", "A"),
            ("a-bin", "AAE,AA"),
            ("a-bin", "A==="),
        ] {
            assert!(kept_apart(key, value), "{key}: {value}");
        }
    }
}
