//! Values that are plain numbers one after the other: `Vec<f64>`, `Arc<[u8]>` and their like.
//!
//! serde gives and takes such a value number by number. Where the whole of a value or of an argument is one, its
//! type is known, so it can be asked whether it is one of these, and its numbers are put aside as those of an
//! [`Array`](crate::Array) are. In the value stands the kind of the numbers with the place of the buffer, as
//! `{"$outray::f64": 0}`, and nothing else is taken for it.

use super::{BESIDE, push};
use bytemuck::Pod;
use bytes::Bytes;
#[cfg(feature = "cluster")]
use rustc_hash::FxHashMap;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, IgnoredAny, value::SeqAccessDeserializer},
};
use std::{
    any::{Any, TypeId},
    borrow::Cow,
    fmt,
    marker::PhantomData,
    sync::Arc,
};

/// Fewer bytes than that stay in the value: a buffer takes about as many for itself.
const SMALL: usize = 256;

trait Number: Pod + Send + Sync {
    const TAG: &'static str;
}

/// What such numbers are in.
trait Numbers: Send + Sync + Sized + 'static {
    type Number: Number;
    fn numbers(&self) -> &[Self::Number];
    /// Itself for another owner. It may be empty afterwards.
    #[cfg(feature = "cluster")]
    fn give(&mut self) -> Self;
    fn from_vec(numbers: Vec<Self::Number>) -> Self;
    fn copied(numbers: &[Self::Number]) -> Self {
        Self::from_vec(numbers.to_vec())
    }
}

impl<N: Number> Numbers for Vec<N> {
    type Number = N;
    fn numbers(&self) -> &[N] {
        self
    }
    #[cfg(feature = "cluster")]
    fn give(&mut self) -> Self {
        std::mem::take(self)
    }
    fn from_vec(numbers: Vec<N>) -> Self {
        numbers
    }
}

impl<N: Number> Numbers for Box<[N]> {
    type Number = N;
    fn numbers(&self) -> &[N] {
        self
    }
    #[cfg(feature = "cluster")]
    fn give(&mut self) -> Self {
        std::mem::take(self)
    }
    fn from_vec(numbers: Vec<N>) -> Self {
        numbers.into()
    }
}

impl<N: Number> Numbers for Arc<Vec<N>> {
    type Number = N;
    fn numbers(&self) -> &[N] {
        self
    }
    #[cfg(feature = "cluster")]
    fn give(&mut self) -> Self {
        self.clone()
    }
    fn from_vec(numbers: Vec<N>) -> Self {
        numbers.into()
    }
}

impl<N: Number> Numbers for Arc<[N]> {
    type Number = N;
    fn numbers(&self) -> &[N] {
        self
    }
    #[cfg(feature = "cluster")]
    fn give(&mut self) -> Self {
        self.clone()
    }
    fn from_vec(numbers: Vec<N>) -> Self {
        numbers.into()
    }
    fn copied(numbers: &[N]) -> Self {
        numbers.into()
    }
}

/// What can be done with values of one of these types.
struct Plain {
    /// What stands in the value.
    tag: &'static str,
    bytes: fn(&dyn Any) -> Option<&[u8]>,
    /// Without a copy; the value may be empty afterwards.
    #[cfg(feature = "cluster")]
    give: fn(&mut dyn Any) -> Option<Bytes>,
    /// Without a copy.
    #[cfg(feature = "cluster")]
    share: fn(Arc<dyn Any + Send + Sync>) -> Option<Bytes>,
    /// Copies bytes to a value in an `Option`, or says why they are none.
    read: fn(&[u8], &mut dyn Any) -> Result<(), String>,
}

impl Plain {
    const fn new<T: Numbers>() -> Plain {
        Plain {
            tag: T::Number::TAG,
            bytes: |value| value.downcast_ref::<T>().map(bytes),
            #[cfg(feature = "cluster")]
            give: |value| value.downcast_mut().map(|value: &mut T| Bytes::from_owner(Owner(value.give()))),
            #[cfg(feature = "cluster")]
            share: |value| value.downcast().ok().map(|value: Arc<T>| Bytes::from_owner(Shared(value))),
            read: |bytes, place| match place.downcast_mut() {
                Some(place) => read::<T>(bytes).map(|value| *place = Some(value)),
                None => Err(format!("these are {}", T::Number::TAG)),
            },
        }
    }
}

