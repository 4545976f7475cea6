//! x
use sconce_model::*;
#[test]
fn probe() {
    let s = Limits::small();
    use Planted::*;
    for (p, limits) in [
        (AckBeforeTwin, s), (ClaimWithoutSeal, s), (ClaimJudgedEarly, s), (AttachWithoutRecord, s), (DegradeAfterAck, s), (DegradeUnwritten, s), (InSyncComparesEpoch, s), (InSyncBeforeCopies, s), (ResumeCutStream, s), (BeginKeepsInSync, s),
        (ClaimByAnotherBuffer, Limits{losses:1, ..s}),
        (TakeoverNeedsStream, Limits{losses:1, ..s}),
        (ForcedUsesGivenUpTwin, Limits{forces:1, uploads: true, ..s}),
        (UploadNotGated, Limits{uploads: true, ..s}),
        (UploadBeforeTwinSync, Limits{uploads: true, power_losses:1, streams:1, ..s}),
    ] {
        for a in [Attaching::InOrder, Attaching::IsWritten] {
            let t = std::time::Instant::now();
            let f = search(&Rules { limits, attaching: a, planted: Some(p) });
            println!("{p:?} {a:?}: {} states {} steps {} left {:?} {:?}", f.states, f.steps, f.left_to_twin, f.broken, t.elapsed());
        }
    }
    for (name, limits) in [
        ("power", Limits { power_losses: 1, ..s }),
        ("loss", Limits { losses: 1, ..s }),
    ] {
        for a in [Attaching::InOrder, Attaching::IsWritten] {
            let t = std::time::Instant::now();
            let f = search(&Rules::of(limits, a));
            println!("{name} {a:?}: {} states {} steps {} left {:?} {:?}", f.states, f.steps, f.left_to_twin, f.broken, t.elapsed());
        }
    }
}
