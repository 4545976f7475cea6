//! The C side: a provider's header, the probes, and the shim through which Rust reaches the tracepoints.

use std::fmt::Write as _;

use crate::list::{ACTIONS, POINTS, STATUSES};

/// The providers, each once.
pub(crate) fn providers() -> Vec<&'static str> {
    let mut found: Vec<&str> = Vec::new();
    for (provider, ..) in POINTS {
        if !found.contains(provider) {
            found.push(provider);
        }
    }
    found
}

const PARAMETERS: &str = "uint64_t operation, uint8_t action, const char *volume, uint64_t address, uint64_t length, \
                          uint8_t status";
const ARGUMENTS: &str = "operation, action, volume, address, length, status";

/// LTTng reads the header several times, with other meanings of its macros.
pub(crate) fn provider_header(provider: &str) -> String {
    let values = |names: &[&str]| {
        let value =
            |(number, name): (usize, &&str)| format!("lttng_ust_field_enum_value(\"{name}\", {number})");
        names.iter().enumerate().map(value).collect::<Vec<_>>().join(" ")
    };
    let args = "LTTNG_UST_TP_ARGS(uint64_t, operation, uint8_t, action, const char *, volume, uint64_t, address, \
                uint64_t, length, uint8_t, status)";
    let mut text = format!(
        "#undef LTTNG_UST_TRACEPOINT_PROVIDER\n\
         #define LTTNG_UST_TRACEPOINT_PROVIDER {provider}\n\
         #undef LTTNG_UST_TRACEPOINT_INCLUDE\n\
         #define LTTNG_UST_TRACEPOINT_INCLUDE \"{provider}.h\"\n\
         #if !defined({provider}_h) || defined(LTTNG_UST_TRACEPOINT_HEADER_MULTI_READ)\n\
         #define {provider}_h\n\
         #include <stdint.h>\n\
         #include <lttng/tracepoint.h>\n\
         LTTNG_UST_TRACEPOINT_ENUM({provider}, action, LTTNG_UST_TP_ENUM_VALUES({}))\n\
         LTTNG_UST_TRACEPOINT_ENUM({provider}, status, LTTNG_UST_TP_ENUM_VALUES({}))\n",
        values(ACTIONS),
        values(STATUSES)
    );
    for (_, event, _) in POINTS.iter().filter(|(of, ..)| *of == provider) {
        let _ = writeln!(
            text,
            "LTTNG_UST_TRACEPOINT_EVENT({provider}, {event}, {args}, LTTNG_UST_TP_FIELDS(\
             lttng_ust_field_integer_hex(uint64_t, operation, operation) \
             lttng_ust_field_enum({provider}, action, uint8_t, action, action) \
             lttng_ust_field_string(volume, volume) \
             lttng_ust_field_integer(uint64_t, address, address) \
             lttng_ust_field_integer(uint64_t, length, length) \
             lttng_ust_field_enum({provider}, status, uint8_t, status, status)))"
        );
    }
    text + "#endif\n#include <lttng/tracepoint-event.h>\n"
}

/// The library that needs `liblttng-ust`.
pub(crate) fn probes() -> String {
    "#define LTTNG_UST_TRACEPOINT_CREATE_PROBES\n".to_owned() + &includes()
}

/// What is linked into the binaries: the tracepoints themselves, of which Rust reads the state word.
pub(crate) fn shim() -> String {
    let mut text = "#define LTTNG_UST_TRACEPOINT_DEFINE\n\
                    #define LTTNG_UST_TRACEPOINT_PROBE_DYNAMIC_LINKAGE\n\
                    #define LTTNG_UST_TRACEPOINT_HIDDEN_DEFINITION\n\
                    #include <stddef.h>\n"
        .to_owned()
        + &includes();
    // `points/on.rs` declares the start of the struct.
    text += "_Static_assert(offsetof(struct lttng_ust_tracepoint, state) == 3 * sizeof(void *), \"the state word moved\");\n";
    for (provider, event, _) in POINTS {
        let _ = writeln!(
            text,
            "void sconce_tracepoint_{provider}___{event}({PARAMETERS}) {{\n    \
                 lttng_ust_do_tracepoint({provider}, {event}, {ARGUMENTS});\n}}"
        );
    }
    // The linker drops the section that registers the tracepoints unless somebody reads it (LLD, start-stop-gc).
    text += "int sconce_tracepoints_kept(void) {\n    int states = 0;\n";
    for (provider, event, _) in POINTS {
        let _ = writeln!(
            text,
            "    states += __atomic_load_n(&lttng_ust_tracepoint_ptr_{provider}___{event}->state, __ATOMIC_RELAXED);"
        );
    }
    text + "    return states;\n}\n"
}

fn includes() -> String {
    let include = |provider: &str| format!("#include \"{provider}.h\"\n");
    providers().into_iter().map(include).collect()
}
