//! Keeps: how sizes are typed: `10G`, `512M`, `1TiB`, `4096`.
//! Order, crash: nothing; sizes are values.
//! Knows no volume.

use sconce_schemas::{CLUSTER_BYTES, DecodeError, ScoSize, VolumeSize};

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a unit.
    #[error(
        "{text:?} is not a size; write bytes or a number with K, M, G or T (powers of 1024): 4096, 512M, 10G, 1TiB"
    )]
    Wrong {
        /// What was typed.
        text: String,
    },
    /// A decimal unit, which is not what disks of virtual machines are counted in.
    #[error("{text:?}: {unit} could mean powers of 1000 or of 1024; write {instead}")]
    Ambiguous {
        /// What was typed.
        text: String,
        /// Its unit.
        unit: String,
        /// The unit that is clear.
        instead: String,
    },
    /// Beyond what the thing can be.
    #[error(transparent)]
    Range(#[from] DecodeError),
}

/// The number of bytes that `text` says.
///
/// # Errors
/// Not a number with a known unit, or more than 64 bits hold.
pub fn parse_bytes(text: &str) -> Result<u64, SizeError> {
    let wrong = || SizeError::Wrong {
        text: text.to_owned(),
    };
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit = unit.trim_start().to_ascii_uppercase();
    let shift = match unit.as_str() {
        "" | "B" => 0,
        "K" | "KIB" => 10,
        "M" | "MIB" => 20,
        "G" | "GIB" => 30,
        "T" | "TIB" => 40,
        "KB" | "MB" | "GB" | "TB" => {
            let letter = &unit[..1];
            return Err(SizeError::Ambiguous {
                text: text.to_owned(),
                unit: unit.clone(),
                instead: format!("{letter}iB"),
            });
        }
        _ => return Err(wrong()),
    };
    scaled(number, shift).ok_or_else(wrong)
}

/// `number`, perhaps with a fraction, times 2^`shift`; only whole bytes.
fn scaled(number: &str, shift: u32) -> Option<u64> {
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() && fraction.len() <= 6 => (whole, fraction),
        Some(_) => return None,
        None => (number, ""),
    };
    let parts = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let digits: u64 = format!("{whole}{fraction}").parse().ok()?;
    let scaled = digits.checked_mul(1 << shift)?;
    (!whole.is_empty() && scaled.is_multiple_of(parts)).then_some(scaled / parts)
}

/// A volume's size.
///
/// # Errors
/// As [`parse_bytes`]; more than 64 TiB.
pub fn parse_volume_size(text: &str) -> Result<VolumeSize, SizeError> {
    Ok(VolumeSize::new(parse_bytes(text)?)?)
}

/// A SCO size.
///
/// # Errors
/// As [`parse_bytes`]; not a power of two from 256 KiB to 64 MiB.
pub fn parse_sco_size(text: &str) -> Result<ScoSize, SizeError> {
    let bytes = parse_bytes(text)?;
    let clusters = if bytes.is_multiple_of(CLUSTER_BYTES) {
        bytes / CLUSTER_BYTES
    } else {
        0
    };
    Ok(ScoSize::new(clusters).map_err(|_| DecodeError::Value {
        what: "SCO size",
        found: text.to_owned(),
        expected: "a power of two from 256K to 64M",
    })?)
}

/// Bytes for people: the largest unit that leaves at least one, with one decimal.
#[must_use]
pub fn shown(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let Some((unit, shift)) = UNITS.iter().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} B");
    };
    let tenths = (u128::from(bytes) * 10) >> shift;
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        tenth => format!("{}.{tenth} {unit}", tenths / 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_type_them() {
        let sizes = [
            ("0", 0),
            ("4096", 4096),
            ("512B", 512),
            ("4K", 4096),
            ("512M", 512 << 20),
            ("512 MiB", 512 << 20),
            ("10G", 10 << 30),
            ("10g", 10 << 30),
            ("1.5G", 3 << 29),
            ("0.5T", 1 << 39),
            ("1TiB", 1 << 40),
        ];
        for (text, bytes) in sizes {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_told_with_what_would_be() {
        for text in [
            "",
            "G",
            "ten",
            "-1",
            "1.5",
            "1..5G",
            ".5G",
            "1.G",
            "10 Q",
            "99999999999T",
            "0x10",
        ] {
            assert_eq!(
                parse_bytes(text),
                Err(SizeError::Wrong {
                    text: text.to_owned()
                }),
                "{text}"
            );
        }
        let ambiguous = parse_bytes("10GB").unwrap_err().to_string();
        assert!(ambiguous.ends_with("write GiB"), "{ambiguous}");
        assert_eq!(parse_volume_size("64T").unwrap(), VolumeSize::MAX);
        assert!(
            parse_volume_size("65T")
                .unwrap_err()
                .to_string()
                .contains("at most 64 TiB")
        );
        assert_eq!(parse_sco_size("4M").unwrap(), ScoSize::default());
        for text in ["3M", "128K", "128M", "1000"] {
            assert!(
                parse_sco_size(text)
                    .unwrap_err()
                    .to_string()
                    .contains("from 256K to 64M"),
                "{text}"
            );
        }
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10 GiB"),
            ((1 << 40) + (1 << 38), "1.2 TiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(shown(bytes), text);
        }
    }
}