#[cfg(feature = "cluster")]
/// Keeps numbers for a buffer.
struct Owner<T>(T);

#[cfg(feature = "cluster")]
impl<T: Numbers> AsRef<[u8]> for Owner<T> {
    fn as_ref(&self) -> &[u8] {
        bytes(&self.0)
    }
}

#[cfg(feature = "cluster")]
struct Shared<T>(Arc<T>);

#[cfg(feature = "cluster")]
impl<T: Numbers> AsRef<[u8]> for Shared<T> {
    fn as_ref(&self) -> &[u8] {
        bytes(&*self.0)
    }
}

fn bytes<T: Numbers>(value: &T) -> &[u8] {
    bytemuck::cast_slice(value.numbers())
}

fn read<T: Numbers>(bytes: &[u8]) -> Result<T, String> {
    let size = size_of::<T::Number>();
    if !bytes.len().is_multiple_of(size) {
        return Err(format!("{} bytes are not a whole number of {}", bytes.len(), std::any::type_name::<T::Number>()));
    }
    Ok(match bytemuck::try_cast_slice(bytes) {
        Ok(numbers) => T::copied(numbers),
        // They are not aligned.
        Err(_) => {
            let mut numbers = vec![bytemuck::Zeroable::zeroed(); bytes.len() / size];
            bytemuck::cast_slice_mut::<T::Number, u8>(&mut numbers).copy_from_slice(bytes);
            T::from_vec(numbers)
        }
    })
}

macro_rules! numbers {
    ($($number:ident)*) => {
        $(impl Number for $number {
            const TAG: &'static str = concat!("$outray::", stringify!($number));
        })*

        fn find(id: TypeId) -> Option<&'static Plain> {
            $(numbers!(id, Vec<$number>, Box<[$number]>, Arc<Vec<$number>>, Arc<[$number]>);)*
            None
        }
    };
    ($id:ident, $($numbers:ty),*) => {
        $(if $id == TypeId::of::<$numbers>() {
            return Some(const { &Plain::new::<$numbers>() });
        })*
    };
}

numbers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);

/// If values of this type are plain numbers: how that is done.
fn plain<T: 'static>() -> Option<&'static Plain> {
    // What most values are is known not to be, when this is compiled.
    const { size_of::<T>() <= size_of::<Vec<u8>>() && size_of::<T>() != 0 && std::mem::needs_drop::<T>() }
        .then(|| find(TypeId::of::<T>()))
        .flatten()
}

#[cfg(feature = "cluster")]
/// Where a value is, by which it is known while it is packed.
fn address<T>(value: &T) -> usize {
    std::ptr::from_ref(value).addr()
}

#[cfg(feature = "cluster")]
/// The numbers of values that are to be packed, and need not be copied for it.
#[derive(Default)]
pub(crate) struct Aside(FxHashMap<usize, Bytes>);

#[cfg(feature = "cluster")]
impl Aside {
    /// Takes those of a value, if it has some, which is then packed where it is and not looked at any more.
    pub(crate) fn take<T: 'static>(&mut self, value: &mut T) {
        let Some(plain) = plain::<T>() else { return };
        if (plain.bytes)(value).is_some_and(|bytes| bytes.len() >= SMALL) {
            let bytes = (plain.give)(value);
            self.0.extend(bytes.map(|bytes| (address(value), bytes)));
        }
    }

    /// Shares those of a value.
    pub(crate) fn share<T: Send + Sync + 'static>(&mut self, value: &Arc<T>) {
        let Some(plain) = plain::<T>() else { return };
        if (plain.bytes)(&**value).is_some_and(|bytes| bytes.len() >= SMALL) {
            let bytes = (plain.share)(value.clone());
            self.0.extend(bytes.map(|bytes| (address(&**value), bytes)));
        }
    }
}

