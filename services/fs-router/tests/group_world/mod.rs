//! Some volumes, whoever takes a snapshot of them together, and a writer: one thing happens at a time, any that can.
//!
//! Keeps: what is under way to a volume, and what the writer knows.
//! Order: chosen; an answer arrives at once, since a late one is the same as a late request behind it.
//! Crash: requests and answers are lost; a hold ends too early.
//! Knows no sockets and no time.

mod owner;

use sconce_fs_router::peers::{GroupCut, Say};

use owner::Owner;

/// What is wrong with the owners or the coordinator, on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    Nothing,
    /// Owners take plain snapshots.
    NothingHeld,
    /// Owners confirm also when the hold is over.
    ConfirmedTooLate,
    /// The coordinator lets a volume confirm when it has proposed, not when all have.
    ConfirmedTooEarly,
}

/// How often what may go wrong.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// Holds that end by themselves.
    expiries: usize,
    /// Requests that do not arrive.
    lost_requests: usize,
    /// Answers that do not.
    lost_answers: usize,
}

impl Faults {
    pub(crate) fn expiries(expiries: usize) -> Self {
        Self {
            expiries,
            lost_requests: 0,
            lost_answers: 0,
        }
    }

    pub(crate) fn some(chance: &mut fastrand::Rng) -> Self {
        Self {
            expiries: chance.usize(0..3),
            lost_requests: chance.usize(0..2),
            lost_answers: chance.usize(0..2),
        }
    }
}

/// Which of the things that can happen do.
pub(crate) enum Choices {
    /// All of them in turn: what was chosen, of how many.
    Systematic {
        taken: Vec<(usize, usize)>,
        at: usize,
    },
    Drawn(fastrand::Rng),
}

impl Choices {
    pub(crate) fn first() -> Self {
        Self::Systematic {
            taken: Vec::new(),
            at: 0,
        }
    }

    pub(crate) fn from_seed(seed: u64) -> Self {
        Self::Drawn(fastrand::Rng::with_seed(!seed))
    }

    /// The choices of the next run: the last one that was not the last possibility is another.
    pub(crate) fn following(self) -> Option<Self> {
        let Self::Systematic { mut taken, .. } = self else {
            return None;
        };
        while let Some((chosen, of)) = taken.pop() {
            if chosen + 1 < of {
                taken.push((chosen + 1, of));
                return Some(Self::Systematic { taken, at: 0 });
            }
        }
        None
    }

    fn choose(&mut self, of: usize) -> usize {
        match self {
            Self::Systematic { taken, at } => {
                if *at == taken.len() {
                    taken.push((0, of));
                }
                *at += 1;
                taken[*at - 1].0
            }
            Self::Drawn(chance) => chance.usize(0..of),
        }
    }
}

/// What can happen.
#[derive(Debug, Clone, Copy)]
enum Happening {
    /// The writer's next write arrives.
    Write,
    /// A request arrives.
    Said(usize),
    /// A request does not arrive.
    RequestLost(usize),
    /// It arrives, its answer does not.
    AnswerLost(usize),
    /// A volume lets go by itself.
    Expires(usize),
}

pub(crate) struct World {
    owners: Vec<Owner>,
    cut: GroupCut,
    /// Requests under way.
    said: Vec<(usize, Say)>,
    /// To which volume each write goes; write n has the stamp n + 1.
    pattern: Vec<usize>,
    /// Writes that were sent.
    sent: usize,
    faults: Faults,
    broken: Broken,
}

impl World {
    pub(crate) fn new(volumes: usize, pattern: Vec<usize>, faults: Faults, broken: Broken) -> Self {
        let (cut, said) = GroupCut::new(volumes);
        Self {
            owners: (0..volumes).map(|at| Owner::new(at, broken)).collect(),
            cut,
            said,
            pattern,
            sent: 0,
            faults,
            broken,
        }
    }

    /// One thing happens; `false`: nothing can any more.
    pub(crate) fn step(&mut self, choices: &mut Choices) -> bool {
        let possible = self.possible();
        if possible.is_empty() {
            return false;
        }
        match possible[choices.choose(possible.len())] {
            Happening::Write => {
                self.sent += 1;
                self.owners[self.pattern[self.sent - 1]].write(self.sent as u64);
            }
            Happening::Said(at) => {
                let (volume, say) = self.said.remove(at);
                let answer = self.owners[volume].told(say);
                self.answered(volume, say, answer);
            }
            Happening::RequestLost(at) => {
                self.faults.lost_requests -= 1;
                let (volume, say) = self.said.remove(at);
                self.answered(volume, say, Err("no answer".to_owned()));
            }
            Happening::AnswerLost(at) => {
                self.faults.lost_answers -= 1;
                let (volume, say) = self.said.remove(at);
                let _ = self.owners[volume].told(say);
                self.answered(volume, say, Err("no answer".to_owned()));
            }
            Happening::Expires(volume) => {
                self.faults.expiries -= 1;
                self.owners[volume].expire();
            }
        }
        true
    }

    fn possible(&self) -> Vec<Happening> {
        let mut possible = Vec::new();
        let acknowledged =
            self.sent == 0 || self.owners[self.pattern[self.sent - 1]].has_acknowledged(self.sent as u64);
        if acknowledged && self.sent < self.pattern.len() {
            possible.push(Happening::Write);
        }
        for at in 0..self.said.len() {
            possible.push(Happening::Said(at));
            if self.faults.lost_requests > 0 {
                possible.push(Happening::RequestLost(at));
            }
            if self.faults.lost_answers > 0 {
                possible.push(Happening::AnswerLost(at));
            }
        }
        if self.faults.expiries > 0 {
            let holding = (0..self.owners.len()).filter(|at| self.owners[*at].holds());
            possible.extend(holding.map(Happening::Expires));
        }
        possible
    }

    fn answered(&mut self, volume: usize, say: Say, answer: Result<(), String>) {
        let early = self.broken == Broken::ConfirmedTooEarly && say == Say::Propose;
        self.said.extend(self.cut.answered(volume, answer));
        if early {
            let _ = self.owners[volume].told(Say::Confirm);
        }
    }

    /// Whether there is a cut; `Err`: it is wrong, or there should be none.
    pub(crate) fn verdict(mut self) -> Result<bool, String> {
        let outcome = self.cut.outcome().unwrap().map_err(Clone::clone);
        match outcome {
            Err(failure) => {
                for (at, owner) in self.owners.iter_mut().enumerate() {
                    let left = failure.left.iter().any(|(left, _)| *left == at);
                    if owner.leftover() && !left {
                        return Err(format!(
                            "volume {at} has a snapshot, and nobody said so: {failure:?}"
                        ));
                    }
                }
                Ok(false)
            }
            Ok(()) => {
                let stamps: Vec<u64> = self.owners.iter_mut().map(Owner::stamp_of_snapshot).collect();
                self.check(&stamps)?;
                Ok(true)
            }
        }
    }

    /// All writes up to the last that any snapshot has are in those of their volumes.
    fn check(&self, stamps: &[u64]) -> Result<(), String> {
        let newest = stamps.iter().copied().max().unwrap_or(0);
        for (write, volume) in (1..=newest).zip(&self.pattern) {
            if stamps[*volume] < write {
                return Err(format!(
                    "write {newest} is in the cut, and write {write} to volume {volume}, which was acknowledged before it \
                     was sent, is not: {stamps:?}, writes to {:?}",
                    self.pattern
                ));
            }
        }
        Ok(())
    }
}
