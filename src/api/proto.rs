//! The contract as Rust: what `build.rs` made of `proto/`.
//!
//! The messages, clients and servers are generated and not ours to lint; nothing else is in here.
//! Inside the service only `api` sees these types. The command line, which is a client like any
//! other, uses the generated clients.

#![expect(
    missing_docs,
    clippy::pedantic,
    clippy::allow_attributes,
    reason = "generated: the comments stand in proto/, and nobody edits the code"
)]

tonic::include_proto!("tidings.v1");

/// The contract with its comments, encoded as a `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/tidings_descriptor.bin"));
