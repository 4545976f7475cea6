//! What services log, in the trace of the run.
//!
//! Keeps: nothing; lines go to the run's history.
//! Order: as they come.
//! Crash: nothing.
//! Knows that an ERROR means that a person must look: none may come without a reason that the run knows.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::rc::Rc;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::history::History;

thread_local! {
    static HISTORY: RefCell<Option<Rc<RefCell<History>>>> = const { RefCell::new(None) };
}

/// Lines that come on this thread go here.
pub(crate) fn to(history: Option<Rc<RefCell<History>>>) {
    HISTORY.set(history);
}

/// Writes to the history of the thread.
pub(crate) struct ToHistory {
    /// Lines of less weight are left out.
    pub(crate) most: Level,
    /// What differs from run to run: a folder, a process.
    pub(crate) hidden: [String; 2],
}

impl<S: Subscriber> Layer<S> for ToHistory {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > self.most || !event.metadata().target().starts_with("sconce") {
            return;
        }
        let mut line = Line(String::new());
        event.record(&mut line);
        let text = self
            .hidden
            .iter()
            .fold(line.0, |text, hidden| text.replace(hidden, "<this run's>"));
        HISTORY.with_borrow(|history| {
            // One that is logged while the history is written down is not worth a panic.
            let Some(Ok(mut history)) = history.as_ref().map(|history| history.try_borrow_mut()) else {
                return;
            };
            match level {
                Level::ERROR => history.fail(format!("{} logs an ERROR:{text}", event.metadata().target())),
                _ => history.note(format_args!("{level} {}:{text}", event.metadata().target())),
            }
        });
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
