//! The erasure code over bodies, or over the same range of each.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing.
//! Knows no heads: bodies of one length in, bodies of that length out.
//!
//! Reed-Solomon over GF(2^16) works on blocks of 64 bytes by themselves, so a range that begins and ends at such a
//! block is coded like a whole body. With one piece the code is: all bodies are the same.

use bytes::Bytes;
use reed_solomon_simd::{ReedSolomonDecoder, ReedSolomonEncoder};
use sconce_schemas::fragment::SHARD_UNIT;

/// Parity over `data`, all of one length, a multiple of 64.
pub(crate) fn parity(data: &[&[u8]], parity: usize) -> Result<Vec<Bytes>, String> {
    let length = data.first().map_or(0, |first| first.len());
    if length == 0 || parity == 0 {
        return Ok(vec![Bytes::new(); parity]);
    }
    let failed = |error: reed_solomon_simd::Error| error.to_string();
    let mut encoder = ReedSolomonEncoder::new(data.len(), parity, length).map_err(failed)?;
    for shard in data {
        encoder.add_original_shard(shard).map_err(failed)?;
    }
    let coded = encoder.encode().map_err(failed)?;
    Ok(coded.recovery_iter().map(Bytes::copy_from_slice).collect())
}

/// Rebuilds the same range of the fragments `wanted` from that range of others, by their numbers: `data` of them at
/// least, all of one length, a multiple of 64 (a body that ends before counts as padded with zeros).
///
/// # Errors
/// Too few of them, or of different lengths.
pub fn rebuild(
    data: usize,
    parity_count: usize,
    have: &[(usize, Bytes)],
    wanted: &[usize],
) -> Result<Vec<(usize, Bytes)>, String> {
    let length = have.first().map_or(0, |(_, body)| body.len());
    if have.len() < data {
        return Err(format!("{} fragments are there, {data} are needed", have.len()));
    }
    if have.iter().any(|(_, body)| body.len() != length) || !length.is_multiple_of(SHARD_UNIT) {
        return Err(format!(
            "fragments of different lengths, or not of a multiple of 64: {length}"
        ));
    }
    if data == 1 || length == 0 {
        let body = have.first().map_or_else(Bytes::new, |(_, body)| body.clone());
        return Ok(wanted.iter().map(|index| (*index, body.clone())).collect());
    }
    let all = originals(data, parity_count, length, have)?;
    let mut rebuilt = Vec::with_capacity(wanted.len());
    let parities = if wanted.iter().any(|index| *index >= data) {
        let shards: Vec<&[u8]> = all.iter().map(|body| &body[..]).collect();
        parity(&shards, parity_count)?
    } else {
        Vec::new()
    };
    for index in wanted {
        let body = match index.checked_sub(data) {
            None => all.get(*index),
            Some(parity) => parities.get(parity),
        };
        let body = body.ok_or_else(|| format!("there is no fragment {index} of {data}+{parity_count}"))?;
        rebuilt.push((*index, body.clone()));
    }
    Ok(rebuilt)
}

fn originals(
    data: usize,
    parity_count: usize,
    length: usize,
    have: &[(usize, Bytes)],
) -> Result<Vec<Bytes>, String> {
    let mut all: Vec<Option<Bytes>> = vec![None; data];
    for (index, body) in have {
        if let Some(place) = all.get_mut(*index) {
            *place = Some(body.clone());
        }
    }
    if all.iter().any(Option::is_none) {
        let failed = |error: reed_solomon_simd::Error| error.to_string();
        let mut decoder = ReedSolomonDecoder::new(data, parity_count, length).map_err(failed)?;
        for (index, body) in have {
            match index.checked_sub(data) {
                None => decoder.add_original_shard(*index, body),
                Some(parity) => decoder.add_recovery_shard(parity, body),
            }
            .map_err(failed)?;
        }
        let decoded = decoder.decode().map_err(failed)?;
        for (index, body) in decoded.restored_original_iter() {
            if let Some(place) = all.get_mut(index) {
                *place = Some(Bytes::copy_from_slice(body));
            }
        }
    }
    let all: Option<Vec<Bytes>> = all.into_iter().collect();
    all.ok_or_else(|| "the code did not restore all fragments".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(seed: u64, length: usize) -> Bytes {
        let mut chance = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| chance.u8(..)).take(length).collect()
    }

    #[test]
    fn any_k_of_a_range_give_the_range_of_all() {
        for (data, parities) in [(1, 2), (2, 1), (4, 2), (5, 5), (16, 8)] {
            let originals: Vec<Bytes> = (0..data).map(|index| body(index as u64, 1024)).collect();
            let shards: Vec<&[u8]> = originals.iter().map(|body| &body[..]).collect();
            let mut all = originals.clone();
            if data == 1 {
                all.extend(vec![originals[0].clone(); parities]);
            } else {
                all.extend(parity(&shards, parities).unwrap());
            }
            let mut chance = fastrand::Rng::with_seed(9);
            for _ in 0..30 {
                let mut order: Vec<usize> = (0..data + parities).collect();
                chance.shuffle(&mut order);
                let start = 64 * chance.usize(..16);
                let end = start + 64 * chance.usize(1..=(1024 - start) / 64);
                let have: Vec<_> = order[..data]
                    .iter()
                    .map(|index| (*index, all[*index].slice(start..end)))
                    .collect();
                for (index, body) in rebuild(data, parities, &have, &order).unwrap() {
                    assert_eq!(body, all[index].slice(start..end), "{data}+{parities}: {index}");
                }
                let few = rebuild(data, parities, &have[1..], &order);
                assert!(few.is_err(), "one too few is refused");
            }
        }
    }
}
