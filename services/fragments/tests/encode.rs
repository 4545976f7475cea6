//! What comes out is what went in; the same in gives the same out; other content never meets the same key and nonce.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use proptest::prelude::*;
use sconce_fragments::{Encoded, Key, Keyring, OpenError, Policy, encode, open_chunk, rebuild};
use sconce_schemas::records::{Compression, Protection};
use sconce_schemas::{Epoch, ObjectName, ScoId, VolumeId};

fn name(id: u64) -> ObjectName {
    ObjectName::Sco {
        volume: VolumeId::from_u128(0xabc),
        id: ScoId(id),
        epoch: Epoch(1),
        version: 0,
    }
}

fn keys(seed: u8) -> Keyring {
    Keyring::new([Key::parse(1, &[seed; 32]).unwrap()]).unwrap()
}

fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; length];
    for part in bytes.chunks_mut(20_000) {
        if chance.bool() {
            part.fill_with(|| chance.u8(..));
        }
    }
    bytes
}

fn policies() -> impl Strategy<Value = Policy> {
    let protections = prop_oneof![
        (1..=3_u8).prop_map(Protection::Replicas),
        (2..=5_u8, 1..=3_u8).prop_map(|(data, parity)| Protection::Erasure { data, parity }),
    ];
    let compressions = prop_oneof![
        Just(None),
        Just(Some(Compression::Lz4)),
        Just(Some(Compression::Zstd))
    ];
    (protections, compressions, any::<bool>()).prop_map(|(protection, compression, encrypted)| Policy {
        protection,
        compression,
        encrypted,
    })
}

/// Reads all of an object out of these bodies.
fn decode(
    name: ObjectName,
    encoded: &Encoded,
    keys: &Keyring,
    bodies: &[Bytes],
) -> Result<Vec<u8>, OpenError> {
    let mut read = Vec::new();
    for place in encoded.head.cut().chunks() {
        let chunk = encoded.head.chunk(place.index).unwrap();
        let start = usize::try_from(chunk.at).unwrap();
        let stored = bodies[usize::from(place.fragment)].slice(start..start + chunk.stored as usize);
        read.extend_from_slice(&open_chunk(name, &encoded.head, &place, keys, stored)?);
    }
    Ok(read)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_k_fragments_give_the_object(policy in policies(), seed in any::<u64>(), length in 0..400_000_usize) {
        let (data, keys) = (content(seed, length), keys(1));
        let encoded = encode(name(1), &policy, &keys, &data).unwrap();
        let cut = *encoded.head.cut();
        prop_assert_eq!(encoded.bodies.len(), policy.protection.width());
        let again = encode(name(1), &policy, &keys, &data).unwrap();
        prop_assert_eq!(&again.head, &encoded.head, "a put that is sent again is the same");
        prop_assert_eq!(&again.bodies, &encoded.bodies);
        let mut order: Vec<usize> = (0..cut.width()).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut order);
        let shard = usize::try_from(encoded.head.shard_bytes()).unwrap();
        let padded = |fragment: usize| {
            let mut body = encoded.bodies[fragment].to_vec();
            if cut.data > 1 {
                body.resize(shard, 0);
            } else {
                body.resize(body.len().next_multiple_of(64), 0);
            }
            (fragment, Bytes::from(body))
        };
        let have: Vec<_> = order[..usize::from(cut.data)].iter().map(|fragment| padded(*fragment)).collect();
        let all: Vec<usize> = (0..cut.width()).collect();
        let rebuilt = rebuild(usize::from(cut.data), usize::from(cut.parity), &have, &all).unwrap();
        let bodies: Vec<Bytes> = rebuilt
            .into_iter()
            .map(|(at, body)| body.slice(..usize::try_from(encoded.head.body_bytes(at)).unwrap()))
            .collect();
        prop_assert_eq!(&bodies, &encoded.bodies);
        prop_assert_eq!(decode(name(1), &encoded, &keys, &bodies).unwrap(), data);
    }
}

