//! Serialization of arguments, results and states, with the handles inside them.
//!
//! Values become MessagePack. A handle inside a value stays a handle: while a value is serialized
//! its handles are put aside, and the value holds their numbers.

#[cfg(feature = "cluster")]
use crate::cluster::{client::Client, wire};
use crate::{
    error::{Error, Result},
    object::Object,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{any::Any, cell::RefCell, sync::Arc};

/// A handle that can be inside a value.
pub(crate) trait Passed: Any + Send + Sync {
    /// What stands for it in another process, as long as the guard is there.
    #[cfg(feature = "cluster")]
    fn export(&self, client: &Arc<Client>) -> Result<(wire::Handle, Box<dyn Any + Send + Sync>)>;
    /// The handle in this process, for one of another.
    #[cfg(feature = "cluster")]
    fn import(client: &Arc<Client>, handle: &wire::Handle, value: Option<&bytes::Bytes>) -> Result<Self>
    where
        Self: Sized;
}

type Handle = Arc<dyn Passed>;

/// The handles of a value.
enum Handles {
    /// In this process.
    Here(Vec<Handle>),
    /// Of a value that came from another process; some with their objects' values.
    #[cfg(feature = "cluster")]
    There(Imports),
}

/// The handles of a value that came from another process, and where they lead.
#[cfg(feature = "cluster")]
#[derive(Clone)]
pub(crate) struct Imports {
    pub(crate) client: Arc<Client>,
    pub(crate) handles: Vec<(wire::Handle, Option<bytes::Bytes>)>,
}

thread_local! {
    /// The handles of the value that this thread serializes or deserializes.
    static HANDLES: RefCell<Option<Handles>> = const { RefCell::new(None) };
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
fn with_handles<R>(handles: Handles, f: impl FnOnce() -> R) -> (R, Vec<Handle>) {
    /// Puts the outer ones back, also when `f` panics: it runs code of the user's.
    struct Outer(Option<Handles>);
    impl Drop for Outer {
        fn drop(&mut self) {
            let outer = self.0.take();
            HANDLES.with(|current| current.replace(outer));
        }
    }
    let _outer = Outer(HANDLES.with(|current| current.replace(Some(handles))));
    let result = f();
    match HANDLES.with(|current| current.take()) {
        Some(Handles::Here(used)) => (result, used),
        _ => (result, Vec::new()),
    }
}

fn failed<T>(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Serialization {
        what: format!("{what} of type `{}`", std::any::type_name::<T>()),
        message: error.to_string(),
    }
}

pub(crate) fn pack<T: Serialize>(value: &T, what: &str) -> Result<Packed> {
    // Structs as maps: what serde's attributes make of a struct needs the names.
    let (bytes, handles) = with_handles(Handles::Here(Vec::new()), || rmp_serde::to_vec_named(value));
    Ok(Packed { bytes: bytes.map_err(|error| failed::<T>(what, error))?, handles })
}

pub(crate) fn unpack<T: DeserializeOwned>(packed: &Packed, what: &str) -> Result<T> {
    let (value, _) = with_handles(Handles::Here(packed.handles.clone()), || rmp_serde::from_slice(&packed.bytes));
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
    let (value, _) = with_handles(Handles::Here(Vec::new()), || rmp_serde::from_slice(bytes));
    value.map_err(|error| failed::<T>(what, error))
}

/// A value that came from another process, whose handles lead to that one's objects.
#[cfg(feature = "cluster")]
pub(crate) fn unpack_there<T: DeserializeOwned>(bytes: &[u8], imports: Imports, what: &str) -> Result<T> {
    let (value, _) = with_handles(Handles::There(imports), || rmp_serde::from_slice(bytes));
    value.map_err(|error| failed::<T>(what, error))
}

#[cfg(feature = "cluster")]
impl Packed {
    /// The bytes, and the handles that were in the value.
    pub(crate) fn into_parts(self) -> (Vec<u8>, Vec<Arc<dyn Passed>>) {
        (self.bytes, self.handles)
    }
}

/// The value as another process would see it.
pub(crate) fn round_trip<T: Object>(value: &T, what: &str) -> Result<T> {
    unpack(&pack(value, what)?, what)
}

/// Puts a handle aside while its value is serialized.
pub(crate) fn put_handle<S: serde::Serializer>(handle: Arc<dyn Passed>, serializer: S) -> Result<S::Ok, S::Error> {
    let number = HANDLES.with(|current| match current.borrow_mut().as_mut() {
        Some(Handles::Here(handles)) => {
            handles.push(handle);
            Some(handles.len() - 1)
        }
        _ => None,
    });
    let outside = "a handle can be serialized only inside arguments, results and states that outray itself passes on";
    let number = number.ok_or_else(|| serde::ser::Error::custom(outside))?;
    serializer.serialize_u64(number as u64)
}

/// Finds a handle again while its value is deserialized.
pub(crate) fn take_handle<'de, T: Passed + Clone, D: serde::Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let number: u64 = serde::Deserialize::deserialize(deserializer)?;
    let outside = || serde::de::Error::custom("a handle can be deserialized only by outray itself, with its value");
    enum Found {
        Here(Handle),
        #[cfg(feature = "cluster")]
        There(Arc<Client>, wire::Handle, Option<bytes::Bytes>),
    }
    // The borrow ends before the handle is made: that may serialize and deserialize, too.
    let found = HANDLES.with(|current| match current.borrow().as_ref()? {
        Handles::Here(handles) => handles.get(number as usize).cloned().map(Found::Here),
        #[cfg(feature = "cluster")]
        Handles::There(imports) => imports
            .handles
            .get(number as usize)
            .map(|(handle, value)| Found::There(imports.client.clone(), handle.clone(), value.clone())),
    });
    match found {
        Some(Found::Here(handle)) => {
            let handle: &dyn Any = &*handle;
            handle.downcast_ref::<T>().cloned().ok_or_else(outside)
        }
        #[cfg(feature = "cluster")]
        Some(Found::There(client, handle, value)) => {
            T::import(&client, &handle, value.as_ref()).map_err(serde::de::Error::custom)
        }
        None => Err(outside()),
    }
}
