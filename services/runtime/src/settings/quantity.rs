//! Quantities as people type them: `256 MiB`, `250ms`.
//!
//! Keeps: the units that settings take.
//! Order: none.
//! Crash: nothing.
//! Knows no setting.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

/// A text that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct QuantityError {
    /// The text.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

/// A number of bytes, typed as `512`, `4 KiB`, `256 MiB`, `8 GiB` or `64 TiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    /// That many bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

const BYTE_UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("", 1),
];

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let expected = "a size such as 4096, 64 KiB, 256 MiB or 8 GiB";
        parse(text, &BYTE_UNITS, expected).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, unit): &&(&str, u64)| self.0 >= *unit && self.0.is_multiple_of(*unit);
        match BYTE_UNITS.iter().find(fits) {
            Some((name, unit)) if *unit > 1 => write!(f, "{} {name}", self.0 / unit),
            _ => write!(f, "{}", self.0),
        }
    }
}

/// A length of time, typed as `250ms`, `30s`, `5min` or `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(Duration);

impl Interval {
    /// That long.
    #[must_use]
    pub const fn new(duration: Duration) -> Self {
        Self(duration)
    }

    /// The length.
    #[must_use]
    pub const fn duration(self) -> Duration {
        self.0
    }
}

const TIME_UNITS: [(&str, u64); 4] = [("ms", 1), ("min", 60_000), ("s", 1000), ("h", 3_600_000)];

impl FromStr for Interval {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let expected = "a time such as 250ms, 30s, 5min or 2h";
        parse(text, &TIME_UNITS, expected).map(|ms| Self(Duration::from_millis(ms)))
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

fn parse(text: &str, units: &[(&str, u64)], expected: &'static str) -> Result<u64, QuantityError> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let factor = units
        .iter()
        .find(|(name, _)| *name == unit.trim_start_matches(' '));
    let number: Option<u64> = digits.parse().ok();
    number
        .zip(factor)
        .and_then(|(number, (_, factor))| number.checked_mul(*factor))
        .ok_or_else(|| QuantityError {
            value: text.to_owned(),
            expected,
        })
}

/// A quantity is text; where the unit may be left out a bare number is taken as well.
struct QuantityVisitor<T> {
    expected: &'static str,
    from_number: Option<fn(u64) -> T>,
}

impl<T: FromStr<Err = QuantityError>> serde::de::Visitor<'_> for QuantityVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        match (u64::try_from(number), self.from_number) {
            (Ok(number), Some(make)) => Ok(make(number)),
            _ => Err(E::invalid_type(serde::de::Unexpected::Signed(number), &self)),
        }
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        match self.from_number {
            Some(make) => Ok(make(number)),
            None => Err(E::invalid_type(serde::de::Unexpected::Unsigned(number), &self)),
        }
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor {
            expected: "a size such as 4096 or \"256 MiB\"",
            from_number: Some(ByteSize),
        })
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(QuantityVisitor {
            expected: "a time with its unit, such as \"250ms\" or \"30s\"",
            from_number: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_parse_and_print() {
        for (text, bytes, printed) in [
            ("0", 0, "0"),
            ("4096", 4096, "4 KiB"),
            ("64 KiB", 65_536, "64 KiB"),
            ("256MiB", 256 << 20, "256 MiB"),
            ("64 TiB", 64 << 40, "64 TiB"),
            ("1000", 1000, "1000"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.bytes(), size.to_string().as_str()), (bytes, printed));
        }
        for (text, ms) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("5 min", 300_000),
            ("2h", 7_200_000),
        ] {
            let time: Interval = text.parse().unwrap();
            assert_eq!(time.duration(), Duration::from_millis(ms));
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "",
            "MiB",
            "-1",
            "1.5 GiB",
            "10 MB",
            "10 mib",
            "16777216 TiB",
            "99999999999999999999",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text:?}");
        }
        for text in ["", "s", "10", "10 days", "1e3s", "18446744073709551615h"] {
            assert!(text.parse::<Interval>().is_err(), "{text:?}");
        }
    }
}
