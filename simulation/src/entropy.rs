//! The system's random numbers, which a simulated process must not have.
//!
//! Keeps: for a thread of a simulation, its seed and how many were asked for.
//! Order: a thread of a simulation gets the same numbers in the same order, any other the system's.
//! Crash: nothing.
//! Knows only why it is there: the standard library keys each thread's hash maps with such numbers, so that the order in which a
//! map is iterated would not come from the seed.

use std::cell::Cell;

thread_local! {
    static ASKED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on this thread has numbers of the seed in place of the system's. To be called before the first hash map is made there.
pub(crate) fn leave_out(seed: u64) {
    ASKED.set(Some(seed << 32));
}

/// Takes the place of the C library's function of this name, which the standard library calls by a weak symbol "to allow
/// interposition".
///
/// # Safety
/// As for the C library's: `buffer` is writable for `length` bytes.
#[unsafe(no_mangle)]
#[expect(unreachable_pub, reason = "the standard library reaches it by its name")]
pub unsafe extern "C" fn getrandom(
    buffer: *mut libc::c_void,
    length: libc::size_t,
    flags: libc::c_uint,
) -> libc::ssize_t {
    // A thread that ends has none of its own any more.
    let Ok(Some(asked)) = ASKED.try_with(Cell::get) else {
        // SAFETY: the caller's promise is the system call's.
        let got = unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) };
        return libc::ssize_t::try_from(got).unwrap_or(-1);
    };
    ASKED.set(Some(asked + 1));
    let mut chance = sconce_runtime::Chance::seeded(asked);
    // SAFETY: the caller promises that it may be written; bytes may have any value before.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    chance.fill(buffer);
    libc::ssize_t::try_from(length).unwrap_or(libc::ssize_t::MAX)
}
