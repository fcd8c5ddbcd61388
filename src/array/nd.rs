use super::{Array, Element};
use ndarray::{ArrayView, Dimension};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// An [`Array`] with the shape of an array of the `ndarray` crate (feature `ndarray`): immutable, shared by
/// its clones, and on a cluster read by all processes of a node where it was put.
///
/// An `ndarray::Array` has to own its memory, so it is read from here through a [`view`](NdArray::view), which is
/// what most functions of that crate work on; `view().to_owned()` copies.
///
/// ```
/// use ndarray::{Array2, array};
/// use outray::{NdArray, Runtime};
///
/// fn product(a: NdArray<f64, ndarray::Ix2>, b: NdArray<f64, ndarray::Ix2>) -> NdArray<f64, ndarray::Ix2> {
///     a.view().dot(&b.view()).into()
/// }
///
/// let rt = Runtime::local();
/// let a = rt.put(NdArray::from(array![[1.0, 2.0], [3.0, 4.0]])); // takes the memory over
/// let square = rt.submit(product, (&a, &a)).get()?;
/// assert_eq!(square.view(), array![[7.0, 10.0], [15.0, 22.0]]);
/// let mine: Array2<f64> = square.view().to_owned();
/// # assert_eq!(mine[(1, 0)], 15.0);
/// # Ok::<(), outray::Error>(())
/// ```
#[derive(Clone)]
pub struct NdArray<T, D> {
    /// As many as the shape says, in the order of their indices.
    elements: Array<T>,
    shape: D,
}

impl<T: Element, D: Dimension> NdArray<T, D> {
    /// The array, where it is.
    pub fn view(&self) -> ArrayView<'_, T, D> {
        let view = ArrayView::from_shape(self.shape.clone(), &self.elements);
        view.expect("the shape was that of the elements when this was made")
    }
}

/// No copy, unless the elements lie in another order than that of their indices (as in a transposed array).
impl<T: Element, D: Dimension> From<ndarray::Array<T, D>> for NdArray<T, D> {
    fn from(array: ndarray::Array<T, D>) -> Self {
        let array = match array.is_standard_layout() {
            true => array,
            false => array.as_standard_layout().into_owned(),
        };
        let (shape, length) = (array.raw_dim(), array.len());
        let (elements, offset) = array.into_raw_vec_and_offset();
        let offset = offset.unwrap_or(0);
        NdArray { elements: Array::from(elements).slice(offset..offset + length), shape }
    }
}

impl<T: Element, D: Dimension> PartialEq for NdArray<T, D> {
    fn eq(&self, other: &Self) -> bool {
        self.view() == other.view()
    }
}

impl<T: Element, D: Dimension> fmt::Debug for NdArray<T, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.view(), f)
    }
}

/// What is written: the lengths of the axes, and the elements.
impl<T: Element, D: Dimension> Serialize for NdArray<T, D> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.shape.slice(), &self.elements).serialize(serializer)
    }
}

impl<'de, T: Element, D: Dimension> Deserialize<'de> for NdArray<T, D> {
    fn deserialize<De: Deserializer<'de>>(deserializer: De) -> Result<Self, De::Error> {
        let (axes, elements) = <(Vec<usize>, Array<T>)>::deserialize(deserializer)?;
        if D::NDIM.is_some_and(|expected| expected != axes.len()) {
            return Err(de::Error::invalid_length(axes.len(), &"as many axes as the type has"));
        }
        let mut shape = D::zeros(axes.len());
        shape.slice_mut().copy_from_slice(&axes);
        match ArrayView::from_shape(shape.clone(), &elements) {
            Ok(view) if view.len() == elements.len() => Ok(NdArray { elements, shape }),
            _ => Err(de::Error::custom(format!("{} elements are not an array of {axes:?}", elements.len()))),
        }
    }
}
