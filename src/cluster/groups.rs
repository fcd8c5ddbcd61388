//! Placement groups on the nodes of a cluster, as the process sees them that has made them.

use super::{
    capacity::Demand,
    client::{Client, State},
    head::groups::misfit,
    owner::Group,
    protocol::{Nanos, ObjectId, Policy},
};
use crate::{
    error::{Error, Result},
    local::resources::Demand as Wish,
    resources::PlacementStrategy,
};
use std::{
    fmt,
    sync::{Arc, mpsc},
    time::Duration,
};

/// A group, and one of its bundles.
pub(crate) type InBundle = (Arc<RemoteGroup>, u32);

/// A group on the cluster; it is given up when this is dropped.
pub(crate) struct RemoteGroup {
    client: Arc<Client>,
    id: ObjectId,
    bundles: Vec<Demand>,
}

impl RemoteGroup {
    pub(crate) fn id(&self) -> u64 {
        self.id.number
    }

    pub(crate) fn object(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn bundles(&self) -> usize {
        self.bundles.len()
    }

    /// Why a task can never run in this bundle, if so.
    pub(crate) fn misfit(&self, bundle: u32, demand: &Demand) -> Option<String> {
        misfit(&self.bundles, bundle as usize, demand)
    }
}

impl PartialEq for RemoteGroup {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl fmt::Debug for RemoteGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteGroup").field("id", &self.id).field("bundles", &self.bundles()).finish()
    }
}

impl Drop for RemoteGroup {
    fn drop(&mut self) {
        self.client.with(|state, out| state.owner.remove_group(self.id, &mut out.effects));
    }
}

impl Client {
    /// Asks for room, and waits until it is set aside; the head gives up after `limit`.
    pub(crate) fn create_group(
        self: &Arc<Self>,
        bundles: &[Wish],
        strategy: PlacementStrategy,
        limit: Duration,
    ) -> Result<Arc<RemoteGroup>> {
        let demands: Vec<Demand> = bundles.iter().map(Demand::from).collect();
        let policy = match strategy {
            PlacementStrategy::Pack => Policy::Pack,
            PlacementStrategy::Spread => Policy::Spread,
            PlacementStrategy::StrictPack => Policy::StrictPack,
            PlacementStrategy::StrictSpread => Policy::StrictSpread,
        };
        let limit = Nanos::try_from(limit.as_nanos()).unwrap_or(Nanos::MAX);
        let (sender, known) = mpsc::channel();
        let id = self.with(|state, out| {
            let id = state.owner.create_group(demands.clone(), policy, Some(limit), &mut out.effects);
            state.groups.insert(id, sender);
            id
        });
        // From here on it is given up if anything fails.
        let group = Arc::new(RemoteGroup { client: self.clone(), id, bundles: demands });
        let gone = || match self.core.is_stopping() {
            true => self.core.shutdown_error("a placement group"),
            false => Error::Unsupported { reason: "the cluster is gone".into() },
        };
        known.recv().map_err(|_| gone())??;
        Ok(group)
    }

    /// It is ready, or never will be.
    pub(super) fn group_changed(&self, state: &mut State, group: ObjectId) {
        let answer = match state.owner.group(group) {
            Some(Group::Ready(_)) => Ok(()),
            Some(Group::Failed(error)) => Err((**error).clone()),
            _ => return,
        };
        if let Some(waiting) = state.groups.remove(&group) {
            let _ = waiting.send(answer); // it may have given up
        }
    }
}
