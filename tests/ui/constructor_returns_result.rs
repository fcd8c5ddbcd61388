//! A constructor that returns `Result`, without `.fallible()`.

use outray::Runtime;

struct Port(u16);

impl Port {
    fn parse(text: String) -> Result<Port, std::num::ParseIntError> {
        text.parse().map(Port)
    }
    fn number(&self) -> u16 {
        self.0
    }
}

fn main() {
    let rt = Runtime::local();
    let port = rt.actor(Port::parse, "80");
    port.call(Port::number, ());
}
