//! Arrays and byte buffers that are shared instead of copied.

use crate::serial;
use bytes::Bytes;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, DeserializeOwned, value::MapAccessDeserializer},
};
use std::{
    fmt,
    marker::PhantomData,
    ops::{Deref, RangeBounds},
};

#[cfg(feature = "arrow")]
mod batch;
#[cfg(feature = "ndarray")]
mod nd;

#[cfg(feature = "arrow")]
pub use batch::Batch;
#[cfg(feature = "ndarray")]
pub use nd::NdArray;

mod sealed {
    /// Any bytes are one of these, and each of these is its bytes.
    pub trait Number: bytemuck::Pod {}
}

/// What an [`Array`] can hold: the integers of a fixed size, `f32` and `f64`.
pub trait Element: sealed::Number + Serialize + DeserializeOwned + fmt::Debug + PartialEq + Send + Sync {}

macro_rules! elements {
    ($($number:ty)*) => { $(
        impl sealed::Number for $number {}
        impl Element for $number {}
    )* };
}

elements!(u8 u16 u32 u64 u128 i8 i16 i32 i64 i128 f32 f64);

/// An immutable array of numbers that is shared by all of its clones, and on a cluster by all
/// processes of a node.
///
/// A `Vec` inside an argument or a result is written number by number when it has to travel, and
/// read back the same way by each process; one that is itself the argument or the result is written as
/// it lies in memory, and each process that reads it has a copy. An `Array` is written once, as it lies in
/// memory, and read where it was put: in shared memory, by everybody, without a copy. Locally all cost nothing.
///
/// It is a slice in all else. `Array<u8>` is a byte buffer, and `bytes::Bytes` in another coat.
/// With a serializer of your own it is a sequence of numbers in a format for people to read, and
/// bytes (little-endian) in a binary one.
///
/// A slice of an array, or an array out of a larger value, keeps the whole in memory. Each one costs
/// about a hundred bytes beside its numbers, so keep small ones in a `Vec`. In a tight loop, take the slice
/// first (`let a = &array[..]`): each use of the array itself checks that it is one.
///
/// ```
/// use outray::{Array, Runtime};
///
/// fn norm(v: Array<f64>) -> f64 {
///     v.iter().map(|x| x * x).sum::<f64>().sqrt()
/// }
///
/// let rt = Runtime::local();
/// let v = rt.put(Array::from(vec![3.0, 4.0])); // takes the `Vec` over
/// assert_eq!(rt.submit(norm, &v).get()?, 5.0);
/// assert_eq!(v.get()?.slice(1..), [4.0]); // no copy either
/// # Ok::<(), outray::Error>(())
/// ```
pub struct Array<T> {
    /// Whole numbers, aligned for them unless there are none.
    bytes: Bytes,
    elements: PhantomData<T>,
}

impl<T: Element> Array<T> {
    /// The elements in `range`, shared: no copy. They keep the whole array in memory.
    ///
    /// # Panics
    /// If the range is not inside the array.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Array<T> {
        let part = &self[(range.start_bound().cloned(), range.end_bound().cloned())];
        Array { bytes: self.bytes.slice_ref(bytemuck::cast_slice(part)), elements: PhantomData }
    }

    /// The array in these bytes: where they are if they are aligned for it, else copied.
    pub(crate) fn from_bytes(bytes: Bytes) -> Result<Array<T>, String> {
        if !bytes.len().is_multiple_of(size_of::<T>()) {
            return Err(format!("{} bytes are not a whole number of {}", bytes.len(), std::any::type_name::<T>()));
        }
        match bytes.as_ptr().addr().is_multiple_of(align_of::<T>()) {
            true => Ok(Array { bytes, elements: PhantomData }),
            false => Ok(bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()),
        }
    }
}

impl<T: Element> Deref for Array<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self.bytes.is_empty() {
            true => &[],
            false => bytemuck::cast_slice(&self.bytes),
        }
    }
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        Array { bytes: self.bytes.clone(), elements: PhantomData }
    }
}

