//! Makes, from the one list of tracepoints, LTTng's providers, the C shim and the Rust side.
//!
//! The library with the probes is the only part that needs `liblttng-ust` to run: its bytes go into the binaries, which load it
//! at start. Without LTTng's headers (or with `SCONCE_LTTNG=0`) all tracepoints compile to nothing.

#[path = "build/c.rs"]
mod c;
#[path = "src/points/list.rs"]
mod list;
#[path = "build/rust.rs"]
mod rust;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rustc-check-cfg=cfg(lttng)");
    println!("cargo::rerun-if-env-changed=SCONCE_LTTNG");
    for source in ["build.rs", "build/c.rs", "build/rust.rs", "src/points/list.rs"] {
        println!("cargo::rerun-if-changed={source}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let wanted = env::var("SCONCE_LTTNG").map_or(true, |value| value != "0");
    let lttng = wanted && has_headers(&out)?;
    fs::write(out.join("points.rs"), rust::points(lttng))?;
    if lttng {
        println!("cargo::rustc-cfg=lttng");
        compile(&out)?;
    }
    Ok(())
}

fn has_headers(out: &Path) -> Result<bool, Box<dyn Error>> {
    let probe = out.join("headers.c");
    fs::write(&probe, "#include <lttng/tracepoint.h>\n")?;
    let found = cc::Build::new().cargo_warnings(false).file(probe).try_expand();
    Ok(found.is_ok())
}

/// The shim goes into the binaries, the probes into a library of their own.
fn compile(out: &Path) -> Result<(), Box<dyn Error>> {
    for provider in c::providers() {
        fs::write(out.join(format!("{provider}.h")), c::provider_header(provider))?;
    }
    let (shim, probes) = (out.join("shim.c"), out.join("probes.c"));
    fs::write(&shim, c::shim())?;
    fs::write(&probes, c::probes())?;
    let mut build = cc::Build::new();
    // Optimized in every profile: the generated code is large, and is nobody's to debug.
    build.include(out).opt_level(2).debug(false);
    build.clone().file(shim).try_compile("sconce_tracepoints")?;
    let mut linked = build.pic(true).get_compiler().to_command();
    linked
        .arg("-shared")
        .arg("-s")
        .arg("-o")
        .arg(out.join("probes.so"));
    let status = linked.arg(&probes).arg("-llttng-ust").status()?;
    if !status.success() {
        return Err(format!(
            "{linked:?}: {status}; is liblttng-ust-dev whole? SCONCE_LTTNG=0 builds without it"
        )
        .into());
    }
    Ok(())
}
