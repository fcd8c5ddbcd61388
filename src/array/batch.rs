use super::Array;
use arrow_array::{RecordBatch, RecordBatchOptions, make_array};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow_data::ArrayData;
use arrow_schema::{ArrowError, DataType, Schema};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{ops::Deref, sync::Arc};

/// A record batch of Arrow that can be an argument, a result, or a part of one (feature `arrow`). On a cluster its
/// buffers are written once, and read by all processes of a node where they were put.
///
/// It is a `RecordBatch` in all else. Whoever reads it checks it first, which for text means to look at all of
/// it. A slice of a batch of texts or lists takes the values of the whole with it.
///
/// ```
/// use arrow_array::{Float64Array, RecordBatch, StringArray, cast::AsArray, types::Float64Type};
/// use outray::{Batch, Runtime};
/// use std::sync::Arc;
///
/// fn total(batch: Batch) -> f64 {
///     batch["price"].as_primitive::<Float64Type>().values().iter().sum()
/// }
///
/// let batch = RecordBatch::try_from_iter([
///     ("name", Arc::new(StringArray::from(vec!["a", "b"])) as _),
///     ("price", Arc::new(Float64Array::from(vec![1.5, 2.0])) as _),
/// ])?;
/// let rt = Runtime::local();
/// let batch = rt.put(Batch(batch));
/// assert_eq!(rt.submit(total, &batch).get()?, 3.5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Batch(pub RecordBatch);

impl Deref for Batch {
    type Target = RecordBatch;

    fn deref(&self) -> &RecordBatch {
        &self.0
    }
}

impl From<RecordBatch> for Batch {
    fn from(batch: RecordBatch) -> Self {
        Batch(batch)
    }
}

#[derive(Serialize, Deserialize)]
struct Table {
    schema: Schema,
    rows: usize,
    columns: Vec<Column>,
}

#[derive(Serialize, Deserialize)]
struct Column {
    data_type: DataType,
    length: usize,
    offset: usize,
    nulls: Option<Nulls>,
    buffers: Vec<Array<u8>>,
    children: Vec<Column>,
}

/// A bit for each value.
#[derive(Serialize, Deserialize)]
struct Nulls {
    offset: usize,
    bits: Array<u8>,
}

fn bytes(buffer: &Buffer) -> Array<u8> {
    Bytes::from(buffer.clone()).into()
}

fn buffer(array: Array<u8>) -> Buffer {
    Bytes::from(array).into()
}

impl From<&ArrayData> for Column {
    fn from(data: &ArrayData) -> Self {
        let nulls = |nulls: &NullBuffer| Nulls { offset: nulls.offset(), bits: bytes(nulls.buffer()) };
        Column {
            data_type: data.data_type().clone(),
            length: data.len(),
            offset: data.offset(),
            nulls: data.nulls().map(nulls),
            buffers: data.buffers().iter().map(bytes).collect(),
            children: data.child_data().iter().map(Column::from).collect(),
        }
    }
}

impl TryFrom<Column> for ArrayData {
    type Error = ArrowError;

    fn try_from(column: Column) -> Result<Self, ArrowError> {
        let length = column.length;
        let nulls = |nulls: Nulls| {
            let end = nulls.offset.checked_add(length).filter(|end| end.div_ceil(8) <= nulls.bits.len());
            end.ok_or_else(|| {
                ArrowError::InvalidArgumentError(format!("there is no bit for each of {length} values"))
            })?;
            Ok::<_, ArrowError>(NullBuffer::new(BooleanBuffer::new(buffer(nulls.bits), nulls.offset, length)))
        };
        ArrayData::builder(column.data_type)
            .len(length)
            .offset(column.offset)
            .nulls(column.nulls.map(nulls).transpose()?)
            .buffers(column.buffers.into_iter().map(buffer).collect())
            .child_data(column.children.into_iter().map(ArrayData::try_from).collect::<Result<_, _>>()?)
            .align_buffers(true)
            .build()
    }
}

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let columns = self.columns().iter().map(|column| Column::from(&column.to_data())).collect();
        Table { schema: Schema::clone(&self.schema()), rows: self.num_rows(), columns }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let table = Table::deserialize(deserializer)?;
        let array = |column| ArrayData::try_from(column).map(make_array);
        let columns = table.columns.into_iter().map(array).collect::<Result<_, _>>();
        let options = RecordBatchOptions::new().with_row_count(Some(table.rows));
        let batch =
            columns.and_then(|columns| RecordBatch::try_new_with_options(Arc::new(table.schema), columns, &options));
        batch.map(Batch).map_err(de::Error::custom)
    }
}
