//! `lying-facade PORT TRUTH TLS-DIRECTORY IDENTITY-DIRECTORY WORD…`: the liar of the rig for `tests/demo`.
//!
//! Listens on 127.0.0.1:PORT with a stolen server key, passes requests on to TRUTH with a device's identity, and changes
//! one digit of the signature in answers whose path contains every WORD. Runs until it is killed.

use std::path::Path;
use std::process::ExitCode;

use harness::device::Identity;
use harness::{Liar, Lie};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, truth, tls, identity, about @ ..] = arguments.as_slice() else {
        return ExitCode::from(2);
    };
    let Ok(port) = port.parse() else {
        return ExitCode::from(2);
    };
    let about: Vec<&str> = about.iter().map(String::as_str).collect();
    let identity = Identity::in_directory(Path::new(identity));
    let _liar = Liar::start(Lie::OtherSignature, port, truth, Path::new(tls), &identity, &about);
    loop {
        std::thread::park();
    }
}
