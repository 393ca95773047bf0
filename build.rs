//! Makes Rust from the contract in `proto/`, without protoc: protox reads it, tonic-prost-build
//! writes the messages, servers and clients.
//!
//! `OUT_DIR` receives `tidings.v1.rs` and `tidings_descriptor.bin`, the descriptor set that
//! reflection serves. The set keeps the comments, so that `grpcurl describe` shows them. The
//! generated code does not: they are written for every language, and rustdoc would read their
//! brackets as links.

use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Where the contract is rooted: what an `import` is relative to.
const ROOT: &str = "proto";
/// The folder of the one package that there is.
const PACKAGE: &str = "proto/tidings/v1";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={ROOT}");

    let mut compiler = protox::Compiler::new([ROOT])?;
    compiler.include_imports(true).include_source_info(true).open_files(proto_files()?)?;

    let descriptor = PathBuf::from(env::var("OUT_DIR")?).join("tidings_descriptor.bin");
    fs::write(descriptor, compiler.encode_file_descriptor_set())?;

    let mut files = compiler.file_descriptor_set();
    for file in &mut files.file {
        file.source_code_info = None;
    }
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}

/// Every file of the package, in the same order on every machine.
fn proto_files() -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut files = fs::read_dir(Path::new(PACKAGE))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?;
    files.retain(|path| path.extension() == Some(OsStr::new("proto")));
    files.sort();
    Ok(files)
}
