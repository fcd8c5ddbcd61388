//! What a head remembers from one life to the next.

use crate::cluster::protocol::{Member, Note, ProcessId};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// Who takes part.
    pub(crate) members: BTreeMap<ProcessId, Member>,
    /// Who is dead, what it was, and whether it died lately, so that not everybody may have heard of it.
    pub(crate) dead: BTreeMap<ProcessId, (Option<Member>, bool)>,
}

impl Memory {
    pub(crate) fn note(&mut self, note: Note) {
        match note {
            Note::Joined(process, member) => drop(self.members.insert(process, member)),
            Note::Died(process) => {
                let member = self.members.remove(&process);
                self.dead.insert(process, (member, true));
            }
        }
    }
}
