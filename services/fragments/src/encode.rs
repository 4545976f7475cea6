//! From an object to its fragments, and from a stored chunk back to the object's bytes.
//!
//! Keeps: nothing.
//! Order: compress, salt, encrypt, code, in this order, once for each object.
//! Crash: nothing.
//! Knows no back end.

use bytes::{Bytes, BytesMut};
use sconce_schemas::ObjectName;
use sconce_schemas::crc::crc32c;
use sconce_schemas::fragment::{ChunkPlace, Cut, FragmentHead, SHARD_UNIT, TAG_BYTES};
use sconce_schemas::records::{Compression, PoolRecord, Protection};
use std::borrow::Cow;

use crate::key::{Key, Keyring};
use crate::{EncodeError, OpenError, code, squeeze};

/// How a pool keeps its objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Copies, or pieces with parity.
    pub protection: Protection,
    /// Compression, where it wins.
    pub compression: Option<Compression>,
    /// Whether nothing may be in clear.
    pub encrypted: bool,
}

impl Policy {
    /// The policy of a pool whose objects are kept as fragments; `None`: as whole copies in clear, without heads.
    #[must_use]
    pub const fn of(record: &PoolRecord) -> Option<Self> {
        let is_plain = matches!(record.protection, Protection::Replicas(_))
            && record.compression.is_none()
            && !record.encrypted;
        if is_plain {
            return None;
        }
        Some(Self {
            protection: record.protection,
            compression: record.compression,
            encrypted: record.encrypted,
        })
    }
}

/// An object as fragments.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// What each of them begins with.
    pub head: FragmentHead,
    /// Their bodies.
    pub bodies: Vec<Bytes>,
}

impl Encoded {
    /// A fragment as it is put into its envelope: head, padding, body.
    #[must_use]
    pub fn fragment(&self, index: usize) -> Option<Bytes> {
        self.bodies.get(index).map(|body| assemble(&self.head, body))
    }
}

/// A fragment of this head and body as it is put into its envelope.
#[must_use]
pub fn assemble(head: &FragmentHead, body: &[u8]) -> Bytes {
    let body_at = head.cut().body_at();
    let mut fragment = BytesMut::with_capacity(body_at + body.len());
    fragment.extend_from_slice(head.bytes());
    fragment.resize(body_at, 0);
    fragment.extend_from_slice(body);
    fragment.freeze()
}

/// A chunk on its way.
struct Chunk<'a> {
    place: ChunkPlace,
    bytes: Cow<'a, [u8]>,
    is_compressed: bool,
}

/// Makes the fragments of an object. The same object by the same policy and key gives the same bytes.
///
/// # Errors
/// The policy asks for a key and there is none, or the object is too large.
pub fn encode(
    name: ObjectName,
    policy: &Policy,
    keys: &Keyring,
    data: &[u8],
) -> Result<Encoded, EncodeError> {
    let key = match (policy.encrypted, keys.newest()) {
        (false, _) => None,
        (true, Some(key)) => Some(key),
        (true, None) => return Err(EncodeError::NoKey),
    };
    encode_with(name, policy, key, data)
}

/// Makes the fragments of an object with the key that `head` names: if the object is that head's, and this build compresses
/// as the one that wrote it, its fragments.
///
/// # Errors
/// The key is not here, or another one has its id; or as [`encode`].
pub fn encode_as(
    name: ObjectName,
    policy: &Policy,
    keys: &Keyring,
    head: &FragmentHead,
    data: &[u8],
) -> Result<Encoded, EncodeError> {
    let key = head.sealing().map(|sealing| keys.find(sealing)).transpose()?;
    encode_with(name, policy, key, data)
}

fn encode_with(
    name: ObjectName,
    policy: &Policy,
    key: Option<&Key>,
    data: &[u8],
) -> Result<Encoded, EncodeError> {
    let cut = Cut::of(policy.protection, data.len() as u64);
    let chunks: Vec<Chunk> = cut.chunks().map(|place| chunk(policy, place, data)).collect();
    let sealed = key.map(|key| sealed(name, &cut, policy.compression, key, &chunks));
    let (sealing, tags) = match sealed {
        None => (None, None),
        Some(Some((sealing, sealed))) => (Some(sealing), Some(sealed)),
        Some(None) => return Err(EncodeError::Invalid("the cipher refused a chunk".to_owned())),
    };
    let mut bodies = vec![BytesMut::new(); usize::from(cut.data)];
    let mut table = Vec::with_capacity(chunks.len());
    for (at, chunk) in chunks.iter().enumerate() {
        let body = &mut bodies[usize::from(chunk.place.fragment)];
        let start = body.len();
        match tags.as_ref().and_then(|sealed| sealed.get(at)) {
            Some(sealed) => body.extend_from_slice(sealed),
            None => body.extend_from_slice(&chunk.bytes),
        }
        let stored = u32::try_from(body.len() - start).unwrap_or(u32::MAX);
        table.push((stored, chunk.is_compressed, crc32c(&body[start..])));
    }
    let mut bodies: Vec<Bytes> = bodies.into_iter().map(BytesMut::freeze).collect();
    bodies.extend(parity_of(&cut, &bodies).map_err(EncodeError::Invalid)?);
    let crcs: Vec<u32> = bodies.iter().map(|body| crc32c(body)).collect();
    let head = FragmentHead::new(cut, policy.compression, sealing, &crcs, &table)
        .map_err(|error| EncodeError::Invalid(error.to_string()))?;
    Ok(Encoded { head, bodies })
}

