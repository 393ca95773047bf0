//! A few lines of C that a process is started with (`LD_PRELOAD`), where nothing else can make its
//! machine what it is to be.

use std::path::Path;

/// The library that is made of `tests/it/support/<name>.c`, as the value of `LD_PRELOAD`.
pub(crate) async fn preload(name: &str, folder: &Path) -> String {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/support");
    let library = folder.join(name).with_extension("so");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut command = tokio::process::Command::new(compiler);
    command.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library);
    command.arg(sources.join(name).with_extension("c")).arg("-ldl");
    assert!(command.status().await.expect("a C compiler").success());
    library.display().to_string()
}
