//! A network and a mount namespace of a test's own, in which every address of the internet is this
//! machine, and names are looked up where the test says.
//!
//! Nothing of the machine outside is changed, and nothing leaves it. Needs Linux with user
//! namespaces (or root), `unshare` of util-linux and `ip` of iproute2.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

/// Set for the process inside.
const INSIDE: &str = "TIDINGS_TEST_NAMESPACE";
/// Where the resolver of the C library asks inside.
pub(crate) const NAME_SERVER: &str = "127.0.0.53";
/// A domain that the resolver adds to names that are not absolute.
pub(crate) const SEARCH_DOMAIN: &str = "searched.net";
/// The exit code of a namespace that could not be made.
const UNSUITABLE: i32 = 77;

/// All addresses lead to the loopback, as if each were this machine's own (`ip-route(8)`, `local`).
const SCRIPT: &str = r#"
prepare() {
    set -e
    ip link set lo up
    ip route add local 0.0.0.0/0 dev lo
    ip -6 route add local ::/0 dev lo
    for name in resolv.conf nsswitch.conf hosts; do
        mount --bind "$1/$name" "$(realpath "/etc/$name")"
    done
}
(prepare "$1") || exit 77
shift
exec "$@"
"#;

/// Which process this is.
pub(crate) enum Place {
    /// The one in the namespace: the test is to be made here.
    Inside,
    /// The one outside: the test has been made in another process, or could not be.
    Outside,
}

/// Makes the test of this name in a namespace. Where the machine has none, says so on standard
/// error and leaves it at that.
pub(crate) async fn enter(test: &str) -> Place {
    if std::env::var_os(INSIDE).is_some() {
        return Place::Inside;
    }
    let folder = tempfile::tempdir().expect("a folder");
    write_files(folder.path());
    // As root too: a user namespace leaves nothing of the machine to harm.
    for flags in [&["--user", "--map-root-user"][..], &[]] {
        let mut command = Command::new("unshare");
        command
            .args(flags)
            .args(["--mount", "--net", "--", "sh", "-c", SCRIPT, "namespace"])
            .arg(folder.path())
            .arg(std::env::current_exe().expect("the test's binary"))
            .args(["--exact", test, "--nocapture", "--test-threads", "1"])
            .env(INSIDE, "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        match command.output().await {
            Ok(output) if output.status.success() => {
                print(&String::from_utf8_lossy(&output.stdout));
                return Place::Outside;
            }
            // `unshare` itself ends with 1 when the kernel says no, before anything was printed.
            Ok(output) if output.status.code() == Some(UNSUITABLE) || output.stdout.is_empty() => {
                print(&String::from_utf8_lossy(&output.stderr));
            }
            Ok(output) => panic!(
                "in the namespace:\n{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => print(&format!("unshare: {error}")),
        }
    }
    print(&format!("SKIPPED {test}: no network namespace can be made here"));
    Place::Outside
}

/// Past the test harness, which hides what a test that succeeds has printed.
fn print(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr().lock(), "{}", text.trim_end()).expect("written");
}

fn write_files(folder: &Path) {
    let resolver = format!(
        "nameserver {NAME_SERVER}\nsearch {SEARCH_DOMAIN}\noptions ndots:15 timeout:2 attempts:1\n"
    );
    for (name, text) in [
        ("resolv.conf", resolver.as_str()),
        ("nsswitch.conf", "hosts: files dns\n"),
        ("hosts", "127.0.0.1 localhost\n"),
    ] {
        std::fs::write(folder.join(name), text).expect("written");
    }
}
