//! Restarts, deaths at each write, full and failing disks, files that go.

#![expect(clippy::unwrap_used, reason = "a test: what goes wrong fails it")]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use sconce_cache::{Cache, CacheSettings, Components, ENTRY_LEN, Geometry, HEADER_LEN, SystemDisk, Use};
use sconce_runtime::settings::ByteSize;
use sconce_runtime::{Chance, Clock};
use sconce_schemas::crc::{crc32c, crc32c_append};
use support::{LONG, MemoryDisk, key, open, piece};

const PIECE: u32 = 1000;

async fn fill(cache: &Cache, numbers: std::ops::Range<u32>) {
    for number in numbers {
        cache.put(key(number), piece(number, PIECE));
    }
    cache.settled().await;
}

async fn found(cache: &Cache, numbers: std::ops::Range<u32>) -> usize {
    let mut found = 0;
    for number in numbers {
        if let Some(got) = cache.get(&key(number), Use::Counts).await {
            assert_eq!(got, piece(number, PIECE), "piece {number}");
            found += 1;
        }
    }
    found
}

#[tokio::test(start_paused = true)]
async fn a_process_that_dies_in_a_write_leaves_the_pieces_before_it_and_nothing_half_written() {
    // Three writes a piece, and the header's.
    for dies_in in 1..=3 * 12 + 1 {
        let disk = MemoryDisk::default();
        disk.state().writes_left = Some(dies_in);
        fill(&open(&disk, 40, PIECE).await, 0..12).await;
        disk.restart();
        let cache = open(&disk, 40, PIECE).await;
        // Half of a write was done.
        let whole = (dies_in - 1).saturating_sub(1) / 3;
        assert_eq!(found(&cache, 0..12).await, whole, "dies in write {dies_in}");
        assert_eq!(cache.counters().damaged, 0, "dies in write {dies_in}");
    }
}