#[test]
fn other_content_another_name_and_other_compression_have_another_key() {
    let (data, keys) = (vec![7; 200_000], keys(1));
    let policy = |compression| Policy {
        protection: Protection::Replicas(1),
        compression,
        encrypted: true,
    };
    let salt = |name, compression, data: &[u8]| {
        let encoded = encode(name, &policy(compression), &keys, data).unwrap();
        encoded.head.sealing().unwrap().salt
    };
    let mut other = data.clone();
    other[199_999] ^= 1;
    let salts = [
        salt(name(1), None, &data),
        salt(name(1), None, &other),
        salt(name(2), None, &data),
        salt(name(1), Some(Compression::Lz4), &data),
        salt(name(1), Some(Compression::Zstd), &data),
        salt(name(1), None, &data[..199_999]),
    ];
    let distinct: std::collections::BTreeSet<_> = salts.iter().collect();
    assert_eq!(distinct.len(), salts.len());
    assert_eq!(salt(name(1), None, &data), salts[0]);
}

#[test]
fn a_chunk_is_bound_to_its_place_its_object_and_its_key() {
    let (data, right) = (content(3, 200_000), keys(1));
    let policy = Policy {
        protection: Protection::Replicas(1),
        compression: None,
        encrypted: true,
    };
    let encoded = encode(name(1), &policy, &right, &data).unwrap();
    assert_eq!(decode(name(1), &encoded, &right, &encoded.bodies).unwrap(), data);
    let damaged = |error: OpenError| assert!(matches!(error, OpenError::Damaged(_)), "{error}");
    damaged(decode(name(2), &encoded, &right, &encoded.bodies).unwrap_err());
    let mut places = encoded.head.cut().chunks();
    let (first, second) = (places.next().unwrap(), places.next().unwrap());
    let stored = encoded.bodies[0].slice(..65_552);
    damaged(open_chunk(name(1), &encoded.head, &second, &right, stored.clone()).unwrap_err());
    // Whoever writes the CRC anew does not get past the cipher.
    let mut forged = stored.to_vec();
    forged[5] ^= 1;
    let crcs: Vec<_> = encoded
        .head
        .cut()
        .chunks()
        .map(|place| {
            let chunk = encoded.head.chunk(place.index).unwrap();
            let crc = if place.index == 0 {
                sconce_schemas::crc::crc32c(&forged)
            } else {
                chunk.crc
            };
            (chunk.stored, chunk.is_compressed, crc)
        })
        .collect();
    let sealing = encoded.head.sealing().copied();
    let head =
        sconce_schemas::fragment::FragmentHead::new(*encoded.head.cut(), None, sealing, &[0], &crcs).unwrap();
    damaged(open_chunk(name(1), &head, &first, &right, forged.into()).unwrap_err());
    let wrong = open_chunk(name(1), &encoded.head, &first, &keys(2), stored.clone()).unwrap_err();
    assert!(matches!(wrong, OpenError::WrongKey { id: 1, .. }), "{wrong}");
    let none = open_chunk(name(1), &encoded.head, &first, &Keyring::default(), stored).unwrap_err();
    assert!(matches!(none, OpenError::NoKey { id: 1, .. }), "{none}");
}

#[test]
fn what_is_encrypted_today_is_read_for_ever() {
    let (data, keys) = (content(5, 150_000), keys(1));
    let policy = Policy {
        protection: Protection::Erasure { data: 2, parity: 1 },
        compression: Some(Compression::Lz4),
        encrypted: true,
    };
    let golden_dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let encoded = encode(name(1), &policy, &keys, &data).unwrap();
    if std::env::var_os("SCONCE_WRITE_GOLDEN").is_some() && !golden_dir.exists() {
        std::fs::create_dir_all(&golden_dir).unwrap();
        for fragment in 0..3 {
            let bytes = encoded.fragment(fragment).unwrap();
            std::fs::write(golden_dir.join(format!("fragment-{fragment}.bin")), bytes).unwrap();
        }
    }
    let golden = |fragment: usize| {
        Bytes::from(std::fs::read(golden_dir.join(format!("fragment-{fragment}.bin"))).unwrap())
    };
    // Compression may make other bytes one day; what it made is read all the same.
    let head = sconce_schemas::fragment::FragmentHead::from_bytes(&golden(2)).unwrap();
    let body = |fragment: usize| {
        let mut body = golden(fragment).slice(head.cut().body_at()..).to_vec();
        body.resize(usize::try_from(head.shard_bytes()).unwrap(), 0);
        (fragment, Bytes::from(body))
    };
    let rebuilt = rebuild(2, 1, &[body(0), body(2)], &[0, 1]).unwrap();
    let bodies: Vec<Bytes> = rebuilt.into_iter().map(|(_, body)| body).collect();
    let stored = Encoded { head, bodies };
    assert_eq!(decode(name(1), &stored, &keys, &stored.bodies).unwrap(), data);
}
