//! What happened, told once: as a line in the log, and to whoever asks the service for its events.
//!
//! Keeps: the newest events of this process, bounded in number and in bytes.
//! Order: events are numbered from 1 up, in the order of their lines in the log.
//! Crash: the events go with the process; the log stays. Whoever asked before sees by the run's number that it is another one.
//! Knows no bus; no event is part of a guest's operation.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sconce_schemas::wire::event::{
    EventPage, EventsAsk, Level, PoolEvent, TEXT_BYTES_MAX, VolumeName, WAIT_MS_MAX, What,
};
use sconce_schemas::wire::msgpack::put_named;
use sconce_schemas::{NodeName, VolumeId};
use tokio::sync::{Semaphore, watch};

use crate::{Chance, Clock, Stop};

/// Events that are kept: an hour of a pool in trouble.
pub const KEPT_MAX: usize = 4096;
/// Bytes of them: the texts and what they are about.
pub const KEPT_BYTES_MAX: usize = 2 << 20;
/// Events of one page, and their bytes: a page is one message on the bus.
pub const PAGE_MAX: usize = 512;
const PAGE_BYTES_MAX: usize = 256 << 10;
/// Bytes of an event: of one that takes more, only the text is kept. The longest path has 16 KiB.
const EVENT_BYTES_MAX: usize = 32 << 10;
/// Those who wait for an event at the same time; others are answered at once, with what there is.
const WAITING_MAX: usize = 64;

const _: () = assert!(
    PAGE_BYTES_MAX >= EVENT_BYTES_MAX && KEPT_BYTES_MAX >= PAGE_BYTES_MAX,
    "each event fits in a page, and a page is kept"
);

/// The events of a service. Clones share them, across threads.
#[derive(Debug, Clone)]
pub struct Events {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    node: NodeName,
    clock: Clock,
    run: u64,
    began_us: u64,
    ring: Mutex<Ring>,
    last: watch::Sender<u64>,
    waiting: Semaphore,
}

#[derive(Debug, Default)]
struct Ring {
    /// With its bytes, encoded.
    kept: VecDeque<(PoolEvent, usize)>,
    bytes: usize,
    last: u64,
}

impl Ring {
    /// The oldest number that is kept, or the next one.
    fn first(&self) -> u64 {
        self.last + 1 - self.kept.len() as u64
    }

    fn push(&mut self, mut event: PoolEvent) {
        self.last = event.seq;
        let mut bytes = bytes_of(&event);
        if bytes > EVENT_BYTES_MAX {
            event.what = What::Other;
            bytes = bytes_of(&event);
        }
        self.bytes += bytes;
        self.kept.push_back((event, bytes));
        while self.kept.len() > KEPT_MAX || self.bytes > KEPT_BYTES_MAX {
            let Some((_, bytes)) = self.kept.pop_front() else {
                break;
            };
            self.bytes -= bytes;
        }
    }

    fn after(&self, after: u64) -> Vec<PoolEvent> {
        let mut room = PAGE_BYTES_MAX;
        let gone = after.saturating_sub(self.first() - 1);
        let events = self.kept.iter().skip(usize::try_from(gone).unwrap_or(usize::MAX));
        let fits = |(_, bytes): &&(PoolEvent, usize)| {
            let left = room.checked_sub(*bytes);
            room = left.unwrap_or(0);
            left.is_some()
        };
        let page = events.take(PAGE_MAX).take_while(fits);
        page.map(|(event, _)| event.clone()).collect()
    }
}

fn bytes_of(event: &PoolEvent) -> usize {
    let mut encoded = Vec::new();
    put_named(&mut encoded, event);
    encoded.len()
}

