//! Serialization of arguments, results and states, with what cannot go into the bytes.
//!
//! Values become MessagePack. A handle inside a value stays a handle, and an [`Array`](crate::Array)
//! is not copied: while a value is serialized its handles and the bytes of its arrays are put aside,
//! and the value holds their numbers. So are values and arguments that are [plain numbers](plain).

#[cfg(feature = "cluster")]
use crate::cluster::{client::Client, wire};
use crate::{
    error::{Error, Result},
    object::Object,
};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use std::{any::Any, cell::RefCell, sync::Arc};

#[cfg(feature = "cluster")]
pub(crate) mod encoded;
pub(crate) mod plain;

use plain::Part;

/// A handle that can be inside a value.
pub(crate) trait Passed: Any + Send + Sync {
    /// What stands for it in another process, as long as the guard is there.
    #[cfg(feature = "cluster")]
    fn export(&self, client: &Arc<Client>) -> Result<(wire::Handle, Box<dyn Any + Send + Sync>)>;
    /// The handle in this process, for one of another.
    #[cfg(feature = "cluster")]
    fn import(client: &Arc<Client>, handle: &wire::Handle, given: &Given) -> Result<Self>
    where
        Self: Sized;
}

type Handle = Arc<dyn Passed>;

/// The handles of a value.
pub(crate) enum Handles {
    /// In this process.
    Here(Vec<Handle>),
    /// Of a value that came from another process; some with their objects' values.
    #[cfg(feature = "cluster")]
    There(Imports),
}

impl Handles {
    /// Those that were put aside.
    fn here(self) -> Vec<Handle> {
        match self {
            Handles::Here(handles) => handles,
            #[cfg(feature = "cluster")]
            Handles::There(_) => Vec::new(),
        }
    }
}

impl Default for Handles {
    fn default() -> Self {
        Handles::Here(Vec::new())
    }
}

/// What came along for a handle.
#[cfg(feature = "cluster")]
#[derive(Clone, Default)]
pub(crate) enum Given {
    #[default]
    Nothing,
    /// The object's value.
    Value(Bytes),
    /// A handle to what this process makes, or has made.
    Made(Arc<dyn Any + Send + Sync>),
}

/// The handles of a value that came from another process, and where they lead.
#[cfg(feature = "cluster")]
#[derive(Clone)]
pub(crate) struct Imports {
    pub(crate) client: Arc<Client>,
    pub(crate) handles: Vec<(wire::Handle, Given)>,
}

/// What stands beside the bytes of a value.
#[derive(Default)]
struct Beside {
    handles: Handles,
    /// If there are none, arrays stand in the bytes.
    buffers: Option<Vec<Bytes>>,
    /// Numbers of values that have not been serialized yet.
    #[cfg(feature = "cluster")]
    aside: plain::Aside,
}

thread_local! {
    /// Of the value that this thread serializes or deserializes.
    static BESIDE: RefCell<Option<Beside>> = const { RefCell::new(None) };
}

/// A value as bytes, with the handles and the arrays that stand beside them.
#[derive(Clone)]
pub(crate) struct Packed {
    bytes: Vec<u8>,
    handles: Vec<Handle>,
    buffers: Vec<Bytes>,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed")
            .field("bytes", &self.bytes.len())
            .field("handles", &self.handles.len())
            .field("buffers", &self.buffers.len())
            .finish()
    }
}

/// Runs `f` with this put up for it; returns what is there afterwards too.
fn with<R>(beside: Beside, f: impl FnOnce() -> R) -> (R, Beside) {
    /// Puts back what was there, also when a user's code panics.
    struct Outer(Option<Beside>);
    impl Drop for Outer {
        fn drop(&mut self) {
            BESIDE.set(self.0.take());
        }
    }
    let _outer = Outer(BESIDE.replace(Some(beside)));
    let result = f();
    (result, BESIDE.take().unwrap_or_default())
}

fn failed<T>(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Serialization {
        what: format!("{what} of type `{}`", std::any::type_name::<T>()),
        message: error.to_string(),
    }
}

