use sconce_schemas::access::AccessHolder;

use super::*;

const PATH: &str = "/vm/disk.raw";

fn ask(node: &str, incarnation: u64, held: Option<u64>) -> AccessAsk {
    AccessAsk {
        node: node.parse().unwrap(),
        incarnation,
        take: true,
        held,
    }
}

fn slot(number: u16) -> SessionSlot {
    SessionSlot(number)
}

fn held(node: &str, generation: u64) -> Access {
    Access {
        generation,
        holder: Some(AccessHolder {
            node: node.parse().unwrap(),
            since_us: 1_700_000_000_000_000,
            released: false,
        }),
        ..Access::default()
    }
}

fn granted(permits: &mut Permits, ask: &AccessAsk, session: u16) -> Permit {
    match permits.judge(ask, slot(session), PATH) {
        (Judged::Granted(permit), _) => permit,
        other => panic!("{other:?}"),
    }
}

fn refused(permits: &mut Permits, ask: &AccessAsk) -> String {
    match permits.judge(ask, slot(9), PATH) {
        (Judged::Refused(refusal), fenced) => {
            assert_eq!(refusal.code, RefusalCode::NoAccess);
            assert!(fenced.is_empty());
            refusal.text
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_holders_node_needs_no_registry_and_another_does() {
    let mut permits = Permits::new(held("a", 3));
    let a = granted(&mut permits, &ask("a", 5, None), 1);
    assert_eq!(a.generation, 3);
    assert!(permits.takes(a.pass));
    assert!(!permits.takes(Pass::NONE) && !permits.takes(Pass::UNASKED));
    let same = granted(&mut permits, &ask("a", 5, Some(3)), 2);
    assert_eq!(same.pass, a.pass, "one for all sessions of a process");
    let (judged, _) = permits.judge(&ask("b", 1, None), slot(3), PATH);
    assert_eq!(judged, Judged::Claim);
}

#[test]
fn another_holder_ends_what_the_one_before_was_granted() {
    let mut permits = Permits::new(held("a", 3));
    let a = granted(&mut permits, &ask("a", 5, None), 1);
    permits.decides(Deciding::Change);
    assert!(permits.takes(a.pass), "until it is decided");
    let (b, fenced) = permits.claimed(held("b", 4), &ask("b", 1, None), slot(3));
    assert_eq!(fenced, Fenced::Of(vec![slot(1)]));
    assert!(permits.takes(b.pass) && !permits.takes(a.pass));
    let text = refused(&mut permits, &ask("a", 5, Some(3)));
    assert!(
        text.contains("taken from a") && text.contains("b has it since 2023-11-14T22:13:20Z"),
        "{text}"
    );
    // A client that opens the volume anew may ask, as anybody may.
    let (judged, _) = permits.judge(&ask("a", 5, None), slot(9), PATH);
    assert_eq!(judged, Judged::Claim);
}

#[test]
fn a_later_process_of_the_node_ends_the_earlier_ones() {
    let mut permits = Permits::new(held("a", 3));
    let first = granted(&mut permits, &ask("a", 5, None), 1);
    let (judged, fenced) = permits.judge(&ask("a", 6, None), slot(2), PATH);
    let Judged::Granted(second) = judged else {
        panic!("{judged:?}");
    };
    assert_eq!(fenced, [slot(1)]);
    assert!(permits.takes(second.pass) && !permits.takes(first.pass));
    // What was queued of it, also once its successor has given the volume up.
    refused(&mut permits, &ask("a", 5, Some(3)));
    permits.closed(slot(2));
    assert!(permits.is_to_be_released());
    let mut released = held("a", 3);
    released.holder.as_mut().unwrap().released = true;
    permits.decides(Deciding::Release);
    permits.decided(released);
    refused(&mut permits, &ask("a", 5, None));
}

#[test]
fn access_is_given_up_with_the_last_session_that_is_closed() {
    let mut permits = Permits::new(held("a", 1));
    let pass = granted(&mut permits, &ask("a", 5, None), 1).pass;
    granted(&mut permits, &ask("a", 5, None), 2);
    permits.gone(pass, slot(2));
    permits.closed(slot(1));
    assert!(!permits.is_to_be_released(), "the other one may come back");
    permits.closed(slot(2));
    assert!(permits.is_to_be_released());
    // While that is written down nothing is granted: it could be given to another at the same moment.
    permits.decides(Deciding::Release);
    let (judged, _) = permits.judge(&ask("a", 5, Some(1)), slot(1), PATH);
    assert_eq!(judged, Judged::Undecided);
    permits.failed();
    assert!(permits.is_to_be_released(), "it is tried again");
    assert_eq!(permits.claim().given_up, Some("a".parse().unwrap()));
    // The record may say so or not: it has to name the holder before that writes again.
    let (judged, _) = permits.judge(&ask("a", 5, Some(1)), slot(1), PATH);
    assert_eq!(judged, Judged::Claim);
    assert!(permits.claim().doubt);
    permits.decides(Deciding::Change);
    let (judged, _) = permits.judge(&ask("a", 5, Some(1)), slot(2), PATH);
    assert_eq!(judged, Judged::Undecided);
    let (permit, _) = permits.claimed(held("a", 1), &ask("a", 5, Some(1)), slot(1));
    assert!(permits.takes(permit.pass) && !permits.is_to_be_released());
    granted(&mut permits, &ask("a", 5, Some(1)), 2);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_never_came_back_keeps_no_access_for_those_that_did() {
    let mut permits = Permits::new(held("a", 1));
    let pass = granted(&mut permits, &ask("a", 5, None), 1).pass;
    permits.gone(pass, slot(1));
    tokio::time::advance(GONE_FOR * 2).await;
    permits.forget_gone();
    permits.closed(slot(9));
    permits.forget_gone();
    assert!(
        !permits.is_to_be_released(),
        "its front end may be cut off, whatever another's reader does"
    );
    assert_eq!(permits.forgets_in(), None);

    // Others come and go properly; what was gone for long by then counts for nothing.
    granted(&mut permits, &ask("a", 5, None), 2);
    permits.closed(slot(2));
    permits.forget_gone();
    assert!(permits.is_to_be_released());

    // One that is gone since a moment ago may come back, and counts until it is gone for long.
    granted(&mut permits, &ask("a", 5, None), 3);
    assert!(!permits.is_to_be_released());
    let pass = granted(&mut permits, &ask("a", 5, None), 4).pass;
    permits.gone(pass, slot(3));
    permits.closed(slot(4));
    permits.forget_gone();
    assert!(!permits.is_to_be_released());
    assert_eq!(permits.forgets_in(), Some(GONE_FOR));
    granted(&mut permits, &ask("a", 5, Some(1)), 3);
    tokio::time::advance(GONE_FOR).await;
    permits.forget_gone();
    assert!(!permits.is_to_be_released(), "it did");
    let pass = granted(&mut permits, &ask("a", 5, None), 5).pass;
    permits.gone(pass, slot(3));
    permits.closed(slot(5));
    tokio::time::advance(GONE_FOR).await;
    permits.forget_gone();
    assert!(permits.is_to_be_released());
}

#[test]
fn a_claim_of_which_nobody_knows_what_came_leaves_no_holder_behind() {
    let mut permits = Permits::new(Access::default());
    permits.decides(Deciding::Change);
    permits.failed();
    assert!(
        permits.is_to_be_released(),
        "the record may name one that has gone"
    );
    permits.decides(Deciding::Release);
    permits.decided(Access::default());
    assert!(!permits.is_to_be_released());
}

#[test]
fn what_builds_before_access_left_is_over_when_somebody_takes_it() {
    let mut permits = Permits::new(Access::default());
    assert!(permits.takes(Pass::UNASKED));
    permits.decides(Deciding::Change);
    let (_, fenced) = permits.claimed(held("a", 1), &ask("a", 5, None), slot(2));
    assert_eq!(fenced, Fenced::AllBut(slot(2)));
    assert!(!permits.takes(Pass::UNASKED));
}

#[test]
fn a_session_is_closed_whatever_its_handle_was_good_for() {
    let mut permits = Permits::new(held("a", 3));
    granted(&mut permits, &ask("a", 5, None), 1);
    permits.closed(slot(7));
    assert!(!permits.is_to_be_released(), "another one");
    permits.closed(slot(1));
    assert!(permits.is_to_be_released());
}

#[test]
fn a_restored_registry_shuts_nobody_out_once_access_was_broken() {
    let mut permits = Permits::new(held("a", 3));
    granted(&mut permits, &ask("a", 900, None), 1);
    // Its revisions begin anew.
    refused(&mut permits, &ask("a", 5, None));
    permits.forget_newest();
    granted(&mut permits, &ask("a", 5, None), 2);
}

#[test]
fn commands_that_are_gone_are_forgotten() {
    let shared = Access {
        mode: AccessMode::Shared,
        ..Access::default()
    };
    let mut permits = Permits::new(shared);
    for number in 0..9 {
        let pass = granted(&mut permits, &ask(&format!("sconce-{number}"), 0, None), number).pass;
        permits.gone(pass, slot(number));
        assert!(permits.grants.is_empty());
    }
}

#[test]
fn a_handle_keeps_its_pass_where_the_session_is_opened_again_without_one() {
    let pass = Pass(7);
    assert_eq!(Pass::NONE.or(pass), pass);
    assert_eq!(Pass(8).or(pass), Pass(8));
    assert_eq!(pass.or(Pass::NONE), pass);
    assert_eq!(Pass::NONE.or(Pass::UNASKED), Pass::NONE);
}

#[test]
fn any_front_end_writes_where_access_is_shared_until_it_is_not() {
    let shared = Access {
        mode: AccessMode::Shared,
        generation: 4,
        ..Access::default()
    };
    let mut permits = Permits::new(shared);
    let a = granted(&mut permits, &ask("a", 5, Some(2)), 1);
    let b = granted(&mut permits, &ask("b", 5, None), 2);
    assert_eq!((a.generation, b.generation), (0, 0));
    assert!(permits.takes(a.pass) && permits.takes(b.pass) && permits.takes(Pass::UNASKED));
    let exclusive = Access {
        mode: AccessMode::Exclusive,
        generation: 4,
        ..Access::default()
    };
    assert_eq!(permits.decided(exclusive), [slot(1), slot(2)]);
    assert!(!permits.takes(a.pass) && !permits.takes(b.pass));
    let (judged, _) = permits.judge(&ask("a", 5, None), slot(1), PATH);
    assert_eq!(judged, Judged::Claim, "the first that writes has it");
}

#[test]
fn who_is_refused_is_refused_from_memory_for_a_while() {
    let mut permits = Permits::new(held("a", 1));
    let b = ask("b", 1, None);
    let refusal = held_by_another(permits.access(), Some(&b.node), PATH);
    assert!(
        refusal
            .text
            .contains("/vm/disk.raw is written by a since 2023-11-14")
    );
    permits.decides(Deciding::Change);
    assert!(permits.refuses(&b.node, &refusal), "it is news");
    assert_eq!(refused(&mut permits, &b), refusal.text);
    permits.decides(Deciding::Change);
    assert!(!permits.refuses(&b.node, &refusal));
    // Whatever the record says next, it is judged anew.
    permits.decided(held("a", 1));
    let (judged, _) = permits.judge(&b, slot(3), PATH);
    assert_eq!(judged, Judged::Claim);
}

#[test]
fn a_command_is_there_as_long_as_it_is_connected() {
    let mut permits = Permits::new(held("sconce-1-abc", 1));
    let pass = granted(&mut permits, &ask("sconce-1-abc", 0, None), 1).pass;
    assert!(permits.has_connected_command());
    permits.gone(pass, slot(1));
    assert!(!permits.has_connected_command());
}
