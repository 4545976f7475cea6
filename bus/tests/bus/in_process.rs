//! The in-process network: what it disturbs, and that a seed tells the same story again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use sconce_bus::{
    CallError, Caller, ClientEvent, Endpoint, Faults, Hello, InProcess, LostReason, Network, SendError,
    ServerEvent, bind, connect,
};
use sconce_schemas::NodeName;
use sconce_schemas::wire::registry::{RegistryReply, RegistryRequest};
use tokio::time::Instant;

use crate::common::*;

fn name(name: &str) -> NodeName {
    name.parse().expect("a name")
}

struct Wired {
    wires: InProcess,
    network: Network,
    endpoint: Endpoint,
}

fn wired(seed: u64) -> Wired {
    let wires = InProcess::new(seed);
    Wired {
        network: Network::in_process(wires.clone()),
        wires,
        endpoint: Endpoint::in_process("test"),
    }
}

impl Wired {
    async fn serve(&self) -> TestServer {
        bind(&self.network, &self.endpoint, identity())
            .await
            .expect("bind")
    }
}

const SOON: Duration = Duration::from_secs(60);

#[test]
fn a_call_takes_its_delays() {
    simulate(async {
        let w = wired(1);
        let ms = Duration::from_millis;
        w.wires.set_faults(Faults {
            delay: ms(10)..=ms(10),
            ..Faults::default()
        });
        tokio::task::spawn_local(echo(w.serve().await));
        let caller = Caller::new(&w.network, &w.endpoint, hello());
        caller
            .call(&get("a"), Bytes::new(), 0, SOON)
            .await
            .expect("greeted and answered");
        let start = Instant::now();
        let answer = caller.call(&get("ab"), bytes(5000, 7), 5000, SOON).await;
        assert_eq!(answer, Ok((entry(2), bytes(5000, 7))));
        // The paused clock moves in steps of a millisecond.
        let took = start.elapsed();
        assert!((ms(20)..=ms(23)).contains(&took), "{took:?}");
    });
}

#[test]
fn a_silent_peer_is_noticed_and_found_again_after_the_partition() {
    simulate(async {
        let w = wired(2);
        tokio::task::spawn_local(echo(w.serve().await));
        let (sender, mut receiver) = connect(&w.network, &w.endpoint, hello());
        up(&mut receiver).await;
        // One way only: requests arrive, answers do not.
        w.wires.cut(&name("server"), &name("tester"));
        sender.send(1, 0, &get("a"), Bytes::new(), 0).expect("up");
        let event = receiver.next().await;
        assert!(
            matches!(event, ClientEvent::Down(LostReason::Silent(_))),
            "{event:?}"
        );
        let none = tokio::time::timeout(SOON, receiver.next()).await;
        assert!(none.is_err(), "nobody is reached through a cut");
        w.wires.heal_all();
        up(&mut receiver).await;
        sender.send(2, 0, &get("a"), Bytes::new(), 0).expect("up");
        assert!(matches!(receiver.next().await, ClientEvent::Replies(replies) if replies[0].id == 2));
    });
}

#[test]
fn an_idle_connection_is_left_alone() {
    simulate(async {
        let w = wired(3);
        tokio::task::spawn_local(echo(w.serve().await));
        let (sender, mut receiver) =
            connect::<RegistryRequest, RegistryReply>(&w.network, &w.endpoint, hello());
        up(&mut receiver).await;
        w.wires.part(&name("server"), &name("tester"));
        let hours = Duration::from_secs(3600 * 5);
        let none = tokio::time::timeout(hours, receiver.next()).await;
        assert!(
            none.is_err(),
            "with nothing outstanding nobody asks whether the peer is there"
        );
        assert!(sender.is_up());
    });
}

#[test]
fn a_slow_answer_is_no_silence() {
    simulate(async {
        let w = wired(4);
        let mut server = w.serve().await;
        let (sender, mut receiver) = connect(&w.network, &w.endpoint, hello());
        greet(&mut server, &mut receiver).await;
        sender.send(1, 0, &get("a"), Bytes::new(), 0).expect("up");
        tokio::task::spawn_local(async move {
            let ServerEvent::Requests(mut requests) = server.next().await else {
                panic!("expected a request");
            };
            tokio::select! {
                () = tokio::time::sleep(SOON * 10) => {}
                // Pings are answered meanwhile.
                _ = server.next() => panic!("nothing else was sent"),
            }
            requests.remove(0).reply.send(entry(0), Bytes::new());
            server.next().await;
        });
        let event = receiver.next().await;
        assert!(matches!(event, ClientEvent::Replies(_)), "{event:?}");
    });
}