fn to_message_pack<T: Serialize + 'static>(value: &T, what: &str, beside: Beside) -> Result<(Vec<u8>, Beside)> {
    // Structs as maps: what serde's attributes make of a struct needs the names.
    let (bytes, beside) = with(beside, || rmp_serde::to_vec_named(&Part(value)));
    Ok((bytes.map_err(|error| failed::<T>(what, error))?, beside))
}

fn from_message_pack<T: DeserializeOwned + 'static>(bytes: &[u8], beside: Beside, what: &str) -> Result<T> {
    let (value, _) = with(beside, || rmp_serde::from_slice(bytes));
    value.map(|Part(value)| value).map_err(|error| failed::<T>(what, error))
}

fn pack_beside<T: Serialize + 'static>(value: &T, beside: Beside, what: &str) -> Result<Packed> {
    let (bytes, beside) = to_message_pack(value, what, Beside { buffers: Some(Vec::new()), ..beside })?;
    Ok(Packed { bytes, handles: beside.handles.here(), buffers: beside.buffers.unwrap_or_default() })
}

pub(crate) fn pack<T: Serialize + 'static>(value: &T, what: &str) -> Result<Packed> {
    pack_beside(value, Beside::default(), what)
}

/// The same without a copy of its numbers, if it is made of them.
#[cfg(feature = "cluster")]
pub(crate) fn pack_shared<T: Object>(value: &Arc<T>, what: &str) -> Result<Packed> {
    let mut aside = plain::Aside::default();
    aside.share(value);
    pack_aside(&**value, aside, what)
}

/// The same, where the numbers of some parts have been taken already.
#[cfg(feature = "cluster")]
pub(crate) fn pack_aside<T: Serialize + 'static>(value: &T, aside: plain::Aside, what: &str) -> Result<Packed> {
    pack_beside(value, Beside { aside, ..Beside::default() }, what)
}

pub(crate) fn unpack<T: DeserializeOwned + 'static>(packed: &Packed, what: &str) -> Result<T> {
    let beside = Beside {
        handles: Handles::Here(packed.handles.clone()),
        buffers: Some(packed.buffers.clone()),
        #[cfg(feature = "cluster")]
        aside: Default::default(),
    };
    from_message_pack(&packed.bytes, beside, what)
}

/// The value as bytes for another process. The handles inside it cannot follow it there.
#[cfg(feature = "cluster")]
pub(crate) fn to_bytes<T: Serialize + 'static>(value: &T, what: &str) -> Result<Vec<u8>> {
    let (bytes, beside) = to_message_pack(value, what, Beside::default())?;
    match beside.handles.here().len() {
        0 => Ok(bytes),
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
pub(crate) fn from_bytes<T: DeserializeOwned + 'static>(bytes: &[u8], what: &str) -> Result<T> {
    from_message_pack(bytes, Beside::default(), what)
}

/// The value as another process would see it.
pub(crate) fn round_trip<T: Object>(value: &T, what: &str) -> Result<T> {
    match plain::copied(value) {
        Some(value) => Ok(value),
        None => unpack(&pack(value, what)?, what),
    }
}

/// A value that came from another process, whose handles lead to that one's objects. `is_row`: its arrays stand
/// beside it (see [`encoded`]).
#[cfg(feature = "cluster")]
pub(crate) fn unpack_there<T: DeserializeOwned + 'static>(
    bytes: &Bytes,
    is_row: bool,
    imports: Imports,
    what: &str,
) -> Result<T> {
    let handles = Handles::There(imports);
    if !is_row {
        return from_message_pack(bytes, Beside { handles, ..Beside::default() }, what);
    }
    let (bytes, buffers) =
        encoded::split(bytes).ok_or_else(|| failed::<T>(what, "these bytes are not an encoded value"))?;
    from_message_pack(&bytes, Beside { handles, buffers: Some(buffers), ..Beside::default() }, what)
}

/// An error about arguments, as it is about those that the function takes: how they are passed is our own business.
#[cfg(feature = "cluster")]
pub(crate) fn of_arguments<Args, R>(result: Result<R>) -> Result<R> {
    result.map_err(|error| match error {
        Error::Serialization { message, .. } => failed::<Args>("the arguments", message),
        other => other,
    })
}

#[cfg(feature = "cluster")]
impl Packed {
    /// Without the handles that were in the value, and these.
    pub(crate) fn take_handles(&mut self) -> Vec<Arc<dyn Passed>> {
        std::mem::take(&mut self.handles)
    }

