//! Reading and writing msgpack by hand where it is hot, by serde where it is not.
//!
//! Keeps: the limits that make decoding safe: nothing is allocated on the word of a length field.
//! Source of the format: <https://github.com/msgpack/msgpack/blob/master/spec.md>.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::DecodeError;

/// A message body: encodes itself at the end of a header, decodes itself from its start.
pub trait Body: Sized + 'static {
    /// Appends the body to a header.
    fn encode(&self, out: &mut Vec<u8>);

    /// Takes a body off the front of `input`.
    ///
    /// # Errors
    /// Whatever is not a well-formed body, with what was found and expected.
    fn decode(input: &mut &[u8]) -> Result<Self, DecodeError>;

    /// What it is called in traces.
    fn name(&self) -> &'static str {
        "request"
    }

    /// Whether it is rare and changes something that people decide on: then it is recorded in traces without a cause too.
    fn is_control(&self) -> bool {
        false
    }
}

/// Appends an unsigned integer in its shortest form.
pub fn put_uint(out: &mut Vec<u8>, value: u64) {
    // Writing into a Vec cannot fail.
    let _ = rmp::encode::write_uint(out, value);
}

/// Appends an array header.
pub fn put_array(out: &mut Vec<u8>, len: usize) {
    let _ = rmp::encode::write_array_len(out, u32::try_from(len).unwrap_or(u32::MAX));
}

/// What a named field says by its absence.
#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
pub(crate) const fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Appends a string.
pub fn put_str(out: &mut Vec<u8>, text: &str) {
    let _ = rmp::encode::write_str(out, text);
}

/// Appends a byte string.
pub fn put_bin(out: &mut Vec<u8>, bytes: &[u8]) {
    let _ = rmp::encode::write_bin(out, bytes);
}

fn malformed(what: &'static str, detail: impl std::fmt::Display) -> DecodeError {
    DecodeError::Msgpack {
        what,
        detail: detail.to_string(),
    }
}

/// Takes an unsigned integer that fits `T`.
///
/// # Errors
/// Something else is there, or the number is too large for `T`.
pub fn take_uint<T: TryFrom<u64>>(input: &mut &[u8], what: &'static str) -> Result<T, DecodeError> {
    let value: u64 = rmp::decode::read_int(input).map_err(|e| malformed(what, e))?;
    T::try_from(value).map_err(|_| DecodeError::Value {
        what,
        found: value.to_string(),
        expected: "within the field's range",
    })
}

/// Takes an array header. The length is bounded by what is left: an element takes at least one byte.
///
/// # Errors
/// Something else is there, or more elements are announced than bytes follow.
pub fn take_array(input: &mut &[u8], what: &'static str) -> Result<usize, DecodeError> {
    let len = rmp::decode::read_array_len(input).map_err(|e| malformed(what, e))? as usize;
    if len > input.len() {
        return Err(DecodeError::Short {
            what,
            have: input.len(),
            need: len,
        });
    }
    Ok(len)
}

/// Takes an array header that must announce at least `least` elements; gives how many more there are, which a
/// newer minor version may have added and [`skip`] passes over.
///
/// # Errors
/// Fewer elements.
pub fn take_fields(input: &mut &[u8], what: &'static str, least: usize) -> Result<usize, DecodeError> {
    let len = take_array(input, what)?;
    len.checked_sub(least).ok_or(DecodeError::Short {
        what,
        have: len,
        need: least,
    })
}

/// Takes a string of at most `max` bytes.
///
/// # Errors
/// Something else is there, it is longer, cut off or not UTF-8.
pub fn take_str<'a>(input: &mut &'a [u8], what: &'static str, max: usize) -> Result<&'a str, DecodeError> {
    let len = rmp::decode::read_str_len(input).map_err(|e| malformed(what, e))? as usize;
    std::str::from_utf8(take_exact(input, what, len, max)?).map_err(|e| malformed(what, e))
}

/// Takes a byte string of at most `max` bytes.
///
/// # Errors
/// Something else is there, it is longer or cut off.
pub fn take_bin<'a>(input: &mut &'a [u8], what: &'static str, max: usize) -> Result<&'a [u8], DecodeError> {
    let len = rmp::decode::read_bin_len(input).map_err(|e| malformed(what, e))? as usize;
    take_exact(input, what, len, max)
}

fn take_exact<'a>(
    input: &mut &'a [u8],
    what: &'static str,
    len: usize,
    max: usize,
) -> Result<&'a [u8], DecodeError> {
    if len > max {
        return Err(DecodeError::Value {
            what,
            found: format!("{len} bytes long"),
            expected: "within the field's limit",
        });
    }
    if len > input.len() {
        return Err(DecodeError::Short {
            what,
            have: input.len(),
            need: len,
        });
    }
    let (head, tail) = input.split_at(len);
    *input = tail;
    Ok(head)
}

/// Passes over `count` values of any shape.
///
/// # Errors
/// Not well-formed, cut off, or nested deeper than 64.
pub fn skip(input: &mut &[u8], what: &'static str, count: usize) -> Result<(), DecodeError> {
    for _ in 0..count {
        skip_value(input, what, 64)?;
    }
    Ok(())
}

