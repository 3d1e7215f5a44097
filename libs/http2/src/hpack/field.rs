//! A field as it is kept in a table: parsed, so that one that comes by its number costs no more than a copy of two
//! references.

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    header::{CONNECTION, TE, TRANSFER_ENCODING, UPGRADE},
    uri::{Authority, PathAndQuery, Scheme},
};

/// Names and values of most calls: copies of these are not counted, which costs as much as the rest of a copy.
const NAMES: [&str; 6] = [
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-message",
    "grpc-status",
    "grpc-timeout",
    "tether-pool",
];
const VALUES: [&str; 7] = [
    "",
    "0",
    "application/grpc",
    "application/grpc+proto",
    "gzip",
    "identity",
    "trailers",
];

/// A field of a header block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Field {
    Method(Method),
    Scheme(Scheme),
    Authority(Authority),
    Path(PathAndQuery),
    Status(StatusCode),
    Plain(HeaderName, HeaderValue),
    /// One that no message may have (RFC 9113, 8.2 and 8.3). It takes its place in the table all the same.
    Malformed(Bytes),
}

impl Field {
    pub(crate) fn parse(name: &[u8], value: &[u8]) -> Self {
        let parsed = match name {
            [b':', ..] => Self::pseudo(name, value),
            _ => match known(&NAMES, name) {
                Some(name) => Self::plain(HeaderName::from_static(name), value),
                None => HeaderName::from_lowercase(name)
                    .ok()
                    .and_then(|name| Self::plain(name, value)),
            },
        };
        parsed.unwrap_or_else(|| Self::Malformed(Bytes::copy_from_slice(name)))
    }

    /// The field with this one's name and another value.
    pub(crate) fn with(&self, value: &[u8]) -> Self {
        match self {
            Self::Plain(name, _) => Self::plain(name.clone(), value)
                .unwrap_or_else(|| Self::Malformed(Bytes::copy_from_slice(self.name()))),
            _ => Self::parse(self.name(), value),
        }
    }

    pub(crate) fn name(&self) -> &[u8] {
        match self {
            Self::Method(_) => b":method",
            Self::Scheme(_) => b":scheme",
            Self::Authority(_) => b":authority",
            Self::Path(_) => b":path",
            Self::Status(_) => b":status",
            Self::Plain(name, _) => name.as_str().as_bytes(),
            Self::Malformed(name) => name,
        }
    }

    fn pseudo(name: &[u8], value: &[u8]) -> Option<Self> {
        match name {
            b":method" => Method::from_bytes(value).ok().map(Self::Method),
            b":scheme" => Scheme::try_from(value).ok().map(Self::Scheme),
            b":authority" => Authority::try_from(value).ok().map(Self::Authority),
            b":path" if !value.is_empty() => PathAndQuery::try_from(value).ok().map(Self::Path),
            b":status" => StatusCode::from_bytes(value).ok().map(Self::Status),
            _ => None,
        }
    }

    fn plain(name: HeaderName, value: &[u8]) -> Option<Self> {
        if is_of_one_connection(&name, value) {
            return None;
        }
        let value = match known(&VALUES, value) {
            Some(value) => HeaderValue::from_static(value),
            None => HeaderValue::from_bytes(value).ok()?,
        };
        Some(Self::Plain(name, value))
    }
}

/// The one of these words that is the same.
fn known(words: &[&'static str], bytes: &[u8]) -> Option<&'static str> {
    words.iter().copied().find(|word| word.as_bytes() == bytes)
}

/// Whether a field speaks of one connection, which in HTTP/2 none may (RFC 9113, 8.2.2).
fn is_of_one_connection(name: &HeaderName, value: &[u8]) -> bool {
    match name {
        &TE => value != b"trailers",
        &CONNECTION | &TRANSFER_ENCODING | &UPGRADE => true,
        other => matches!(other.as_str(), "keep-alive" | "proxy-connection"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_the_same_as_if_it_were_not() {
        for name in NAMES {
            for value in VALUES.iter().chain(&["other"]) {
                let whole = (
                    HeaderName::from_lowercase(name.as_bytes()).expect("it is a name"),
                    HeaderValue::from_str(value).expect("it is a value"),
                );
                let field = Field::parse(name.as_bytes(), value.as_bytes());
                assert_eq!(field, Field::Plain(whole.0, whole.1));
            }
        }
    }
}