#[test]
fn a_broken_connection_ends_calls_with_lost() {
    simulate(async {
        let w = wired(5);
        let mut server = w.serve().await;
        let caller = Caller::<_, RegistryReply>::new(&w.network, &w.endpoint, hello());
        let wires = w.wires.clone();
        tokio::task::spawn_local(async move {
            let ServerEvent::Requests(_unanswered) = server.next().await else {
                panic!("expected a request");
            };
            wires.break_connections(&name("tester"), &name("server"));
            echo(server).await;
        });
        let request = get("a");
        assert_eq!(
            caller.call(&request, Bytes::new(), 0, SOON).await,
            Err(CallError::Lost)
        );
        assert_eq!(
            caller.call(&request, Bytes::new(), 0, SOON).await,
            Ok((entry(1), Bytes::new()))
        );
    });
}

#[test]
fn a_full_server_finds_out_that_a_client_left_before_it_is_told() {
    simulate(async {
        let w = wired(6);
        let mut identity = identity();
        identity.limits.peers_max = 1;
        let mut server: TestServer = bind(&w.network, &w.endpoint, identity).await.expect("bind");
        let (first, mut receiver) =
            connect::<RegistryRequest, RegistryReply>(&w.network, &w.endpoint, hello());
        greet(&mut server, &mut receiver).await;
        // The news that it left does not come through.
        w.wires.cut(&name("tester"), &name("server"));
        drop((first, receiver));
        let other = Hello {
            node: name("other"),
            ..hello()
        };
        let (_second, mut receiver) =
            connect::<RegistryRequest, RegistryReply>(&w.network, &w.endpoint, other);
        let event = tokio::select! {
            event = server.next() => event,
            () = up(&mut receiver) => panic!("the server tells of the first client first"),
        };
        assert!(matches!(event, ServerEvent::PeerGone(_)));
        greet(&mut server, &mut receiver).await;
    });
}

/// What a client with resending saw, and what its server carried out, in order.
#[derive(Debug, Default, PartialEq)]
struct Story {
    answered: BTreeMap<u64, usize>,
    carried_out: Vec<u64>,
    downs: usize,
    took: Duration,
}

/// A client that sends `count` requests, and again after each loss, until all are answered.
async fn tell(seed: u64, faults: Faults, count: u64) -> Story {
    let w = wired(seed);
    w.wires.set_faults(faults);
    let mut server = w.serve().await;
    let carried_out = Rc::new(RefCell::new(Vec::new()));
    let log = carried_out.clone();
    tokio::task::spawn_local(async move {
        loop {
            if let ServerEvent::Requests(requests) = server.next().await {
                for request in requests {
                    let number = u64::from(request.data[0]);
                    log.borrow_mut().push(number);
                    request.reply.send(entry(0), request.data);
                }
            }
        }
    });
    let mut story = Story::default();
    let start = Instant::now();
    let (sender, mut receiver) = connect::<_, RegistryReply>(&w.network, &w.endpoint, hello());
    let mut to_send: Vec<u64> = (0..count).collect();
    while (story.answered.len() as u64) < count {
        while let Some(id) = to_send.pop() {
            let fill = u8::try_from(id).expect("few");
            match sender.send(id, 0, &get("a"), bytes(100, fill), 100) {
                Ok(()) => {}
                Err(SendError::Down(_) | SendError::NoCredit(_)) => {
                    to_send.push(id);
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        match receiver.next().await {
            ClientEvent::Up(_) | ClientEvent::Room => {}
            ClientEvent::Replies(replies) => {
                for reply in replies {
                    assert_eq!(
                        reply.data[0],
                        u8::try_from(reply.id).expect("few"),
                        "the right answer"
                    );
                    *story.answered.entry(reply.id).or_default() += 1;
                }
            }
            ClientEvent::Down(_) => {
                story.downs += 1;
                to_send = (0..count).filter(|id| !story.answered.contains_key(id)).collect();
            }
            ClientEvent::Refused(refusal) => panic!("{refusal}"),
        }
    }
    story.took = start.elapsed();
    story.carried_out = carried_out.take();
    story
}

fn faults() -> impl Strategy<Value = Faults> {
    (0u64..20, 0.0..0.3f64, 0.0..1.0f64, 0.0..0.5f64, 0.0..0.5f64).prop_map(
        |(delay, loss, late, duplicate, reorder)| Faults {
            delay: Duration::ZERO..=Duration::from_millis(delay),
            loss,
            late,
            duplicate,
            reorder,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whoever_sends_again_gets_every_answer_once_and_a_seed_repeats_it_all(seed: u64, faults in faults()) {
        let story = simulate(tell(seed, faults.clone(), 50));
        prop_assert!(story.answered.values().all(|count| *count == 1));
        prop_assert_eq!(simulate(tell(seed, faults, 50)), story);
    }
}

#[test]
fn late_messages_of_a_broken_connection_are_carried_out_after_their_resend() {
    let ms = Duration::from_millis;
    let faults = Faults {
        delay: ms(1)..=ms(5),
        loss: 0.2,
        late: 1.0,
        ..Faults::default()
    };
    // Some seed shows a request that is carried out twice.
    let twice = (0..50).any(|seed| {
        let story = simulate(tell(seed, faults.clone(), 50));
        story.carried_out.len() > 50
    });
    assert!(twice);
}
