//! One recorded piece of work.
//!
//! Keeps: what a span says, until it ends.
//! Order: a span ends when it is dropped; what is below it may end later.
//! Crash: a span that has not ended is lost.
//! Knows no collector.

use std::time::{Instant, SystemTime};

use opentelemetry::trace::{SpanContext, SpanId, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use sconce_schemas::wire::{Cause, Trace};

use super::export::Queue;
use super::{QUEUE, context, is_sampled};
use crate::OperationId;

/// Which side of a request a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Somebody's request is answered.
    Server,
    /// A request is made, and its answer waited for.
    Client,
    /// Neither.
    Internal,
}

/// A piece of work that is recorded, or none: then it costs nothing.
#[derive(Debug, Default)]
#[must_use = "a span ends when it is dropped"]
pub struct Span(Option<Box<Recording>>);

#[derive(Debug)]
struct Recording {
    queue: &'static Queue,
    operation: u64,
    /// Its own ids.
    ids: Cause,
    /// The span above it; 0: none.
    parent: u64,
    parent_is_remote: bool,
    kind: SpanKind,
    name: &'static str,
    began: (SystemTime, Instant),
    attributes: Vec<KeyValue>,
    failed: Option<String>,
}

impl Span {
    /// No span.
    pub const NONE: Span = Span(None);

    /// An operation of the data path, where it enters: recorded if it is among those that the settings choose.
    #[inline]
    pub fn sampled(name: &'static str, operation: OperationId) -> Self {
        if is_sampled(operation) {
            return Self::root(SpanKind::Server, name, operation);
        }
        Self::NONE
    }

    /// What is recorded always, if anything is: below what the current task works for, else as a trace of its own.
    pub fn control(name: &'static str) -> Self {
        Self::control_below(context::current(), SpanKind::Internal, name)
    }

    /// The same below `trace`, if that is recorded.
    pub fn control_below(trace: Trace, kind: SpanKind, name: &'static str) -> Self {
        if QUEUE.get().is_none() || trace.cause.is_some() {
            return Self::below(trace, kind, name);
        }
        let operation = match trace.operation {
            0 => fastrand::u64(1..),
            operation => operation,
        };
        Self::root(kind, name, OperationId(operation))
    }

    /// What is done for `trace`, if that is recorded.
    #[inline]
    pub fn below(trace: Trace, kind: SpanKind, name: &'static str) -> Self {
        match trace.cause {
            None => Self::NONE,
            Some(cause) => Self::recorded_below(trace.operation, cause, kind, name),
        }
    }

    #[cold]
    fn recorded_below(operation: u64, cause: Cause, kind: SpanKind, name: &'static str) -> Self {
        let ids = Cause {
            span_id: fastrand::u64(1..),
            ..cause
        };
        Self::begin(operation, ids, cause.span_id, kind, name)
    }

    #[cold]
    fn root(kind: SpanKind, name: &'static str, operation: OperationId) -> Self {
        Self::begin(operation.0, context::root(operation), 0, kind, name)
    }

    fn begin(operation: u64, ids: Cause, parent: u64, kind: SpanKind, name: &'static str) -> Self {
        let Some(queue) = QUEUE.get() else {
            return Self::NONE;
        };
        Self(Some(Box::new(Recording {
            queue,
            operation,
            ids,
            parent,
            parent_is_remote: kind == SpanKind::Server && parent != 0,
            kind,
            name,
            began: (SystemTime::now(), Instant::now()),
            attributes: Vec::new(),
            failed: None,
        })))
    }

    /// Whether there is one.
    #[inline]
    #[must_use]
    pub const fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// What is done below it belongs to this; `without` where there is no span.
    #[inline]
    #[must_use]
    pub fn trace_or(&self, without: Trace) -> Trace {
        match &self.0 {
            None => without,
            Some(recording) => Trace {
                operation: recording.operation,
                cause: Some(recording.ids),
            },
        }
    }

    /// Says a number of it.
    pub fn number(&mut self, key: &'static str, value: u64) {
        if let Some(recording) = &mut self.0 {
            // The data model has signed numbers only.
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            recording.attributes.push(KeyValue::new(key, value));
        }
    }

    /// Says something of it in words.
    pub fn text(&mut self, key: &'static str, value: impl std::fmt::Display) {
        if let Some(recording) = &mut self.0 {
            recording.attributes.push(KeyValue::new(key, value.to_string()));
        }
    }

    /// It did not succeed, and why.
    pub fn fail(&mut self, why: impl std::fmt::Display) {
        if let Some(recording) = &mut self.0 {
            recording.failed = Some(why.to_string());
        }
    }

    /// What it is of did not happen: nothing is recorded.
    pub fn discard(mut self) {
        self.0 = None;
    }

    /// Runs `work` below it; it ends with `work`.
    pub async fn scope<F: Future>(self, work: F) -> F::Output {
        match self.is_recorded() {
            true => context::scope(self.trace_or(Trace::default()), work).await,
            false => work.await,
        }
    }
}

impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        if let Some(recording) = self.0.take() {
            recording.end();
        }
    }
}

/// The recorded ones among operations that are under way, by what tells these apart.
#[derive(Debug)]
pub struct Recorded<K>(Vec<(K, Span)>);

impl<K> Default for Recorded<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: PartialEq> Recorded<K> {
    /// An operation begins.
    pub fn put(&mut self, key: K, span: Span) {
        self.0.push((key, span));
    }

    /// It has ended: its span, if it was recorded.
    #[inline]
    pub fn take(&mut self, key: &K) -> Option<Span> {
        if self.0.is_empty() {
            return None;
        }
        let at = self.0.iter().position(|(known, _)| known == key)?;
        Some(self.0.swap_remove(at).1)
    }
}

impl Recording {
    #[cold]
    #[expect(clippy::boxed_local, reason = "it is where it was; moving it out is no use")]
    fn end(self: Box<Self>) {
        let (began, since) = self.began;
        let context = SpanContext::new(
            TraceId::from(self.ids.trace_id),
            SpanId::from(self.ids.span_id),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        );
        let mut attributes = self.attributes;
        attributes.push(KeyValue::new(
            "sconce.operation",
            format!("{:016x}", self.operation),
        ));
        self.queue.put(SpanData {
            span_context: context,
            parent_span_id: SpanId::from(self.parent),
            parent_span_is_remote: self.parent_is_remote,
            span_kind: match self.kind {
                SpanKind::Server => opentelemetry::trace::SpanKind::Server,
                SpanKind::Client => opentelemetry::trace::SpanKind::Client,
                SpanKind::Internal => opentelemetry::trace::SpanKind::Internal,
            },
            name: self.name.into(),
            start_time: began,
            end_time: began + since.elapsed(),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: self.failed.map_or(Status::Unset, Status::error),
            instrumentation_scope: InstrumentationScope::builder("sconce").build(),
        });
    }
}
