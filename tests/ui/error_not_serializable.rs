//! A task whose error type cannot be an object.

use outray::Runtime;

fn load(path: String) -> Result<String, std::io::Error> {
    std::fs::read_to_string(path)
}

fn main() {
    let rt = Runtime::local();
    rt.submit(load, "a.txt");
}
