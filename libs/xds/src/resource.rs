//! A resource as it is told, encoded once.

use bytes::Bytes;
use prost::Message;
use tether_types::stable;

use crate::{Kind, wire::google::protobuf::Any};

/// Says what a resource is (X5); 0 is that of none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version(u64);

impl Version {
    fn of(bytes: impl IntoIterator<Item = u8>) -> Self {
        Self(stable::finish(stable::fnv1a(bytes)).max(1))
    }

    /// That of resources together.
    pub(crate) fn of_all<'a>(versions: impl Iterator<Item = (&'a str, Self)>) -> Self {
        Self::of(versions.flat_map(|(name, version)| {
            let name = name.bytes().chain([0]);
            name.chain(version.0.to_le_bytes())
        }))
    }

    /// What a client says it has; what we never said is the version of nothing.
    pub(crate) fn read(text: &str) -> Self {
        Self(u64::from_str_radix(text, 16).unwrap_or_default())
    }

    pub(crate) fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}

/// A resource; a copy shares the bytes.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub(crate) version: Version,
    pub(crate) any: Any,
}

impl Resource {
    pub(crate) fn new(kind: Kind, message: &impl Message) -> Self {
        let any = any(kind.type_url(), message);
        Self {
            version: Version::of(any.value.iter().copied()),
            any,
        }
    }
}

pub(crate) fn any(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: Bytes::from(message.encode_to_vec()),
    }
}