fn skip_value(input: &mut &[u8], what: &'static str, depth: u32) -> Result<(), DecodeError> {
    use rmp::Marker;
    if depth == 0 {
        return Err(malformed(what, "nested deeper than 64"));
    }
    let marker = rmp::decode::read_marker(input).map_err(|e| malformed(what, format!("{e:?}")))?;
    let (fixed, children) = match marker {
        Marker::FixPos(_) | Marker::FixNeg(_) | Marker::Null | Marker::True | Marker::False => (0, 0),
        Marker::U8 | Marker::I8 => (1, 0),
        Marker::U16 | Marker::I16 => (2, 0),
        Marker::U32 | Marker::I32 | Marker::F32 => (4, 0),
        Marker::U64 | Marker::I64 | Marker::F64 => (8, 0),
        Marker::FixStr(len) => (usize::from(len), 0),
        Marker::Str8 | Marker::Bin8 => (take_be(input, what, 1)?, 0),
        Marker::Str16 | Marker::Bin16 => (take_be(input, what, 2)?, 0),
        Marker::Str32 | Marker::Bin32 => (take_be(input, what, 4)?, 0),
        Marker::FixArray(len) => (0, usize::from(len)),
        Marker::Array16 => (0, take_be(input, what, 2)?),
        Marker::Array32 => (0, take_be(input, what, 4)?),
        Marker::FixMap(len) => (0, usize::from(len) * 2),
        Marker::Map16 => (0, take_be(input, what, 2)? * 2),
        Marker::Map32 => (0, take_be(input, what, 4)? * 2),
        _ => return Err(malformed(what, format!("{marker:?} is not used here"))),
    };
    take_exact(input, what, fixed, usize::MAX)?;
    if children > input.len() {
        return Err(DecodeError::Short {
            what,
            have: input.len(),
            need: children,
        });
    }
    for _ in 0..children {
        skip_value(input, what, depth - 1)?;
    }
    Ok(())
}

fn take_be(input: &mut &[u8], what: &'static str, bytes: usize) -> Result<usize, DecodeError> {
    let head = take_exact(input, what, bytes, 8)?;
    Ok(head.iter().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

/// Appends a control body as a msgpack map with the fields' names.
pub fn put_named<T: Serialize>(out: &mut Vec<u8>, body: &T) {
    let mut serializer = rmp_serde::Serializer::new(out).with_struct_map();
    // Our own types serialize into a Vec without fail: no maps of unknown length, no failing `Serialize`.
    let _ = body.serialize(&mut serializer);
}

/// Takes a control body off the front. Takes memory in proportion to the body's own length.
///
/// # Errors
/// Not well-formed, or not of the type's shape.
pub fn take_named<T: DeserializeOwned>(input: &mut &[u8], what: &'static str) -> Result<T, DecodeError> {
    // serde makes room for what a list announces, a megabyte at most, before it has seen an element; and lists nest.
    // So what is announced must be there.
    skip(&mut &**input, what, 1)?;
    let mut deserializer = rmp_serde::Deserializer::new(&mut *input);
    deserializer.set_max_depth(64);
    T::deserialize(&mut deserializer).map_err(|e| malformed(what, e))
}

/// For `#[serde(with = "…")]` on a `Vec<u8>`: a msgpack byte string, where serde alone would write an array of
/// numbers, half as long again and far slower.
pub mod bytes {
    use serde::de::{Error, SeqAccess, Visitor};
    use serde::{Deserializer, Serializer};

    /// Writes a byte string.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    /// Reads a byte string, or an array of numbers below 256.
    ///
    /// # Errors
    /// Something else is there.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_byte_buf(BytesVisitor)
    }

    struct BytesVisitor;

    impl<'de> Visitor<'de> for BytesVisitor {
        type Value = Vec<u8>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a byte string")
        }

        fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
            Ok(bytes.to_vec())
        }

        fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
            Ok(bytes)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u8>, A::Error> {
            // The announced length is not believed: the buffer grows with what is there.
            let mut bytes = Vec::new();
            while let Some(byte) = seq.next_element()? {
                bytes.push(byte);
            }
            Ok(bytes)
        }
    }
}

/// [`bytes`] for an `Option<Vec<u8>>`.
pub mod optional_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize)]
    struct Borrowed<'a>(#[serde(with = "super::bytes")] &'a [u8]);

    #[derive(Deserialize)]
    struct Owned(#[serde(with = "super::bytes")] Vec<u8>);

    /// Writes a byte string or nil.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.as_deref().map(Borrowed).serialize(serializer)
    }

    /// Reads a byte string or nil.
    ///
    /// # Errors
    /// Something else is there.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        Ok(Option::<Owned>::deserialize(deserializer)?.map(|owned| owned.0))
    }
}

/// Makes a serde type a [`Body`] that travels as a msgpack map; the function, where there is one, says what a value is called in traces.
#[macro_export]
macro_rules! named_body {
    ($type:ty, $what:literal $(, $name:path)?) => {
        impl $crate::wire::Body for $type {
            fn encode(&self, out: &mut Vec<u8>) {
                $crate::wire::msgpack::put_named(out, self);
            }

            fn decode(input: &mut &[u8]) -> Result<Self, $crate::DecodeError> {
                $crate::wire::msgpack::take_named(input, $what)
            }
            $(
                fn name(&self) -> &'static str {
                    $name(self)
                }
            )?
        }
    };
}
