//! Serialization of arguments, results and states, with the handles inside them.
//!
//! Values become MessagePack. A handle inside a value stays a handle: while a value is serialized
//! its handles are put aside, and the value holds their numbers.

use crate::{
    error::{Error, Result},
    object::Object,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{any::Any, cell::RefCell, sync::Arc};

type Handle = Arc<dyn Any + Send + Sync>;

thread_local! {
    /// The handles of the value that this thread serializes or deserializes.
    static HANDLES: RefCell<Option<Vec<Handle>>> = const { RefCell::new(None) };
}

/// A value as bytes, and the handles inside it.
#[derive(Clone)]
pub(crate) struct Packed {
    bytes: Vec<u8>,
    handles: Vec<Handle>,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed").field("bytes", &self.bytes.len()).field("handles", &self.handles.len()).finish()
    }
}

/// Runs `f` with `handles` put up for it; returns what is there afterwards too.
fn with_handles<R>(handles: Vec<Handle>, f: impl FnOnce() -> R) -> (R, Vec<Handle>) {
    let outer = HANDLES.with(|current| current.replace(Some(handles)));
    let result = f();
    let used = HANDLES.with(|current| current.replace(outer));
    (result, used.unwrap_or_default())
}

fn failed<T>(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Serialization {
        what: format!("{what} of type `{}`", std::any::type_name::<T>()),
        message: error.to_string(),
    }
}

pub(crate) fn pack<T: Serialize>(value: &T, what: &str) -> Result<Packed> {
    // Structs as maps: what serde's attributes make of a struct needs the names.
    let (bytes, handles) = with_handles(Vec::new(), || rmp_serde::to_vec_named(value));
    Ok(Packed { bytes: bytes.map_err(|error| failed::<T>(what, error))?, handles })
}

pub(crate) fn unpack<T: DeserializeOwned>(packed: &Packed, what: &str) -> Result<T> {
    let (value, _) = with_handles(packed.handles.clone(), || rmp_serde::from_slice(&packed.bytes));
    value.map_err(|error| failed::<T>(what, error))
}

/// The value as bytes for another process. The handles inside it cannot follow it there.
#[cfg(feature = "cluster")]
pub(crate) fn to_bytes<T: Serialize>(value: &T, what: &str) -> Result<Vec<u8>> {
    let packed = pack(value, what)?;
    match packed.handles.len() {
        0 => Ok(packed.bytes),
        count => Err(failed::<T>(
            what,
            format_args!(
                "it holds {count} handle(s), and a handle cannot leave its process yet; pass the value itself (`get` it first)"
            ),
        )),
    }
}

/// A value from the bytes of another process.
#[cfg(feature = "cluster")]
pub(crate) fn from_bytes<T: DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T> {
    let (value, _) = with_handles(Vec::new(), || rmp_serde::from_slice(bytes));
    value.map_err(|error| failed::<T>(what, error))
}

/// The value as another process would see it.
pub(crate) fn round_trip<T: Object>(value: &T, what: &str) -> Result<T> {
    unpack(&pack(value, what)?, what)
}

/// Puts a handle aside while its value is serialized.
pub(crate) fn put_handle<S: serde::Serializer>(handle: Handle, serializer: S) -> Result<S::Ok, S::Error> {
    let number = HANDLES.with(|current| {
        current.borrow_mut().as_mut().map(|handles| {
            handles.push(handle);
            handles.len() - 1
        })
    });
    let outside = "a handle can be serialized only inside arguments, results and states that outray itself passes on";
    let number = number.ok_or_else(|| serde::ser::Error::custom(outside))?;
    serializer.serialize_u64(number as u64)
}

/// Finds a handle again while its value is deserialized.
pub(crate) fn take_handle<'de, T: Any + Send + Sync, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<T>, D::Error> {
    let number: u64 = serde::Deserialize::deserialize(deserializer)?;
    let handle = HANDLES.with(|current| current.borrow().as_ref()?.get(number as usize).cloned());
    let outside = "a handle can be deserialized only by outray itself, in the process that serialized it";
    let typed = handle.and_then(|handle| handle.downcast::<T>().ok());
    typed.ok_or_else(|| serde::de::Error::custom(outside))
}
