//! Values of the configuration that mean something within bounds alone.

use std::time::Duration;

use serde::{Deserialize as _, Deserializer, de::Error as _};
use tether_kit::config::duration;

/// So many of a hundred.
pub(crate) fn percent<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    match u32::deserialize(from)? {
        share @ ..=100 => Ok(share),
        more => Err(D::Error::custom(format!(
            "{more} is no share of a hundred: at most 100 can be"
        ))),
    }
}

/// A time in which something can happen.
pub(crate) fn some_time<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let time = duration::deserialize(from)?;
    match time.is_zero() {
        true => Err(D::Error::custom("it has to be longer than 0")),
        false => Ok(time),
    }
}
