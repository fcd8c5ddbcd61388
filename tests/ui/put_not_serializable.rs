//! A `put` of a type without serde's derives.

use outray::Runtime;

struct Table;

fn main() {
    let rt = Runtime::local();
    rt.put(Table);
}
