use std::collections::HashSet;

use sconce_schemas::wire::Trace;

use super::*;

fn identity() -> Identity<'static> {
    Identity {
        service: "tester",
        node: "tester-1",
        version: "0",
    }
}

fn refused(address: &str) -> String {
    let settings = TelemetrySettings {
        otlp: Some(address.to_owned()),
        ..TelemetrySettings::default()
    };
    start(&settings, identity()).unwrap_err().to_string()
}

#[test]
fn an_address_that_is_none_is_refused_with_what_would_be_right() {
    for address in [
        "127.0.0.1:4318",
        "https://127.0.0.1:4318",
        "http://",
        "http://a b",
        "http://a/v1/traces",
    ] {
        let text = refused(address);
        assert!(
            text.contains("telemetry.otlp") && text.contains(address),
            "{text}"
        );
        assert!(text.contains("http://127.0.0.1:4318"), "{text}");
    }
}

/// Nothing was started in this process by any test: nothing is recorded.
#[test]
fn without_a_collector_nothing_is_recorded() {
    assert!(start(&TelemetrySettings::default(), identity()).is_ok());
    for operation in 0..10_000 {
        assert!(!Span::sampled("write", OperationId(operation)).is_recorded());
        assert_eq!(sampled(OperationId(operation)).cause, None);
    }
    assert!(!Span::control("open").is_recorded());
    let trace = Trace {
        operation: 7,
        cause: Some(context::root(OperationId(7))),
    };
    assert!(!Span::below(trace, SpanKind::Server, "write").is_recorded());
    assert_eq!(unsent(), Unsent::default());
}

#[test]
fn an_operations_trace_ends_with_its_id_and_is_like_no_neighbours() {
    let mut spans = HashSet::new();
    let mut halves = HashSet::new();
    for operation in 1..=1000 {
        let root = context::root(OperationId(operation));
        let trace = format!("{:032x}", root.trace_id);
        assert!(trace.ends_with(&OperationId(operation).to_string()), "{trace}");
        assert_ne!(root.span_id, 0);
        spans.insert(root.span_id);
        halves.insert(root.trace_id >> 64);
    }
    assert_eq!((spans.len(), halves.len()), (1000, 1000));
}

#[test]
fn what_a_task_works_for_is_what_its_scope_says() {
    let trace = Trace {
        operation: 7,
        cause: Some(context::root(OperationId(7))),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        assert_eq!(current(), Trace::default());
        let inner = scope(trace, async {
            // A span that is not recorded changes nothing.
            let below = Span::NONE.scope(async { current() }).await;
            (current(), below)
        });
        assert_eq!(inner.await, (trace, trace));
        assert_eq!(current(), Trace::default());
    });
}

#[test]
fn spans_without_room_are_counted() {
    let queue = Queue::default();
    for _ in 0..export::WAITING_MAX + 5 {
        queue.put(span());
    }
    let counts = queue.counts();
    assert_eq!((counts.waiting, counts.dropped), (export::WAITING_MAX as u64, 5));
}

fn span() -> opentelemetry_sdk::trace::SpanData {
    opentelemetry_sdk::trace::SpanData {
        span_context: opentelemetry::trace::SpanContext::NONE,
        parent_span_id: opentelemetry::trace::SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: opentelemetry::trace::SpanKind::Internal,
        name: "span".into(),
        start_time: std::time::SystemTime::UNIX_EPOCH,
        end_time: std::time::SystemTime::UNIX_EPOCH,
        attributes: Vec::new(),
        dropped_attributes_count: 0,
        events: Default::default(),
        links: Default::default(),
        status: opentelemetry::trace::Status::Unset,
        instrumentation_scope: opentelemetry::InstrumentationScope::default(),
    }
}
