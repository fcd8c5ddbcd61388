//! A method closure that captures.

use outray::Runtime;

fn main() {
    let rt = Runtime::local();
    let list = rt.actor(Vec::<u32>::new, ());
    let item = 7;
    list.call(move |list: &mut Vec<u32>| list.push(item), ());
}
