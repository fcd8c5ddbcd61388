//! Rules that are broken on purpose, so that tests see that this is noticed.

use super::{shell, world::World};
use crate::cluster::{
    capacity::Capacity,
    protocol::{Message, ObjectId, Outcome, ProcessId, lost},
};

/// What to do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Owners say of each task twice that it has ended.
    EndTwice,
    /// Some tasks fail, though nothing has happened to them.
    Fail,
    /// Results are those of other tasks.
    Swap,
    /// A process takes its claims back, and keeps its handles. With borrowing.
    Lose,
    /// A process keeps its claims, and has no handles. With borrowing.
    Leak,
    /// Nodes let run more than there are CPUs for.
    OverbookCpus,
    /// The same with each of their GPUs.
    OverbookGpus,
    /// Something panics.
    Panic,
    /// Something happens over and over, and time does not go on.
    StandStill,
}

impl World<'_> {
    /// What is sent instead.
    pub(super) fn tampered(&mut self, sends: Vec<(ProcessId, Message)>) -> Vec<(ProcessId, Message)> {
        let Some(sabotage) = self.options.sabotage else { return sends };
        let mut tampered = Vec::new();
        for (to, message) in sends {
            let message = match (sabotage, message) {
                (Sabotage::Fail, Message::Finished { task, attempt, .. }) if self.random.one_in(20) => {
                    let outcome = Outcome::Failed(lost(task, "of sabotage"));
                    Message::Finished { task, attempt, outcome }
                }
                (Sabotage::Swap, Message::Finished { task, attempt, outcome: Outcome::Inline(_) }) => {
                    let other = ObjectId { number: task.number + 1, ..task };
                    Message::Finished { task, attempt, outcome: Outcome::Inline(shell::value_of(other, &[], 8)) }
                }
                (Sabotage::Lose, Message::Claim { object }) => {
                    tampered.push((to, Message::Claim { object }));
                    Message::Unclaim { object }
                }
                (Sabotage::Leak, Message::Unclaim { .. }) => continue,
                (_, message) => message,
            };
            tampered.push((to, message));
        }
        tampered
    }

    /// What a node thinks it has.
    pub(super) fn believed(&self, mut capacity: Capacity) -> Capacity {
        match self.options.sabotage {
            Some(Sabotage::OverbookCpus) => capacity.cpu *= 2,
            Some(Sabotage::OverbookGpus) => {
                for room in &mut capacity.gpus.rooms {
                    (room.thousandths, room.bytes) = (2 * room.thousandths, 2 * room.bytes);
                }
            }
            _ => {}
        }
        capacity
    }
}
