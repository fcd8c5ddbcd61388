//! A streaming task that returns a `Vec` instead of an iterator.

use outray::Runtime;

fn lines(text: String) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

fn main() {
    let rt = Runtime::local();
    rt.stream(lines, "a\nb");
}