impl Events {
    /// Those of the service `node`, which begins now.
    #[must_use]
    pub fn new(node: NodeName, clock: Clock, chance: &mut Chance) -> Self {
        let inner = Inner {
            node,
            run: chance.u64().max(1),
            began_us: clock.unix_micros(),
            clock,
            ring: Mutex::default(),
            last: watch::Sender::new(0),
            waiting: Semaphore::new(WAITING_MAX),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.inner.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened that is about no volume.
    pub fn tell(&self, what: What) {
        self.push(None, what);
    }

    /// Something happened to a volume. `path`: empty where it is not known.
    pub fn tell_of(&self, id: VolumeId, path: &str, what: What) {
        let path = path.to_owned();
        self.push(Some(VolumeName { id, path }), what);
    }

    fn push(&self, volume: Option<VolumeName>, what: What) {
        let said = cut(what.to_string());
        let level = what.level();
        let mut ring = self.ring();
        let seq = ring.last + 1;
        // Under the lock: the log has the events in their order.
        log(level, seq, volume.as_ref(), &what, &said);
        let text = match &volume {
            Some(VolumeName { id, path }) if path.is_empty() => format!("volume {id}: {said}"),
            Some(VolumeName { path, .. }) => format!("volume {path}: {said}"),
            None => said,
        };
        ring.push(PoolEvent {
            seq,
            time_us: self.inner.clock.unix_micros(),
            level,
            volume,
            what,
            text: cut(text),
        });
        drop(ring);
        self.inner.last.send_replace(seq);
    }

    /// The answer to a question. Waits where there is nothing to tell yet, as long as was asked for, until the stop at most.
    pub async fn page(&self, ask: &EventsAsk, stop: &Stop) -> EventPage {
        let mut last = self.inner.last.subscribe();
        let after = if ask.run == self.inner.run { ask.after } else { 0 };
        let wait = Duration::from_millis(u64::from(ask.wait_ms.min(WAIT_MS_MAX)));
        let has_news = *last.borrow() > after;
        if !has_news
            && !wait.is_zero()
            && let Ok(_turn) = self.inner.waiting.try_acquire()
        {
            tokio::select! {
                biased;
                _ = last.wait_for(|last| *last > after) => {}
                () = tokio::time::sleep(wait) => {}
                () = stop.requested() => {}
            }
        }
        let ring = self.ring();
        EventPage {
            node: self.inner.node.clone(),
            run: self.inner.run,
            began_us: self.inner.began_us,
            first: ring.first(),
            last: ring.last,
            events: ring.after(after),
        }
    }
}

/// Something happened where nobody asks for events: it is a line in the log.
pub fn log_only(what: &What) {
    log(what.level(), 0, None, what, &cut(what.to_string()));
}

fn log(level: Level, seq: u64, volume: Option<&VolumeName>, what: &What, said: &str) {
    let event = what.name();
    // One that is about no volume has no such fields.
    let path = volume.map(|volume| volume.path.as_str());
    let id = volume.map(|volume| tracing::field::display(volume.id));
    match level {
        Level::Info => tracing::info!(event, seq, volume = path, id, "{said}"),
        Level::Warning => tracing::warn!(event, seq, volume = path, id, "{said}"),
        Level::Error => tracing::error!(event, seq, volume = path, id, "{said}"),
    }
}

/// A text of at most as many bytes as an event may have.
fn cut(mut text: String) -> String {
    const MARK: &str = "…";
    if text.len() > TEXT_BYTES_MAX {
        let end = text.floor_char_boundary(TEXT_BYTES_MAX - MARK.len());
        text.truncate(end);
        text.push_str(MARK);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Events {
        let node = "vr-1".parse().unwrap();
        Events::new(node, Clock::simulated(1_000_000), &mut Chance::seeded(1))
    }

    fn fails(cause: &str) -> What {
        What::BackendFails {
            backend: "local".to_owned(),
            cause: cause.to_owned(),
        }
    }

    fn at_once(after: u64, run: u64) -> EventsAsk {
        EventsAsk {
            run,
            after,
            wait_ms: 0,
        }
    }

    async fn page(events: &Events, after: u64, run: u64) -> EventPage {
        events.page(&at_once(after, run), &Stop::new()).await
    }

    #[tokio::test(start_paused = true)]
    async fn events_are_told_in_order_and_each_once() {
        let events = events();
        events.tell(fails("one"));
        events.tell_of(VolumeId([7; 16]), "/a", fails("two"));
        let all = page(&events, 0, 0).await;
        assert_eq!((all.first, all.last), (1, 2));
        assert_eq!(
            all.events.iter().map(|event| event.seq).collect::<Vec<_>>(),
            [1, 2]
        );
        assert_eq!(all.events[0].text, "back end fails: local: one");
        assert_eq!(all.events[1].text, "volume /a: back end fails: local: two");
        assert_eq!(all.events[1].volume.as_ref().unwrap().id, VolumeId([7; 16]));
        events.tell_of(VolumeId([7; 16]), "", fails("three"));
        let rest = page(&events, 2, all.run).await;
        assert_eq!(rest.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [3]);
        assert!(
            rest.events[0].text.contains("0707"),
            "a volume without a path is named by its id"
        );
        // Numbers of another run are worth nothing.
        assert_eq!(page(&events, 2, all.run ^ 1).await.events.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded_and_what_is_gone_can_be_told() {
        let events = events();
        for number in 0..KEPT_MAX + 10 {
            events.tell(fails(&number.to_string()));
        }
        let first = page(&events, 0, 0).await;
        assert_eq!((first.first, first.last), (11, KEPT_MAX as u64 + 10));
        assert_eq!((first.events.len(), first.events[0].seq), (PAGE_MAX, 11));
        // Page after page, all that is kept, without a gap.
        let (mut after, mut seen) = (0, Vec::new());
        loop {
            let page = page(&events, after, first.run).await;
            let Some(last) = page.events.last() else { break };
            after = last.seq;
            seen.extend(page.events.iter().map(|event| event.seq));
        }
        assert_eq!(seen, (11..=KEPT_MAX as u64 + 10).collect::<Vec<_>>());
    }

    #[tokio::test(start_paused = true)]
    async fn long_texts_are_cut_and_counted() {
        let events = events();
        for _ in 0..KEPT_MAX {
            events.tell(fails(&"ä".repeat(4 * TEXT_BYTES_MAX)));
        }
        let page = page(&events, 0, 0).await;
        assert!(page.events.iter().all(|event| event.text.len() <= TEXT_BYTES_MAX));
        assert!(page.events[0].text.ends_with('…'));
        assert!(
            !page.events.is_empty() && page.events.len() < PAGE_MAX,
            "{}",
            page.events.len()
        );
        assert!(page.first > 1 && events.ring().bytes <= KEPT_BYTES_MAX);
        events.tell(fails(&"ä".repeat(EVENT_BYTES_MAX)));
        let last = self::page(&events, page.last, page.run).await.events;
        assert_eq!(last[0].what, What::Other, "what is too long is told by its text");
        assert!(last[0].text.starts_with("back end fails: local: ä"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_waits_for_the_next_event_and_for_no_longer_than_it_says() {
        let (events, stop) = (events(), Stop::new());
        let begun = tokio::time::Instant::now();
        let ask = EventsAsk {
            wait_ms: 5000,
            ..EventsAsk::default()
        };
        let page = events.page(&ask, &stop).await;
        assert_eq!((page.events.len(), page.first, page.last), (0, 1, 0));
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        let waits = async {
            let page = events.page(&ask, &stop).await;
            (page.events.len(), begun.elapsed())
        };
        let tells = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            events.tell(fails("now"));
        };
        let (told, ()) = tokio::join!(waits, tells);
        assert_eq!(told, (1, Duration::from_secs(6)));
        // Nobody who waits holds up a stop.
        stop.request();
        let ask = EventsAsk {
            run: page.run,
            after: 1,
            wait_ms: u32::MAX,
        };
        assert_eq!(events.page(&ask, &stop).await.events.len(), 0);
        assert_eq!(begun.elapsed(), Duration::from_secs(6));
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_wait() {
        let (events, stop) = (events(), Stop::new());
        let ask = EventsAsk {
            wait_ms: 1000,
            ..EventsAsk::default()
        };
        let begun = tokio::time::Instant::now();
        let asked = (0..WAITING_MAX + 1).map(|_| async {
            events.page(&ask, &stop).await;
            begun.elapsed()
        });
        let mut waited = futures_util::future::join_all(asked).await;
        waited.sort();
        assert_eq!(waited[0], Duration::ZERO, "one too many is answered at once");
        assert_eq!(waited[1], Duration::from_secs(1));
    }
}