/// Each entry's cell holds what the entry says: none outlived its piece.
fn entries_have_their_pieces(file: &[u8], cells: u32) {
    let geometry = Geometry::fitting(2 * HEADER_LEN + u64::from(cells) * (u64::from(PIECE) + 64), PIECE);
    assert_eq!(geometry.cells(), cells);
    let at = |offset: u64| usize::try_from(offset).unwrap();
    for cell in 0..cells {
        let entry = &file[at(geometry.entry_offset(cell))..][..ENTRY_LEN];
        let (checked, crc) = entry.split_at(ENTRY_LEN - 4);
        // One whose CRC does not hold is none.
        if crc32c_append(crc32c(&cell.to_le_bytes()), checked).to_le_bytes() == *crc {
            let piece = piece(u32::from_le_bytes(entry[..4].try_into().unwrap()), PIECE);
            let start = at(geometry.cell_offset(cell));
            assert!(file[start..].starts_with(&piece), "cell {cell} has another piece");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_dies_while_cells_are_reused_gives_no_mixture() {
    for dies_in in 1..60 {
        let disk = MemoryDisk::default();
        let cache = open(&disk, 8, PIECE).await;
        fill(&cache, 0..30).await;
        disk.state().writes_left = Some(dies_in);
        fill(&cache, 30..60).await;
        entries_have_their_pieces(&disk.bytes(), 8);
        disk.restart();
        let cache = open(&disk, 8, PIECE).await;
        let found = found(&cache, 0..60).await;
        assert!(found >= 6, "{found} pieces of 7 after a death in write {dies_in}");
        assert_eq!(cache.counters().damaged, 0, "an entry outlived its piece");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_is_warm_and_other_sizes_start_empty() {
    let disk = MemoryDisk::default();
    fill(&open(&disk, 40, PIECE).await, 0..39).await;
    for cells in [40, 41, 40] {
        disk.restart();
        let cache = open(&disk, cells, PIECE).await;
        let expected = if disk.state().writes > 3 * 39 + 1 { 0 } else { 39 };
        assert_eq!(found(&cache, 0..39).await, expected, "{cells} cells");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_there_before_a_restart_makes_room_for_what_comes() {
    let disk = MemoryDisk::default();
    fill(&open(&disk, 20, PIECE).await, 0..19).await;
    disk.restart();
    let cache = open(&disk, 20, PIECE).await;
    fill(&cache, 100..110).await;
    assert_eq!((cache.counters().pieces, cache.counters().evicted), (19, 10));
    let (old, new) = (found(&cache, 0..19).await, found(&cache, 100..110).await);
    assert!(old + new == 19 && new > 0, "{old} from before, {new} since");
    // What is used again and again stays in the end.
    let mut rounds = 0;
    while found(&cache, 100..110).await < 10 {
        fill(&cache, 100..110).await;
        rounds += 1;
        assert!(rounds < 20, "a new working set never comes in");
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_keeps_giving_and_takes_again_once_there_is_room() {
    let disk = MemoryDisk::default();
    let cache = open(&disk, 40, PIECE).await;
    fill(&cache, 0..10).await;
    disk.state().is_full = true;
    fill(&cache, 10..20).await;
    assert!(cache.counters().off && cache.counters().errors == 1);
    assert_eq!(found(&cache, 0..20).await, 10, "what is there is given");
    // Nothing is tried before its time.
    let writes = disk.state().writes;
    fill(&cache, 10..20).await;
    assert_eq!((disk.state().writes, cache.counters().errors), (writes, 1));
    tokio::time::advance(LONG).await;
    fill(&cache, 10..20).await;
    assert_eq!(cache.counters().errors, 2, "tried again, in vain");
    disk.state().is_full = false;
    tokio::time::advance(LONG).await;
    fill(&cache, 10..20).await;
    assert_eq!(found(&cache, 0..20).await, 20);
    assert!(!cache.counters().off);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_does_not_read_turns_it_off_for_a_while_and_its_cell_for_good() {
    let disk = MemoryDisk::default();
    let cache = open(&disk, 40, PIECE).await;
    fill(&cache, 0..10).await;
    disk.state().reads_fail = true;
    assert_eq!(found(&cache, 0..10).await, 0);
    assert!(
        cache.counters().off && cache.counters().errors == 1,
        "one read was tried, not ten"
    );
    disk.state().reads_fail = false;
    tokio::time::advance(LONG).await;
    assert_eq!(found(&cache, 0..1).await, 0, "this one has it opened again");
    cache.settled().await;
    assert_eq!(found(&cache, 0..10).await, 9, "all but the one whose read failed");
}

#[tokio::test(start_paused = true)]
async fn entries_that_cannot_be_read_are_cells_that_are_not_used() {
    let disk = MemoryDisk::default();
    let cells = 200;
    fill(&open(&disk, cells, PIECE).await, 0..150).await;
    disk.restart();
    // A page of entries: 64 of them.
    disk.state().bad = 2 * HEADER_LEN..3 * HEADER_LEN;
    let cache = open(&disk, cells, PIECE).await;
    assert_eq!(found(&cache, 0..150).await, 150 - 64);
    fill(&cache, 1000..1040).await;
    assert_eq!(
        found(&cache, 1000..1040).await,
        40,
        "the other cells take what comes"
    );
    assert_eq!(cache.counters().errors, 0);
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_cannot_be_written_is_not_tried_again() {
    let disk = MemoryDisk::default();
    let cache = open(&disk, 40, PIECE).await;
    let geometry = Geometry::fitting(2 * HEADER_LEN + 40 * (u64::from(PIECE) + 64), PIECE);
    disk.state().bad = geometry.cell_offset(3)..geometry.cell_offset(3) + 1;
    // Cells are taken in order: what was to be in this one, and what came after it, is not there.
    fill(&cache, 0..10).await;
    tokio::time::advance(LONG).await;
    found(&cache, 0..1).await;
    cache.settled().await;
    assert_eq!(found(&cache, 0..10).await, 3);
    for round in 1..4 {
        fill(&cache, 100 * round..100 * round + 60).await;
        assert_eq!(cache.counters().errors, 1, "round {round}");
        assert_eq!(
            cache.counters().pieces,
            38,
            "round {round}: full, but for that cell and a free one"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_is_waited_for_no_longer_than_a_fetch_takes() {
    let disk = MemoryDisk::default();
    let cache = open(&disk, 40, PIECE).await;
    fill(&cache, 0..10).await;
    {
        let mut state = disk.state();
        (state.nothing_in_memory, state.hangs) = (true, true);
    }
    let looked_up = key(1);
    let (got, ()) = futures_util::join!(cache.get(&looked_up, Use::Counts), async {
        // The clock does not go on by itself while a job blocks.
        tokio::task::yield_now().await;
        tokio::time::advance(LONG).await;
    });
    assert_eq!(got, None);
    assert!(cache.counters().off);
    assert_eq!(found(&cache, 0..10).await, 0, "without waiting");
    {
        let mut state = disk.state();
        (state.nothing_in_memory, state.hangs) = (false, false);
    }
    tokio::time::advance(LONG).await;
    found(&cache, 0..1).await;
    cache.settled().await;
    assert_eq!(found(&cache, 0..10).await, 10);
}

#[tokio::test(start_paused = true)]
async fn a_size_beyond_the_file_system_is_refused_before_it_takes_memory() {
    let disk = MemoryDisk::default();
    disk.state().capacity = 30_000;
    assert!(open(&disk, 40, PIECE).await.counters().off);
    assert!(!open(&disk, 20, PIECE).await.counters().off);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_cannot_be_opened_is_a_cache_without_pieces() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a-file");
    std::fs::write(&file, "in the way").unwrap();
    let cache = on_disk(&file.join("cache")).await;
    fill(&cache, 0..3).await;
    assert_eq!(found(&cache, 0..3).await, 0);
    assert!(cache.counters().off);
    std::fs::remove_file(&file).unwrap();
    tokio::time::advance(LONG).await;
    found(&cache, 0..1).await;
    cache.settled().await;
    fill(&cache, 0..3).await;
    assert_eq!(found(&cache, 0..3).await, 3);
}

async fn on_disk(directory: &Path) -> Cache {
    let settings = CacheSettings {
        directory: directory.to_owned(),
        size: ByteSize::new(1 << 20),
    };
    let components = Components {
        disk: Arc::new(SystemDisk),
        clock: Clock::system(),
    };
    let cache = Cache::open(&settings, PIECE, components, &mut Chance::seeded(2));
    cache.settled().await;
    cache
}

/// Waits until nobody has the file of a cache that was dropped: a thread that wrote lets go of it a moment after it is settled.
async fn is_let_go_of(file: &Path) {
    let file = std::fs::File::open(file).unwrap();
    while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_real_file_is_warm_after_a_restart_and_may_be_deleted_truncated_or_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pieces");
    let cache = on_disk(directory.path()).await;
    fill(&cache, 0..100).await;
    assert_eq!(found(&cache, 0..100).await, 100);
    // A second process must not write to the first one's cells.
    assert!(on_disk(directory.path()).await.counters().off);
    drop(cache);
    is_let_go_of(&file).await;

    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let cache = on_disk(directory.path()).await;
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it holds what is on guests' disks");
    assert_eq!(found(&cache, 0..100).await, 100, "warm");
    let length = std::fs::metadata(&file).unwrap().len();
    let open = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    open.set_len(length / 4 * 3).unwrap();
    let half = found(&cache, 0..100).await;
    assert!(
        (20..80).contains(&half),
        "{half} of 100 pieces in three quarters of a file"
    );
    open.set_len(0).unwrap();
    assert_eq!(found(&cache, 0..100).await, 0);
    fill(&cache, 0..100).await;
    assert_eq!(found(&cache, 0..100).await, 100);

    std::fs::remove_file(&file).unwrap();
    assert_eq!(found(&cache, 0..100).await, 100, "the open file is still good");
    fill(&cache, 100..101).await;
    assert!(file.exists(), "another was made");
    fill(&cache, 0..50).await;
    drop(cache);
    is_let_go_of(&file).await;
    let cache = on_disk(directory.path()).await;
    assert_eq!(found(&cache, 0..50).await, 50);
    drop(cache);
    is_let_go_of(&file).await;

    std::fs::write(&file, vec![0x5a; 500_000]).unwrap();
    let cache = on_disk(directory.path()).await;
    assert_eq!(found(&cache, 0..100).await, 0);
    fill(&cache, 0..50).await;
    assert_eq!(found(&cache, 0..50).await, 50);
}
