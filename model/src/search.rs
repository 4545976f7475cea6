//! The search: every state that steps lead to, breadth first.
//!
//! Keeps: each state once, how it was reached first, and, where that is asked for, every step.
//! Order: by the number of steps, so that a counterexample is a shortest one.
//! Crash: none.
//! Knows no protocol.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};

use crate::properties::{Broken, broken, can_be_served, is_left_to_twin, is_served};
use crate::rules::Rules;
use crate::state::State;
use crate::step::{Step, steps};

/// What a search found.
#[derive(Debug)]
pub struct Found {
    /// States that were seen.
    pub states: usize,
    /// Steps between them.
    pub steps: usize,
    /// States in which the owner's node is gone and the twin alone can go on.
    pub left_to_twin: usize,
    /// What is broken, with a shortest way there.
    pub broken: Option<(Broken, Vec<Step>)>,
}

/// How a state was reached first.
type Came = Option<(u32, Step)>;

/// Searches every state. If none is broken, it is looked for one in which the volume is stuck.
#[must_use]
pub fn search(rules: &Rules) -> Found {
    let first = State::first();
    let mut known: HashMap<State, u32, BuildHasherDefault<Fast>> = HashMap::default();
    known.insert(first, 0);
    let mut came: Vec<Came> = vec![None];
    let mut edges = Edges::default();
    let mut marks = Marks::default();
    let mut level = vec![(0, first)];
    let (mut count, mut left_to_twin) = (0, 0);
    while !level.is_empty() {
        let mut next_level = Vec::new();
        for (at, state) in level {
            if let Some(what) = broken(&state) {
                return Found {
                    states: came.len(),
                    steps: count,
                    left_to_twin,
                    broken: Some((what, way(&came, at))),
                };
            }
            marks.served.push(is_served(&state));
            marks.can_be_served.push(can_be_served(&state, &rules.limits));
            left_to_twin += usize::from(is_left_to_twin(&state, &rules.limits));
            for (step, mut next) in steps(&state, rules) {
                next.settle(rules);
                count += 1;
                let to = match known.entry(next) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        let to = u32::try_from(came.len()).unwrap_or(u32::MAX);
                        new.insert(to);
                        came.push(Some((at, step)));
                        next_level.push((to, next));
                        to
                    }
                };
                // An operator's force, or the disk's return, is nothing that a takeover may need.
                if !matches!(step, Step::StartsForced(_) | Step::NodeReturns(_)) {
                    edges.push(at, to);
                }
            }
        }
        level = next_level;
    }
    let stuck = stuck(&marks, &edges);
    Found {
        states: came.len(),
        steps: count,
        left_to_twin,
        broken: stuck.map(|at| (Broken::Stuck, way(&came, at))),
    }
}

/// The first state that can be served, as it seems, and from which no steps lead to one that is.
fn stuck(marks: &Marks, edges: &Edges) -> Option<u32> {
    let mut leads = marks.served.clone();
    let mut reached: Vec<u32> = (0..)
        .zip(&leads)
        .filter(|(_, served)| **served)
        .map(|(at, _)| at)
        .collect();
    let (starts, from) = edges.reversed(leads.len());
    while let Some(at) = reached.pop() {
        let at = at as usize;
        for from in &from[starts[at] as usize..starts[at + 1] as usize] {
            if !std::mem::replace(&mut leads[*from as usize], true) {
                reached.push(*from);
            }
        }
    }
    let mut all = (0..).zip(leads.iter().zip(&marks.can_be_served));
    all.find(|(_, (leads, can))| **can && !**leads).map(|(at, _)| at)
}

/// By state.
#[derive(Default)]
struct Marks {
    served: Vec<bool>,
    can_be_served: Vec<bool>,
}

/// Steps that a takeover may use.
#[derive(Default)]
struct Edges {
    from: Vec<u32>,
    to: Vec<u32>,
}

impl Edges {
    fn push(&mut self, from: u32, to: u32) {
        self.from.push(from);
        self.to.push(to);
    }

    /// For each state where those begin that lead to it, and these.
    fn reversed(&self, states: usize) -> (Vec<u32>, Vec<u32>) {
        let mut starts = vec![0; states + 1];
        for to in &self.to {
            starts[*to as usize + 1] += 1;
        }
        for at in 0..states {
            starts[at + 1] += starts[at];
        }
        let mut places = starts.clone();
        let mut from = vec![0; self.from.len()];
        for (before, to) in self.from.iter().zip(&self.to) {
            let place = &mut places[*to as usize];
            from[*place as usize] = *before;
            *place += 1;
        }
        (starts, from)
    }
}

fn way(came: &[Came], mut at: u32) -> Vec<Step> {
    let mut way = Vec::new();
    while let Some((before, step)) = came[at as usize] {
        way.push(step);
        at = before;
    }
    way.reverse();
    way
}

/// A fast hash of small values; nobody chooses them to collide.
#[derive(Default)]
struct Fast(u64);

impl Hasher for Fast {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
}
