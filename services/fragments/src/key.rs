//! Keys: read, told apart, and turned into a key for each object.
//!
//! Keeps: the keys of a pool, the newest of which writes.
//! Order: a higher id is newer.
//! Crash: nothing.
//! Knows no files: whoever has the bytes of a key parses them here. A key is never shown.
//!
//! An object's own key is derived from the pool's key and a salt, and the salt is a MAC over the object's name and all
//! that will be encrypted. So the same content gives the same bytes however often it is sent again, and other content
//! of the same name, or compressed otherwise, another key: a nonce, which is the chunk's number, is never used twice with one
//! key for different content.

use std::collections::BTreeMap;
use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::{hkdf, hmac};
use sconce_schemas::fragment::{SALT_BYTES, Sealing, TAG_BYTES};

use crate::OpenError;

/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// A key of a pool.
pub struct Key {
    id: u32,
    bytes: [u8; KEY_BYTES],
    mac: hmac::Key,
    fingerprint: u64,
    writes: bool,
}

/// Why bytes are not a key, or keys not a key ring. Shows none of the bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not as long as a key.
    #[error("a key of {found} bytes; right would be 32 bytes, or 64 hexadecimal digits")]
    Length {
        /// Bytes that were given.
        found: usize,
    },
    /// As long as a key in digits, but with something else in it.
    #[error(
        "a key of 64 characters that are not all hexadecimal digits; right would be 32 bytes or 64 such digits"
    )]
    Digits,
    /// 0 means that nothing is encrypted.
    #[error("key id 0; right would be 1 or more")]
    Id,
    /// Two keys of one id.
    #[error("key id {0} twice; each key has an id of its own")]
    Twice(u32),
}

impl Key {
    /// The key with this id: 32 bytes, or 64 hexadecimal digits with space around them.
    ///
    /// # Errors
    /// Neither of them, or an id of 0.
    pub fn parse(id: u32, text: &[u8]) -> Result<Self, KeyError> {
        if id == 0 {
            return Err(KeyError::Id);
        }
        let bytes = match <[u8; KEY_BYTES]>::try_from(text) {
            Ok(bytes) => bytes,
            Err(_) => from_digits(text.trim_ascii())?,
        };
        let derived = |info: &[u8]| {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &bytes), info);
            let mut derived = [0; KEY_BYTES];
            derived.copy_from_slice(tag.as_ref());
            derived
        };
        let mut fingerprint = [0; 8];
        fingerprint.copy_from_slice(&derived(b"sconce key fingerprint 1")[..8]);
        Ok(Self {
            id,
            bytes,
            mac: hmac::Key::new(hmac::HMAC_SHA256, &derived(b"sconce content salt 1")),
            fingerprint: u64::from_le_bytes(fingerprint),
            writes: true,
        })
    }

    /// The key for reading alone.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self {
            writes: false,
            ..self
        }
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> u32 {
        self.id
    }

    /// What tells it from another key. Says nothing of the key itself.
    #[must_use]
    pub const fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// A MAC to be fed with all that an object's own key is to depend on.
    pub(crate) fn salting(&self) -> hmac::Context {
        hmac::Context::with_key(&self.mac)
    }

    /// How an object with this salt is encrypted.
    pub(crate) fn sealing(&self, salted: hmac::Context) -> Sealing {
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&salted.sign().as_ref()[..SALT_BYTES]);
        Sealing {
            key: self.id,
            fingerprint: self.fingerprint,
            salt,
        }
    }

    /// The key of the object with this salt.
    pub(crate) fn of_object(&self, salt: &[u8; SALT_BYTES]) -> Option<ObjectKey> {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(&self.bytes);
        let okm = prk.expand(&[b"sconce object key 1"], &AES_256_GCM).ok()?;
        Some(ObjectKey(LessSafeKey::new(UnboundKey::from(okm))))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

fn from_digits(text: &[u8]) -> Result<[u8; KEY_BYTES], KeyError> {
    if text.len() != 2 * KEY_BYTES {
        return Err(KeyError::Length { found: text.len() });
    }
    let mut bytes = [0; KEY_BYTES];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
        let digits = std::str::from_utf8(pair).ok();
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        *byte = digits
            .and_then(|digits| u8::from_str_radix(digits, 16).ok())
            .ok_or(KeyError::Digits)?;
    }
    Ok(bytes)
}

/// The key of one object.
pub(crate) struct ObjectKey(LessSafeKey);

impl ObjectKey {
    /// Encrypts a chunk in place and puts its tag behind it.
    pub(crate) fn seal(&self, chunk: u64, aad: &[u8], plain: &mut [u8]) -> Option<[u8; TAG_BYTES]> {
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(chunk), Aad::from(aad), plain)
            .ok()?;
        <[u8; TAG_BYTES]>::try_from(tag.as_ref()).ok()
    }

    /// Decrypts a chunk with its tag in place; `None` where it is not what was encrypted.
    pub(crate) fn open<'a>(&self, chunk: u64, aad: &[u8], sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.0.open_in_place(nonce(chunk), Aad::from(aad), sealed).ok()
    }
}

fn nonce(chunk: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&chunk.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The keys of a pool.
#[derive(Debug, Default)]
pub struct Keyring(BTreeMap<u32, Key>);

impl Keyring {
    /// These keys.
    ///
    /// # Errors
    /// Two of one id.
    pub fn new(keys: impl IntoIterator<Item = Key>) -> Result<Self, KeyError> {
        let mut ring = BTreeMap::new();
        for key in keys {
            if let Some(twice) = ring.insert(key.id, key) {
                return Err(KeyError::Twice(twice.id));
            }
        }
        Ok(Self(ring))
    }

    /// The key that new objects are encrypted with: that of the highest id among those that write.
    #[must_use]
    pub fn newest(&self) -> Option<&Key> {
        self.0.values().rev().find(|key| key.writes)
    }

    /// All keys, by their ids.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.values()
    }

    /// The key that an object was encrypted with.
    ///
    /// # Errors
    /// It is not here, or another one has its id.
    pub fn find(&self, sealing: &Sealing) -> Result<&Key, OpenError> {
        let id = sealing.key;
        let Some(key) = self.0.get(&id) else {
            let known: Vec<String> = self.0.keys().map(ToString::to_string).collect();
            let known = if known.is_empty() {
                "none".to_owned()
            } else {
                known.join(", ")
            };
            return Err(OpenError::NoKey { id, known });
        };
        if key.fingerprint != sealing.fingerprint {
            return Err(OpenError::WrongKey {
                id,
                found: sealing.fingerprint,
                here: key.fingerprint,
            });
        }
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_bytes_or_64_digits_and_never_shown() {
        let digits = "00ff".repeat(16);
        let key = Key::parse(3, format!(" {digits}\n").as_bytes()).unwrap();
        let bytes: Vec<u8> = [0x00, 0xff].repeat(16);
        assert_eq!(Key::parse(3, &bytes).unwrap().bytes, key.bytes);
        assert_eq!(format!("{key:?}"), "Key { id: 3, .. }");
        for (text, error) in [
            ("", KeyError::Length { found: 0 }),
            ("00ff", KeyError::Length { found: 4 }),
            (&"+0".repeat(32), KeyError::Digits),
            (&"zz".repeat(32), KeyError::Digits),
        ] {
            assert_eq!(Key::parse(3, text.as_bytes()).unwrap_err(), error);
        }
        assert_eq!(Key::parse(0, &bytes).unwrap_err(), KeyError::Id);
        let twice = [Key::parse(3, &bytes).unwrap(), key];
        assert_eq!(Keyring::new(twice).unwrap_err(), KeyError::Twice(3));
    }
}