/// The value as another process would see it, if its numbers can be copied as they are.
pub(super) fn copied<T: 'static>(value: &T) -> Option<T> {
    let plain = plain::<T>()?;
    let mut copy = None;
    (plain.read)((plain.bytes)(value)?, &mut copy).ok()?;
    copy
}

/// A value, or a part of one whose type is known, so that it can be asked what it is.
pub(crate) struct Part<T>(pub(crate) T);

impl<T: Serialize + 'static> Serialize for Part<&T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match plain::<T>().and_then(|plain| put_aside(plain, self.0)) {
            Some((tag, number)) => serializer.serialize_newtype_variant("Plain", 0, tag, &number),
            None => self.0.serialize(serializer),
        }
    }
}

fn put_aside<T: 'static>(plain: &Plain, value: &T) -> Option<(&'static str, u64)> {
    BESIDE.with_borrow_mut(|beside| {
        let beside = beside.as_mut()?;
        let buffers = beside.buffers.as_mut()?;
        #[cfg(feature = "cluster")]
        if let Some(bytes) = beside.aside.0.remove(&address(value)) {
            return Some((plain.tag, push(buffers, bytes)));
        }
        let bytes = (plain.bytes)(value).filter(|bytes| bytes.len() >= SMALL)?;
        Some((plain.tag, push(buffers, Bytes::copy_from_slice(bytes))))
    })
}

/// Several values of one type.
#[derive(Clone, Debug)]
pub(crate) struct Items<T>(pub(crate) Vec<T>);

#[cfg(feature = "cluster")]
impl<T: 'static> Items<T> {
    pub(crate) fn put_aside(&mut self, aside: &mut Aside) {
        match plain::<T>() {
            Some(_) => self.0.iter_mut().for_each(|item| aside.take(item)),
            None => aside.take(&mut self.0),
        }
    }
}

impl<T: Serialize + 'static> Serialize for Items<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match plain::<T>() {
            Some(_) => serializer.collect_seq(self.0.iter().map(Part)),
            None => Part(&self.0).serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de> + 'static> Deserialize<'de> for Items<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Items(match plain::<T>() {
            Some(_) => Vec::deserialize(deserializer)?.into_iter().map(|Part(item)| item).collect(),
            None => Part::deserialize(deserializer)?.0,
        }))
    }
}

impl<'de, T: Deserialize<'de> + 'static> Deserialize<'de> for Part<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match plain::<T>() {
            Some(plain) => deserializer.deserialize_any(Visitor { plain, value: PhantomData }),
            None => T::deserialize(deserializer),
        }
        .map(Part)
    }
}

struct Visitor<T> {
    plain: &'static Plain,
    value: PhantomData<T>,
}

