//! Values with units, and values that are texts, for `#[serde(with = "...")]`.

/// Durations such as `"15s"` or `"1m 30s"`; a bare number is refused.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    use super::read;

    /// Writes the duration with its unit.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    /// Reads a duration with its unit.
    ///
    /// # Errors
    /// Says that the unit is missing, or what is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        read(deserializer, "a duration such as \"15s\"", "s", |text| {
            humantime::parse_duration(text).map_err(|error| error.to_string())
        })
    }
}

/// Sizes in bytes such as `"256MiB"` or `"64kB"`; a bare number is refused.
pub mod size {
    use serde::{Deserializer, Serializer};

    use super::read;

    /// Units, largest first among those that divide each other; the first that divides is written.
    const UNITS: &[(&str, u64)] = &[
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
        ("TB", 1_000_000_000_000),
        ("GB", 1_000_000_000),
        ("MB", 1_000_000),
        ("kB", 1_000),
        ("B", 1),
    ];

    /// Writes the size with its unit.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub fn serialize<S: Serializer>(bytes: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        let unit = UNITS
            .iter()
            .find(|(_, unit)| *bytes >= *unit && bytes.is_multiple_of(*unit));
        let (name, unit) = unit.unwrap_or(&("B", 1));
        serializer.collect_str(&format_args!("{}{name}", bytes / unit))
    }

    /// Reads a size with its unit.
    ///
    /// # Errors
    /// Says that the unit is missing, or what is not a size.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        read(deserializer, "a size such as \"256MiB\"", "MiB", parse)
    }

    fn parse(text: &str) -> Result<u64, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, name) = text.split_at(digits);
        let unit = UNITS.iter().find(|(unit, _)| *unit == name.trim());
        let (_, unit) = unit.ok_or("the units are B, kB, MB, GB, TB, KiB, MiB, GiB and TiB")?;
        let number: u64 = number
            .parse()
            .map_err(|_| "the number is missing or too large")?;
        number
            .checked_mul(*unit)
            .ok_or_else(|| "the number is too large".to_owned())
    }
}

/// Anything that is written as a text and read back from it, such as an address.
pub mod text {
    use std::{fmt::Display, str::FromStr};

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes the value as its text.
    ///
    /// # Errors
    /// Only the serializer's own.
    pub fn serialize<S: Serializer>(
        value: &impl Display,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    /// Reads the value from its text.
    ///
    /// # Errors
    /// What the value says is wrong with the text.
    pub fn deserialize<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
    where
        T: FromStr,
        T::Err: Display,
    {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }

    /// The same where the value may be missing; needs `#[serde(default)]` beside it.
    pub mod option {
        use super::{Deserializer, Display, FromStr, Serializer};

        /// Writes the value as its text, if there is one.
        ///
        /// # Errors
        /// Only the serializer's own.
        pub fn serialize<S: Serializer>(
            value: &Option<impl Display>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => serializer.collect_str(value),
                None => serializer.serialize_none(),
            }
        }

        /// Reads the value from its text.
        ///
        /// # Errors
        /// What the value says is wrong with the text.
        pub fn deserialize<'de, D: Deserializer<'de>, T>(
            deserializer: D,
        ) -> Result<Option<T>, D::Error>
        where
            T: FromStr,
            T::Err: Display,
        {
            super::deserialize(deserializer).map(Some)
        }
    }
}

use std::{fmt, marker::PhantomData};

use serde::{
    Deserializer,
    de::{Error, Visitor},
};

/// Reads a text with a unit and explains itself when the unit is missing.
fn read<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    unit: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    deserializer.deserialize_str(WithUnit {
        expected,
        unit,
        parse,
        kind: PhantomData,
    })
}

struct WithUnit<T> {
    expected: &'static str,
    unit: &'static str,
    parse: fn(&str) -> Result<T, String>,
    kind: PhantomData<T>,
}

impl<T> WithUnit<T> {
    fn bare<E: Error>(&self, number: impl fmt::Display) -> E {
        let unit = self.unit;
        E::custom(format!(
            "`{number}` has no unit, write for example \"{number}{unit}\""
        ))
    }
}

impl<T> Visitor<'_> for WithUnit<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        if text.parse::<f64>().is_ok() {
            return Err(self.bare(text));
        }
        (self.parse)(text)
            .map_err(|why| E::custom(format!("`{text}` is not {}: {why}", self.expected)))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        Err(self.bare(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        Err(self.bare(number))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        Err(self.bare(number))
    }
}
