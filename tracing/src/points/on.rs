//! What is linked where LTTng's headers were there: the tracepoints' state words, and how the probes are loaded.
//!
//! Keeps: the probes, loaded once, for as long as the process lives.
//! Order: a point is off until the probes are loaded and a session wants it.
//! Crash: nothing.
//! Knows no point by name: `build.rs` makes what is generated from the list.

use std::ffi::{CStr, c_char};
use std::io;
use std::sync::atomic::AtomicI32;

/// The start of `struct lttng_ust_tracepoint`; `build.rs` has the C compiler check where the state word lies.
#[repr(C)]
#[derive(Debug)]
pub(super) struct Tracepoint {
    struct_size: u32,
    // Pointers, which nobody follows here.
    provider_name: usize,
    event_name: usize,
    /// Other than 0: at least one session records the event.
    pub(super) state: AtomicI32,
}

/// Records an event: operation, action, volume (a string), address, length, status.
pub(super) type Record = unsafe extern "C" fn(u64, u8, *const c_char, u64, u64, u8);

/// The shim's function of this name.
macro_rules! function {
    ($name:literal) => {{
        unsafe extern "C" {
            #[link_name = $name]
            fn record(
                operation: u64,
                action: u8,
                volume: *const std::ffi::c_char,
                address: u64,
                length: u64,
                status: u8,
            );
        }
        record
    }};
}
pub(super) use function;

unsafe extern "C" {
    safe fn sconce_tracepoints_kept() -> i32;
}

/// A library with LTTng's probes; the only thing here that needs `liblttng-ust`.
static PROBES: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probes.so"));

/// Loads the probes, out of memory: so a binary is whole without a file beside it.
pub(super) fn load() -> Result<(), String> {
    let _ = sconce_tracepoints_kept();
    let file = in_memory(c"sconce-probes", PROBES).map_err(|error| format!("probes: {error}"))?;
    let path = format!("/proc/self/fd/{file}\0");
    // SAFETY: the path ends with a zero byte; the library's constructors are LTTng's own.
    let loaded = unsafe { libc::dlopen(path.as_ptr().cast(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if loaded.is_null() {
        // SAFETY: `dlerror` gives a string, or null where there is none; it is copied before any other call.
        let why = unsafe {
            let why = libc::dlerror();
            if why.is_null() {
                "no reason was given".to_owned()
            } else {
                CStr::from_ptr(why).to_string_lossy().into_owned()
            }
        };
        return Err(why);
    }
    Ok(())
}

/// A file that is nowhere but in memory. Its descriptor stays open: LTTng describes to its sessions the files of what is
/// loaded.
fn in_memory(name: &CStr, bytes: &[u8]) -> io::Result<i32> {
    // SAFETY: the name ends with a zero byte.
    let file = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        // SAFETY: the descriptor is ours, and the bytes are there for the length that is given.
        let written = unsafe { libc::write(file, rest.as_ptr().cast(), rest.len()) };
        match usize::try_from(written) {
            Ok(written) if written > 0 => rest = &rest[written..],
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(file)
}
