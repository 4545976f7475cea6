//! The Rust side: one enum of all tracepoints, with what each does when it is on.

use std::fmt::Write as _;

use crate::list::{ACTIONS, POINTS, STATUSES};

/// `points.rs`; without LTTng no tracepoint is ever on.
pub(crate) fn points(lttng: bool) -> String {
    let mut text = String::new();
    numbered(&mut text, "What an operation does.", "Action", ACTIONS);
    numbered(&mut text, "How an operation stands.", "Status", STATUSES);
    text += "/// The tracepoints, in the order in which an operation comes by them.\n\
             #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]\npub enum Point {\n";
    for (provider, event, says) in POINTS {
        let _ = writeln!(text, "    /// {says}\n    {},", variant(provider, event));
    }
    text += "}\n\nimpl Point {\n    /// All, in order.\n    pub const ALL: &[Point] = &[\n";
    for (provider, event, _) in POINTS {
        let _ = writeln!(text, "        Point::{},", variant(provider, event));
    }
    text += "    ];\n\n    /// Its name in traces.\n    #[must_use]\n    pub const fn name(self) -> &'static str {\n        match self {\n";
    for (provider, event, _) in POINTS {
        let _ = writeln!(
            text,
            "            Point::{} => \"{provider}:{event}\",",
            variant(provider, event)
        );
    }
    text += "        }\n    }\n}\n";
    if lttng {
        reached(&mut text);
    }
    text
}

fn numbered(text: &mut String, doc: &str, name: &str, values: &[&str]) {
    let _ = writeln!(
        text,
        "/// {doc}\n#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]\n#[repr(u8)]\npub enum {name} {{"
    );
    for (number, value) in values.iter().enumerate() {
        let default = if number == 0 { "    #[default]\n" } else { "" };
        let _ = writeln!(
            text,
            "    /// `{value}` in traces.\n{default}    {} = {number},",
            camel(value)
        );
    }
    let _ = writeln!(
        text,
        "}}\n\nimpl {name} {{\n    /// All, by number.\n    pub const ALL: &[{name}] = &["
    );
    for value in values {
        let _ = writeln!(text, "        {name}::{},", camel(value));
    }
    *text += "    ];\n\n    /// As traces and metrics have it.\n    #[must_use]\n    pub const fn name(self) -> &'static str {\n        match self {\n";
    for value in values {
        let _ = writeln!(text, "            {name}::{} => \"{value}\",", camel(value));
    }
    *text += "        }\n    }\n}\n\n";
}

/// How each point's state word and its function are reached.
fn reached(text: &mut String) {
    *text += "\nmod linked {\n    use super::on::{Record, Tracepoint};\n    unsafe extern \"C\" {\n";
    for (provider, event, _) in POINTS {
        let (upper, symbol) = (
            format!("{provider}_{event}").to_uppercase(),
            format!("{provider}___{event}"),
        );
        let _ = writeln!(
            text,
            "        #[link_name = \"lttng_ust_tracepoint_{symbol}\"]\n        pub(super) safe static {upper}: Tracepoint;"
        );
    }
    *text += "    }\n";
    for (provider, event, _) in POINTS {
        let _ = writeln!(
            text,
            "    pub(super) const RECORD_{}: Record = super::on::function!(\"sconce_tracepoint_{provider}___{event}\");",
            format!("{provider}_{event}").to_uppercase()
        );
    }
    *text += "}\n\nimpl Point {\n    #[inline(always)]\n    fn linked(self) -> (&'static on::Tracepoint, on::Record) {\n        match self {\n";
    for (provider, event, _) in POINTS {
        let upper = format!("{provider}_{event}").to_uppercase();
        let _ = writeln!(
            text,
            "            Point::{} => (&linked::{upper}, linked::RECORD_{upper}),",
            variant(provider, event)
        );
    }
    *text += "        }\n    }\n}\n";
}

fn variant(provider: &str, event: &str) -> String {
    camel(provider.trim_start_matches("sconce_")) + &camel(event)
}

fn camel(name: &str) -> String {
    let word = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('_').map(word).collect()
}
