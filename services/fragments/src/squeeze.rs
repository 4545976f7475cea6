//! Compression of one chunk, where it wins.
//!
//! Keeps: nothing.
//! Order: none.
//! Crash: nothing.
//! Knows no objects: a chunk's length is kept beside it, and what does not expand to it is damaged.

use sconce_schemas::records::Compression;

/// Below this share of a chunk it is stored compressed, in hundredths: a tenth is won.
const WORTH_PERCENT: usize = 90;
/// Zstandard's fastest of the regular levels: a chunk is written once and read often.
const ZSTD_LEVEL: i32 = 1;

/// The chunk compressed, where at least a tenth is won.
pub(crate) fn squeeze(compression: Compression, chunk: &[u8]) -> Option<Vec<u8>> {
    let most = chunk.len() * WORTH_PERCENT / 100;
    let squeezed = match compression {
        Compression::Lz4 => lz4_flex::block::compress(chunk),
        // What does not fit into this is not wanted.
        Compression::Zstd => {
            let mut room = vec![0; most];
            let length = zstd::bulk::compress_to_buffer(chunk, &mut room[..], ZSTD_LEVEL).ok()?;
            room.truncate(length);
            room
        }
    };
    (squeezed.len() <= most).then_some(squeezed)
}

/// The chunk of `length` bytes that was compressed to `squeezed`; `None` where it is none.
pub(crate) fn expand(compression: Compression, squeezed: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut chunk = vec![0; length];
    let expanded = match compression {
        Compression::Lz4 => lz4_flex::block::decompress_into(squeezed, &mut chunk).ok()?,
        Compression::Zstd => zstd::bulk::decompress_to_buffer(squeezed, &mut chunk[..]).ok()?,
    };
    (expanded == length).then_some(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wins_a_tenth_comes_back_and_what_does_not_is_left() {
        for compression in [Compression::Lz4, Compression::Zstd] {
            for incompressible in [0, 10_000, 55_000, 65_000, 65_536] {
                let mut chunk = vec![7; 65_536];
                let mut chance = fastrand::Rng::with_seed(1);
                chunk[..incompressible].fill_with(|| chance.u8(..));
                let squeezed = squeeze(compression, &chunk);
                assert_eq!(squeezed.is_some(), incompressible < 60_000, "{incompressible}");
                if let Some(squeezed) = squeezed {
                    assert!(squeezed.len() * 10 <= chunk.len() * 9);
                    assert_eq!(expand(compression, &squeezed, chunk.len()).unwrap(), chunk);
                    assert_eq!(expand(compression, &squeezed, chunk.len() - 1), None);
                    assert_eq!(expand(compression, &squeezed, chunk.len() + 1), None);
                    assert_eq!(
                        expand(compression, &squeezed[..squeezed.len() - 1], chunk.len()),
                        None
                    );
                }
            }
            assert_eq!(squeeze(compression, b""), None);
            assert_eq!(squeeze(compression, b"x"), None);
        }
    }
}
