//! The objects of a node: small ones in its own memory, large ones in the store that its workers map.

use super::{
    protocol::{INLINE, Nanos, ObjectId, ProcessId},
    running::Heard,
    store::{self, Store, StoreError},
};
use bytes::Bytes;
use std::{collections::HashMap, path::PathBuf};

pub(crate) struct Shelf {
    /// Until the node ends.
    store: Option<Store>,
    small: HashMap<ObjectId, Small>,
    /// What is in the store, or is to be written there.
    large: HashMap<ObjectId, u64>,
}

struct Small {
    value: Bytes,
    maker: Option<Maker>,
}

/// The worker that has made an object, and when its node heard of it.
#[derive(Clone, Copy)]
pub(crate) struct Maker {
    pub(crate) worker: ProcessId,
    pub(crate) heard: Heard,
    pub(crate) at: Nanos,
}

/// The memory of an object that is on its way, and how many of its first bytes have come.
pub(crate) struct Room(store::Writer, usize);

impl Room {
    /// Where what is to come begins.
    pub(crate) fn from(&self) -> u64 {
        self.1 as u64
    }

    /// So many more bytes have come.
    pub(crate) fn has_got(&mut self, more: usize) {
        self.1 += more;
    }
}

impl AsMut<[u8]> for Room {
    fn as_mut(&mut self) -> &mut [u8] {
        // It has been mapped already; a place without bytes is refused by who fills it.
        self.0.bytes().unwrap_or_default().get_mut(self.1..).unwrap_or_default()
    }
}

/// Where an object is.
pub(crate) enum Kept {
    Here(Bytes),
    /// A file that every process of this machine and user can map, as long as this is held.
    File(store::Object),
}

impl Kept {
    /// Its bytes in this process.
    pub(crate) fn bytes(self) -> Result<Bytes, StoreError> {
        match self {
            Kept::Here(value) => Ok(value),
            Kept::File(object) => object.map(),
        }
    }
}

fn key(id: ObjectId) -> store::Id {
    (id.owner.0, id.number)
}

impl Shelf {
    pub(crate) fn open(config: &store::Config) -> Result<Shelf, StoreError> {
        Ok(Shelf { store: Some(Store::open(config)?), small: HashMap::new(), large: HashMap::new() })
    }

    fn store(&self) -> Result<&Store, StoreError> {
        self.store.as_ref().ok_or(StoreError::Closed)
    }

    /// Removes the store's files; those who have them mapped keep them.
    pub(crate) fn close(&mut self) {
        self.store = None;
    }

    /// Keeps an object's bytes.
    pub(crate) fn insert(&mut self, id: ObjectId, value: &Bytes, maker: Option<Maker>) -> Result<(), StoreError> {
        self.remove(id);
        if value.len() <= INLINE {
            self.small.insert(id, Small { value: value.clone(), maker });
            return Ok(());
        }
        let mut writer = self.store()?.create(key(id), value.len() as u64)?;
        writer.write_at(0, value)?;
        writer.seal()?;
        self.large.insert(id, value.len() as u64);
        Ok(())
    }

    /// A file of this size for another process to write the object to.
    pub(crate) fn reserve(&mut self, id: ObjectId, size: u64) -> Result<PathBuf, StoreError> {
        self.remove(id);
        let path = self.store()?.reserve(key(id), size)?;
        self.large.insert(id, size);
        Ok(path)
    }

    /// Room for an object that is to be fetched from another node. Room that there was for it before is of no use any more.
    pub(crate) fn room(&mut self, id: ObjectId, size: u64) -> Result<Room, StoreError> {
        self.remove(id);
        let mut writer = self.store()?.create(key(id), size)?;
        writer.bytes()?; // from here on it can be written in place
        self.large.insert(id, size);
        Ok(Room(writer, 0))
    }

    /// It has been fetched.
    pub(crate) fn filled(&mut self, room: Room) -> Result<(), StoreError> {
        room.0.seal().map(|_| ())
    }

    /// It has been written.
    pub(crate) fn adopt(&mut self, id: ObjectId) -> Result<u64, StoreError> {
        self.store()?.adopt(key(id)).map(|object| object.size())
    }

    /// The object, if it is here; it comes back from disk if it has to.
    pub(crate) fn get(&self, id: ObjectId) -> Result<Option<Kept>, StoreError> {
        if let Some(small) = self.small.get(&id) {
            return Ok(Some(Kept::Here(small.value.clone())));
        }
        Ok(self.store()?.get(key(id))?.map(Kept::File))
    }

    /// The worker here that has made a small one.
    pub(crate) fn maker(&self, id: ObjectId) -> Option<Maker> {
        self.small.get(&id)?.maker
    }

    pub(crate) fn remove(&mut self, id: ObjectId) {
        if self.small.remove(&id).is_none()
            && self.large.remove(&id).is_some()
            && let Some(store) = &self.store
        {
            store.remove(key(id));
        }
    }

    /// Keeps only those.
    pub(crate) fn retain(&mut self, keep: impl Fn(&ObjectId) -> bool) {
        self.small.retain(|id, _| keep(id));
        let gone: Vec<_> = self.large.keys().filter(|id| !keep(id)).copied().collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    /// Nobody uses it now: memory that is kept for more objects goes back to the system.
    pub(crate) fn rest(&self) {
        if let Some(store) = self.store.as_ref().filter(|_| self.large.is_empty()) {
            store.trim();
        }
    }

    /// All objects, and their sizes.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = (ObjectId, u64)> + '_ {
        let small = self.small.iter().map(|(id, small)| (*id, small.value.len() as u64));
        small.chain(self.large.iter().map(|(id, size)| (*id, *size)))
    }

    pub(crate) fn stats(&self) -> store::Stats {
        self.store.as_ref().map(Store::stats).unwrap_or_default()
    }
}
