//! The `tidings` program: parse, run, report. Everything else is in the library.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use tidings::cli;

/// An event makes a few hundred allocations, on one thread, that are freed on another.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _armed = tidings::failpoint::arm();
    let cli = cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(cli::run(cli));
    // Everything that had to finish has finished: a command returns after it has drained. After a
    // second signal nothing is waited for.
    runtime.shutdown_background();
    result.unwrap_or_else(|error| {
        if !error.is_output_closed() {
            eprintln!("{error}");
        }
        error.exit_code()
    })
}