impl<'de, T: Deserialize<'de> + 'static> de::Visitor<'de> for Visitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a sequence, or {} beside it", self.plain.tag)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, elements: A) -> Result<T, A::Error> {
        T::deserialize(SeqAccessDeserializer::new(elements))
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<T, A::Error> {
        let (tag, number): (Cow<'_, str>, u64) =
            map.next_entry()?.ok_or_else(|| de::Error::invalid_length(0, &self))?;
        if tag != self.plain.tag {
            return Err(de::Error::invalid_value(de::Unexpected::Str(&tag), &self));
        }
        if map.next_key::<IgnoredAny>()?.is_some() {
            return Err(de::Error::invalid_length(2, &self));
        }
        let bytes = super::take_buffer(number)
            .ok_or_else(|| de::Error::custom(format_args!("there is no buffer {number} beside it")))?;
        let mut value = None;
        (self.plain.read)(&bytes, &mut value).map_err(de::Error::custom)?;
        value.ok_or_else(|| de::Error::custom("it was not read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        object::Object,
        serial::{Packed, pack, unpack},
    };
    use proptest::prelude::*;

    /// As bytes, with what stands beside them.
    fn packed<T: Object>(value: &T) -> Packed {
        pack(value, "a value").unwrap()
    }

    fn read<T: Object>(packed: &Packed) -> Option<T> {
        unpack(packed, "a value").ok()
    }

    #[test]
    fn numbers_stand_beside_the_value_if_they_are_worth_it() {
        for (count, buffers) in [(0, 0), (31, 0), (32, 1), (1_000, 1)] {
            let value = vec![-1.5_f64; count];
            let packed = packed(&value);
            assert_eq!(packed.buffers.len(), buffers, "{count}");
            assert!(buffers == 0 || packed.bytes.len() < 20);
            assert_eq!(read::<Vec<f64>>(&packed), Some(value.clone()));
            assert_eq!(read::<Arc<[f64]>>(&packed).as_deref(), Some(&value[..]));
            assert_eq!(read::<Box<[f64]>>(&packed).as_deref(), Some(&value[..]));
            assert_eq!(read::<Arc<Vec<f64>>>(&packed).as_deref(), Some(&value));
        }
        let strings = vec![String::from("x"); 1_000];
        assert!(packed(&strings).buffers.is_empty());
        assert!(packed(&vec![true; 1_000]).buffers.is_empty());
    }

    #[test]
    fn they_are_taken_for_nothing_else() {
        let doubles = packed(&vec![1.5_f64; 100]);
        assert_eq!(read::<Vec<u8>>(&doubles), None);
        assert_eq!(read::<Vec<u64>>(&doubles), None);
        assert_eq!(read::<crate::Array<f64>>(&doubles), None);
        assert_eq!(read::<Vec<f64>>(&packed(&crate::Array::from(vec![1.5_f64; 100]))), None);
        assert_eq!(read::<Vec<f64>>(&Packed { buffers: Vec::new(), ..doubles.clone() }), None);
        let buffers = vec![Bytes::from(vec![0; 799])];
        assert_eq!(read::<Vec<f64>>(&Packed { buffers, ..doubles.clone() }), None);
        // Wherever they stand.
        let moved = Bytes::from([&[0], &doubles.buffers[0][..]].concat()).slice(1..);
        assert_eq!(read::<Vec<f64>>(&Packed { buffers: vec![moved], ..doubles }), Some(vec![1.5; 100]));
    }

    #[test]
    fn what_another_process_sees_is_a_copy() {
        let value = Arc::new(vec![1_u32, 2]);
        let copy = copied(&value).unwrap();
        assert!(copy == value && !Arc::ptr_eq(&copy, &value));
        assert_eq!(copied(&vec![String::new()]), None);
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn what_is_shared_or_taken_is_not_copied() {
        let value = Arc::new(vec![7_u8; 10_000]);
        let packed = crate::serial::pack_shared(&value, "a value").unwrap();
        assert_eq!(packed.buffers[0].as_ptr(), value.as_ptr());
        let mut items = Items(vec![vec![1_u64; 500], Vec::new(), vec![2; 500]]);
        let places: Vec<*const u8> = items.0.iter().map(|item| item.as_ptr().cast()).collect();
        let mut aside = Aside::default();
        items.put_aside(&mut aside);
        let packed = crate::serial::pack_aside(&items, aside, "items").unwrap();
        let found: Vec<*const u8> = packed.buffers.iter().map(|buffer| buffer.as_ptr()).collect();
        assert_eq!(found, [places[0], places[2]]);
        let back: Items<Vec<u64>> = unpack(&packed, "items").unwrap();
        assert_eq!(back.0, [vec![1; 500], Vec::new(), vec![2; 500]]);
    }

    proptest! {
        #[test]
        fn other_bytes_are_errors_or_numbers(noise: Vec<u8>, index in 0..20_usize, byte: u8, length in 0..900_usize) {
            let whole = packed(&vec![1_u64; 100]);
            let mut bytes = whole.bytes.clone();
            let at = index % bytes.len();
            bytes[at] = byte;
            let buffers = vec![Bytes::from(vec![1; length])];
            for bytes in [noise, bytes, whole.bytes[..at].to_vec(), whole.bytes] {
                let packed = Packed { bytes, handles: Vec::new(), buffers: buffers.clone() };
                // No panic, and no numbers that are not there.
                let found: Option<Vec<u64>> = read(&packed);
                prop_assert!(found.is_none_or(|numbers| numbers.len() < 1_000));
                let _: Option<Arc<[f32]>> = read(&packed);
                let _: Option<Box<[u128]>> = read(&packed);
            }
        }
    }
}
