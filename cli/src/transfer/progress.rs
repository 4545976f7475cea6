//! Keeps: the progress bar, on a terminal.
//! Order, crash: nothing.
//! Knows no copy.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over `bytes`; invisible where standard error is no terminal.
pub(super) fn bar(verb: &str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    let template =
        "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(verb.to_owned());
    bar
}

/// Shows that something is waited for whose length nobody knows.
pub(super) fn spinner(text: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(text.to_owned());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