fn parity_of(cut: &Cut, bodies: &[Bytes]) -> Result<Vec<Bytes>, String> {
    let parities = usize::from(cut.parity);
    if let [only] = bodies {
        return Ok(vec![only.clone(); parities]);
    }
    let longest = bodies.iter().map(Bytes::len).max().unwrap_or(0);
    let shard = longest.next_multiple_of(SHARD_UNIT);
    let padded: Vec<Cow<'_, [u8]>> = bodies.iter().map(|body| padded(body, shard)).collect();
    let shards: Vec<&[u8]> = padded.iter().map(|body| &body[..]).collect();
    code::parity(&shards, parities)
}

fn padded(body: &[u8], length: usize) -> Cow<'_, [u8]> {
    if body.len() == length {
        return Cow::Borrowed(body);
    }
    let mut padded = Vec::with_capacity(length);
    padded.extend_from_slice(body);
    padded.resize(length, 0);
    Cow::Owned(padded)
}

fn chunk<'a>(policy: &Policy, place: ChunkPlace, data: &'a [u8]) -> Chunk<'a> {
    let start = usize::try_from(place.at).unwrap_or(usize::MAX);
    let plain = data.get(start..start + place.length).unwrap_or_default();
    let squeezed = policy
        .compression
        .and_then(|compression| squeeze::squeeze(compression, plain));
    Chunk {
        place,
        is_compressed: squeezed.is_some(),
        bytes: squeezed.map_or(Cow::Borrowed(plain), Cow::Owned),
    }
}

type Sealed = (sconce_schemas::fragment::Sealing, Vec<Vec<u8>>);

fn sealed(
    name: ObjectName,
    cut: &Cut,
    compression: Option<Compression>,
    key: &Key,
    chunks: &[Chunk<'_>],
) -> Option<Sealed> {
    let base = aad_base(name, cut, compression);
    let mut salting = key.salting();
    salting.update(&base);
    for chunk in chunks {
        salting.update(&aad_end(chunk.place.index, chunk.is_compressed));
        salting.update(&(chunk.bytes.len() as u64).to_le_bytes());
        salting.update(&chunk.bytes);
    }
    let sealing = key.sealing(salting);
    let own = key.of_object(&sealing.salt)?;
    let mut sealed = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let mut bytes = Vec::with_capacity(chunk.bytes.len() + TAG_BYTES);
        bytes.extend_from_slice(&chunk.bytes);
        let aad = aad(&base, chunk.place.index, chunk.is_compressed);
        let tag = own.seal(chunk.place.index as u64, &aad, &mut bytes)?;
        bytes.extend_from_slice(&tag);
        sealed.push(bytes);
    }
    Some((sealing, sealed))
}

/// What a chunk is encrypted as a part of: the object's name, and how it is cut and compressed.
fn aad_base(name: ObjectName, cut: &Cut, compression: Option<Compression>) -> Vec<u8> {
    let compression = compression.map_or_else(|| "none".to_owned(), |compression| compression.to_string());
    let Cut {
        data,
        parity,
        chunk_log2,
        length,
    } = cut;
    format!("{name} {data}+{parity} {chunk_log2} {length} {compression} ").into_bytes()
}

fn aad_end(chunk: usize, is_compressed: bool) -> [u8; 9] {
    let mut end = [u8::from(is_compressed); 9];
    end[..8].copy_from_slice(&(chunk as u64).to_le_bytes());
    end
}

fn aad(base: &[u8], chunk: usize, is_compressed: bool) -> Vec<u8> {
    [base, &aad_end(chunk, is_compressed)].concat()
}

/// A chunk of the object out of its stored bytes.
///
/// # Errors
/// `Damaged`: they are not those that were stored. A key that is not there, or another one in its place.
pub fn open_chunk(
    name: ObjectName,
    head: &FragmentHead,
    place: &ChunkPlace,
    keys: &Keyring,
    stored: Bytes,
) -> Result<Bytes, OpenError> {
    let index = place.index;
    let damaged = |what: &str| OpenError::Damaged(format!("chunk {index} of its fragments {what}"));
    let chunk = head.chunk(index).ok_or_else(|| damaged("is not in the head"))?;
    if stored.len() != chunk.stored as usize || crc32c(&stored) != chunk.crc {
        return Err(damaged("has not the CRC32C that its head says"));
    }
    let clear = match head.sealing() {
        None => stored,
        Some(sealing) => {
            let key = keys.find(sealing)?;
            let own = key
                .of_object(&sealing.salt)
                .ok_or_else(|| damaged("has no key"))?;
            let aad = aad(
                &aad_base(name, head.cut(), head.compression()),
                index,
                chunk.is_compressed,
            );
            let mut sealed = stored
                .try_into_mut()
                .unwrap_or_else(|shared| BytesMut::from(&*shared));
            let length = own
                .open(index as u64, &aad, &mut sealed)
                .ok_or_else(|| damaged("does not decrypt: it is not what was encrypted"))?
                .len();
            sealed.truncate(length);
            sealed.freeze()
        }
    };
    match head.compression().filter(|_| chunk.is_compressed) {
        None => Ok(clear),
        Some(compression) => squeeze::expand(compression, &clear, place.length)
            .map(Bytes::from)
            .ok_or_else(|| damaged("does not expand")),
    }
}
