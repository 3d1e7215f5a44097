//! A field as it is kept in a table: parsed, so that one that comes by its number costs no more than a copy of two
//! references.

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    header::{CONNECTION, TE, TRANSFER_ENCODING, UPGRADE},
    uri::{Authority, PathAndQuery, Scheme},
};

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
            _ => HeaderName::from_lowercase(name)
                .ok()
                .and_then(|name| Self::plain(name, value)),
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
        let value = HeaderValue::from_bytes(value).ok()?;
        Some(Self::Plain(name, value))
    }
}

/// Whether a field speaks of one connection, which in HTTP/2 none may (RFC 9113, 8.2.2).
fn is_of_one_connection(name: &HeaderName, value: &[u8]) -> bool {
    match name {
        &TE => value != b"trailers",
        &CONNECTION | &TRANSFER_ENCODING | &UPGRADE => true,
        other => matches!(other.as_str(), "keep-alive" | "proxy-connection"),
    }
}