/// No copy.
impl<T: Element> From<Vec<T>> for Array<T> {
    fn from(vec: Vec<T>) -> Self {
        struct Owner<T>(Vec<T>);
        impl<T: Element> AsRef<[u8]> for Owner<T> {
            fn as_ref(&self) -> &[u8] {
                bytemuck::cast_slice(&self.0)
            }
        }
        Array { bytes: Bytes::from_owner(Owner(vec)), elements: PhantomData }
    }
}

impl<T: Element> From<&[T]> for Array<T> {
    fn from(slice: &[T]) -> Self {
        slice.to_vec().into()
    }
}

impl<T: Element> FromIterator<T> for Array<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        Vec::from_iter(elements).into()
    }
}

/// No copy.
impl From<Bytes> for Array<u8> {
    fn from(bytes: Bytes) -> Self {
        Array { bytes, elements: PhantomData }
    }
}

/// The bytes that the numbers are made of. No copy.
impl<T: Element> From<Array<T>> for Bytes {
    fn from(array: Array<T>) -> Self {
        array.bytes
    }
}

impl<T: Element> Default for Array<T> {
    fn default() -> Self {
        Array { bytes: Bytes::new(), elements: PhantomData }
    }
}

impl<T: Element> AsRef<[T]> for Array<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<'a, T: Element> IntoIterator for &'a Array<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: Element, S: AsRef<[T]> + ?Sized> PartialEq<S> for Array<T> {
    fn eq(&self, other: &S) -> bool {
        **self == *other.as_ref()
    }
}

impl<T: Element> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

/// What stands in a value for an array that travels beside it. Not a mere number: where the type is
/// found by trying (`#[serde(untagged)]`) it must not be taken for one.
#[derive(Serialize, Deserialize)]
enum Place {
    #[serde(rename = "$outray::buffer")]
    Beside(u64),
}

impl<T: Element> Serialize for Array<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // The bytes of a number are those of a little-endian machine wherever bytes are written.
        if serializer.is_human_readable() || cfg!(target_endian = "big") {
            return serializer.collect_seq(self);
        }
        match serial::put_buffer(&self.bytes) {
            Some(number) => Place::Beside(number).serialize(serializer),
            None => serializer.serialize_bytes(&self.bytes),
        }
    }
}

impl<'de, T: Element> Deserialize<'de> for Array<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = Visitor(PhantomData);
        // What serde has put aside to look at it again calls itself human-readable too.
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(visitor)
        } else if cfg!(target_endian = "big") {
            deserializer.deserialize_seq(visitor)
        } else if serial::has_buffers() {
            beside(Place::deserialize(deserializer)?)
        } else {
            deserializer.deserialize_byte_buf(visitor)
        }
    }
}

fn beside<T: Element, E: de::Error>(Place::Beside(number): Place) -> Result<Array<T>, E> {
    let bytes =
        serial::take_buffer(number).ok_or_else(|| E::custom(format!("there is no buffer {number} beside it")))?;
    Array::from_bytes(bytes).map_err(E::custom)
}

struct Visitor<T>(PhantomData<T>);

impl<'de, T: Element> de::Visitor<'de> for Visitor<T> {
    type Value = Array<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of {}", std::any::type_name::<T>())
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Array<T>, E> {
        self.visit_byte_buf(bytes.to_vec())
    }

    fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Array<T>, E> {
        Array::from_bytes(bytes.into()).map_err(E::custom)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut elements: A) -> Result<Array<T>, A::Error> {
        // No more than a page on the word of whoever wrote it.
        let mut vec = Vec::with_capacity(elements.size_hint().unwrap_or(0).min(4096 / size_of::<T>()));
        while let Some(element) = elements.next_element()? {
            vec.push(element);
        }
        Ok(vec.into())
    }

    fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Array<T>, A::Error> {
        beside(Place::deserialize(MapAccessDeserializer::new(map))?)
    }
}