    /// Whether arrays stand beside its bytes.
    pub(crate) fn has_buffers(&self) -> bool {
        !self.buffers.is_empty()
    }

    /// Its bytes, if there is nothing beside them and they are not longer than that.
    #[cfg(feature = "cluster")]
    pub(crate) fn into_small(self, longest: usize) -> std::result::Result<Vec<u8>, Packed> {
        let is_small = self.handles.is_empty() && self.buffers.is_empty() && self.bytes.len() <= longest;
        if is_small { Ok(self.bytes) } else { Err(self) }
    }

    /// The opposite.
    #[cfg(feature = "cluster")]
    pub(crate) fn from_small(bytes: Vec<u8>) -> Packed {
        Packed { bytes, handles: Vec::new(), buffers: Vec::new() }
    }

    /// All of it, in MessagePack alone or with its arrays behind it.
    pub(crate) fn write(&self, to: &mut impl std::io::Write) -> std::io::Result<()> {
        match self.has_buffers() {
            true => self.encode(to),
            false => to.write_all(&self.bytes),
        }
    }

    /// How much that is.
    pub(crate) fn written_len(&self) -> usize {
        match self.has_buffers() {
            true => self.encoded_len(),
            false => self.bytes.len(),
        }
    }
}

/// Puts a handle aside while its value is serialized.
pub(crate) fn put_handle<S: serde::Serializer>(handle: Handle, serializer: S) -> Result<S::Ok, S::Error> {
    let number = BESIDE.with_borrow_mut(|beside| match beside.as_mut().map(|beside| &mut beside.handles) {
        Some(Handles::Here(handles)) => Some(push(handles, handle)),
        _ => None,
    });
    let outside = "a handle can be serialized only inside arguments, results and states that outray itself passes on";
    let number = number.ok_or_else(|| serde::ser::Error::custom(outside))?;
    serializer.serialize_u64(number)
}

/// Finds a handle again while its value is deserialized.
pub(crate) fn take_handle<'de, T: Passed + Clone, D: serde::Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let number: u64 = serde::Deserialize::deserialize(deserializer)?;
    let outside = || serde::de::Error::custom("a handle can be deserialized only by outray itself, with its value");
    enum Found {
        Here(Handle),
        #[cfg(feature = "cluster")]
        There(Arc<Client>, wire::Handle, Given),
    }
    // The borrow ends before the handle is made: that may serialize and deserialize, too.
    let found = BESIDE.with_borrow(|beside| match &beside.as_ref()?.handles {
        Handles::Here(handles) => handles.get(number as usize).cloned().map(Found::Here),
        #[cfg(feature = "cluster")]
        Handles::There(imports) => imports
            .handles
            .get(number as usize)
            .map(|(handle, given)| Found::There(imports.client.clone(), handle.clone(), given.clone())),
    });
    match found {
        Some(Found::Here(handle)) => {
            let handle: &dyn Any = &*handle;
            handle.downcast_ref::<T>().cloned().ok_or_else(outside)
        }
        #[cfg(feature = "cluster")]
        Some(Found::There(client, handle, given)) => {
            T::import(&client, &handle, &given).map_err(serde::de::Error::custom)
        }
        None => Err(outside()),
    }
}

/// Puts bytes aside while their value is serialized, unless they have to stand in it.
pub(crate) fn put_buffer(bytes: &Bytes) -> Option<u64> {
    BESIDE.with_borrow_mut(|beside| Some(push(beside.as_mut()?.buffers.as_mut()?, bytes.clone())))
}

/// Whether the value that is deserialized has its arrays beside it.
pub(crate) fn has_buffers() -> bool {
    BESIDE.with_borrow(|beside| beside.as_ref().is_some_and(|beside| beside.buffers.is_some()))
}

/// Finds bytes again while their value is deserialized.
pub(crate) fn take_buffer(number: u64) -> Option<Bytes> {
    BESIDE.with_borrow(|beside| beside.as_ref()?.buffers.as_ref()?.get(number as usize).cloned())
}

fn push<T>(list: &mut Vec<T>, item: T) -> u64 {
    list.push(item);
    list.len() as u64 - 1
}
