use std::future::pending;

use sconce_tracing::metrics::Metric;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::LocalSet;

use super::*;

fn of() -> MetricsOf {
    MetricsOf {
        service: "tester",
        node: "node-1".to_owned(),
        version: "0",
    }
}

async fn bound() -> (MetricsEndpoint, SocketAddr) {
    let settings = MetricsSettings {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
    };
    let endpoint = MetricsEndpoint::bind(Some(&settings)).await.unwrap().unwrap();
    let address = endpoint.listener.local_addr().unwrap();
    (endpoint, address)
}

/// What is answered to these bytes, until the connection ends.
async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

fn within(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn a_page_is_given_to_each_who_asks_and_nothing_else_is() {
    within(async {
        let (endpoint, address) = bound().await;
        let stop = Stop::new();
        let tell = async |page: &mut Page| page.number(Metric::BufferWaiting, &[], 7);
        let served = tokio::task::spawn_local(endpoint.serve(of(), tell, stop.clone()));
        for _ in 0..2 {
            let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            let kind = "content-type: text/plain; version=0.0.4; charset=utf-8\r\n";
            assert!(answer.contains(kind), "{answer}");
            assert!(
                answer.contains("\nsconce_volume_router_buffer_waiting 7\n"),
                "{answer}"
            );
            assert!(answer.contains("\nsconce_scrape_incomplete 0\n"), "{answer}");
            assert!(answer.contains("service=\"tester\",node=\"node-1\""), "{answer}");
        }
        let answer = ask(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("right would be /metrics"));
        let answer = ask(
            address,
            "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("right would be GET"));
        let answer = ask(address, "what\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        stop.request();
        served.await.unwrap();
    });
}

#[test]
fn a_part_that_does_not_answer_is_left_out_and_that_is_said() {
    within(async {
        let tell = async |page: &mut Page| {
            page.number(Metric::BufferWaiting, &[], 7);
            pending::<()>().await;
        };
        let pages = Pages { of: of(), tell };
        // Until the deadline there is nothing else to do: the paused clock goes there at once.
        tokio::time::pause();
        let page = pages.page().await.to_string();
        assert!(
            page.contains("\nsconce_volume_router_buffer_waiting 7\n"),
            "{page}"
        );
        assert!(page.contains("\nsconce_scrape_incomplete 1\n"), "{page}");
        assert!(page.contains("\nprocess_resident_memory_bytes "), "{page}");
    });
}

#[test]
fn readers_that_say_nothing_hold_up_no_service_and_end_with_it() {
    within(async {
        let (endpoint, address) = bound().await;
        let stop = Stop::new();
        let served = tokio::task::spawn_local(endpoint.serve(of(), async |_: &mut Page| {}, stop.clone()));
        let mut silent = Vec::new();
        for _ in 0..READERS_MAX + 3 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        // Those before it go: it has its turn.
        silent.truncate(READERS_MAX - 1);
        let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        stop.request();
        served.await.unwrap();
        for mut stream in silent {
            let mut rest = Vec::new();
            // Closed or reset: it does not wait.
            let _ = stream.read_to_end(&mut rest).await;
        }
    });
}

#[test]
fn what_cannot_be_listened_at_is_told_with_what_would_be_right() {
    let wrong = toml::from_str::<MetricsSettings>("listen = \"localhost\"").unwrap_err();
    assert!(
        wrong
            .to_string()
            .contains("\"localhost\" is no address; right would be"),
        "{wrong}"
    );
    within(async {
        let (_endpoint, address) = bound().await;
        let again = MetricsSettings { listen: address };
        let error = MetricsEndpoint::bind(Some(&again)).await.unwrap_err().to_string();
        assert!(
            error.contains(&format!("metrics.listen = \"{address}\"")),
            "{error}"
        );
        assert!(error.contains("right would be"), "{error}");
        assert!(MetricsEndpoint::bind(None).await.unwrap().is_none());
    });
}
