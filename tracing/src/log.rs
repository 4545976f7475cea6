//! Log set-up: lines on stderr, for people or as JSON.
//!
//! Keeps: the process-wide subscriber and the panic hook that logs.
//! Order: the environment's level comes before the settings'.
//! Crash: lines go to stderr unbuffered, so the last one before an abort is there.
//! Knows no log files and no rotation: whoever starts the process redirects stderr.

use std::io::IsTerminal as _;

use serde::Deserialize;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// The environment variable that overrides the level of the settings.
pub const LEVEL_ENV: &str = "SCONCE_LOG";

/// How a process logs: the section `[log]` of every settings file; may be left out.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`), or levels by target as in
    /// `info,sconce_bus=debug`.
    pub level: String,
    /// The form of a line.
    pub form: LogForm,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            form: LogForm::Human,
        }
    }
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogForm {
    /// For people: time, level, target, message, fields; coloured on a terminal.
    Human,
    /// For machines: one JSON object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level is not one.
    #[error(
        "{origin} is {value:?}, which is not a log level ({detail}); \
         right would be error, warn, info, debug, trace, or levels by target as in info,sconce_bus=debug"
    )]
    Level {
        /// Where the value came from: the settings' key or the environment variable.
        origin: &'static str,
        /// The value.
        value: String,
        /// What the parser said.
        detail: String,
    },
    /// Something in this process has set logging up before.
    #[error("logging is set up already in this process")]
    Twice,
}

/// Sets logging up for the whole process, logs panics, and lets LTTng reach the tracepoints. Call it once, first in `main`.
///
/// # Errors
/// A level that is not one; a second call.
pub fn init(settings: &LogSettings) -> Result<(), LogError> {
    let filter = filter(std::env::var(LEVEL_ENV).ok(), settings)?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let set = match settings.form {
        LogForm::Human => lines
            .map_event_format(|inner| WithTrace {
                inner,
                form: LogForm::Human,
            })
            .finish()
            .try_init(),
        LogForm::Json => lines
            .json()
            .flatten_event(true)
            .map_event_format(|inner| WithTrace {
                inner,
                form: LogForm::Json,
            })
            .finish()
            .try_init(),
    };
    set.map_err(|_| LogError::Twice)?;
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(target: "sconce", "{panic}; this is a bug: please report it with the lines above");
    }));
    crate::points::load();
    Ok(())
}

/// Lines that say which trace they are of, where the task that writes them works for a recorded one.
struct WithTrace<F> {
    inner: F,
    form: LogForm,
}

impl<S, N, F> FormatEvent<S, N> for WithTrace<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let Some(cause) = crate::telemetry::current().cause else {
            return self.inner.format_event(ctx, writer, event);
        };
        let mut line = String::new();
        self.inner.format_event(ctx, Writer::new(&mut line), event)?;
        let (line, trace, span) = (line.trim_end(), cause.trace_id, cause.span_id);
        match (self.form, line.strip_suffix('}')) {
            // The names of OpenTelemetry's log data model, as JSON has them.
            (LogForm::Json, Some(open)) => writeln!(
                writer,
                "{open},\"trace_id\":\"{trace:032x}\",\"span_id\":\"{span:016x}\",\"trace_flags\":\"01\"}}"
            ),
            _ => writeln!(writer, "{line} trace_id={trace:032x} span_id={span:016x}"),
        }
    }
}

fn filter(env: Option<String>, settings: &LogSettings) -> Result<EnvFilter, LogError> {
    let (origin, value) = match env.filter(|value| !value.is_empty()) {
        Some(value) => (LEVEL_ENV, value),
        None => ("log.level", settings.level.clone()),
    };
    // A word without `=` that is no level would be taken for a target: nothing would be logged, in silence.
    let stray = value
        .split(',')
        .map(str::trim)
        .find(|part| !part.contains('=') && part.parse::<tracing_subscriber::filter::LevelFilter>().is_err());
    if let Some(part) = stray {
        return Err(LogError::Level {
            origin,
            detail: format!("{part:?} is no level"),
            value: value.clone(),
        });
    }
    EnvFilter::try_new(&value).map_err(|error| LogError::Level {
        origin,
        value: value.clone(),
        detail: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_comes_before_the_settings() {
        let settings = LogSettings::default();
        let chosen = filter(Some("debug".to_owned()), &settings).unwrap();
        assert_eq!(chosen.to_string(), "debug");
        assert_eq!(filter(None, &settings).unwrap().to_string(), "info");
        assert_eq!(
            filter(Some(String::new()), &settings).unwrap().to_string(),
            "info"
        );
    }

    #[test]
    fn a_wrong_level_is_refused_with_its_origin_and_value() {
        let settings = LogSettings {
            level: "verbose".to_owned(),
            ..LogSettings::default()
        };
        let text = filter(None, &settings).unwrap_err().to_string();
        assert!(
            text.contains("log.level") && text.contains("\"verbose\""),
            "{text}"
        );
        let text = filter(Some("info,sconce_bus=loud".to_owned()), &settings)
            .unwrap_err()
            .to_string();
        assert!(
            text.contains("SCONCE_LOG") && text.contains("sconce_bus=loud"),
            "{text}"
        );
    }

    #[test]
    fn levels_by_target_are_taken() {
        let settings = LogSettings {
            level: "info, sconce_bus=debug".replace(' ', ""),
            ..LogSettings::default()
        };
        assert!(filter(None, &settings).is_ok());
    }

    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged within a recorded task, and without, in this form.
    fn logged(form: LogForm) -> [String; 2] {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone());
        let subscriber: Box<dyn Subscriber + Send + Sync> = match form {
            LogForm::Human => {
                let lines = subscriber.with_ansi(false);
                Box::new(lines.map_event_format(|inner| WithTrace { inner, form }).finish())
            }
            LogForm::Json => {
                let lines = subscriber.json().flatten_event(true);
                Box::new(lines.map_event_format(|inner| WithTrace { inner, form }).finish())
            }
        };
        let trace = sconce_schemas::wire::Trace {
            operation: 7,
            cause: Some(sconce_schemas::wire::Cause {
                trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
                span_id: 0xf0_67aa_0ba9_02b7,
            }),
        };
        tracing::subscriber::with_default(subscriber, || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let work = async { tracing::info!(volume = "a", "stored") };
            runtime.block_on(crate::telemetry::scope(trace, work));
            tracing::info!(volume = "a", "stored");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let (first, second) = text.trim_end().split_once('\n').unwrap();
        [first.to_owned(), second.to_owned()]
    }

    #[test]
    fn lines_of_recorded_work_say_which_trace_they_are_of() {
        let ids = ["4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"];
        let [within, without] = logged(LogForm::Json);
        let line: serde_json::Value = serde_json::from_str(&within).unwrap();
        assert_eq!([&line["trace_id"], &line["span_id"]], ids);
        assert_eq!(
            (&line["message"], &line["trace_flags"]),
            (&"stored".into(), &"01".into())
        );
        let line: serde_json::Value = serde_json::from_str(&without).unwrap();
        assert_eq!((&line["volume"], line.get("trace_id")), (&"a".into(), None));
        let [within, without] = logged(LogForm::Human);
        assert!(
            within.ends_with(&format!("trace_id={} span_id={}", ids[0], ids[1])),
            "{within}"
        );
        assert!(
            without.contains("stored") && !without.contains("trace_id"),
            "{without}"
        );
    }
}
