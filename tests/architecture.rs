//! The house rules of `ARCHITECTURE.md`, held by a test: who may import whom, which crates stay
//! out of the domain, how long a file may be.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines in a source file, its tests aside.
const MAX_LINES: usize = 500;

/// A module, and the modules of ours that it may name.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("failpoint", &[]),
    // Fail points: an error at one of them is the database's.
    ("store", &["domain", "failpoint"]),
    ("channel", &["domain", "failpoint"]),
    // Of dispatch, the queue's handle alone: see `intake_sees_only_the_queue`.
    ("intake", &["domain", "store", "dispatch"]),
    ("dispatch", &["domain", "store", "channel"]),
    ("feed", &["domain", "store"]),
    ("api", &["domain", "store", "intake", "feed"]),
    ("web", &["domain", "store", "intake", "feed", "shutdown"]),
    // The components' `Config` types alone.
    (
        "config",
        &["api", "channel", "dispatch", "domain", "feed", "intake", "store", "telemetry", "web"],
    ),
    ("telemetry", &["domain"]),
    ("shutdown", &[]),
];

/// Crates that do I/O, or that belong to one layer alone.
const OUTSIDE_DOMAIN: &[&str] = &["tokio", "sea_orm", "tonic", "prost", "hyper", "lettre", "sqlx"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The source files of a module: `src/name.rs` and everything in `src/name/`.
fn files(module: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> = [root().join(format!("src/{module}.rs"))]
        .into_iter()
        .filter(|path| path.exists())
        .collect();
    let mut folders = vec![root().join("src").join(module)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The code of a file: without its comments, and without the tests at its end.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("readable");
    let text = text.split("\n#[cfg(test)]\n").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// The modules of ours that `code` names as `crate::name`.
fn imports(code: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    code.split("crate::").skip(1).map(name).filter(|name: &String| !name.is_empty()).collect()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[test]
fn imports_point_one_way() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (module, allowed) in MAY_IMPORT {
        for path in files(module) {
            seen += 1;
            for import in imports(&code(&path)) {
                if import != *module && !allowed.contains(&import.as_str()) {
                    wrong.push(format!("{} imports {import}", shown(&path)));
                }
            }
        }
    }
    assert!(seen > 50, "the sources were not found");
    assert!(wrong.is_empty(), "see ARCHITECTURE.md, who may import whom:\n{}", wrong.join("\n"));
}

#[test]
fn every_module_has_a_rule() {
    let known: BTreeSet<_> =
        MAY_IMPORT.iter().map(|(module, _)| *module).chain(["app", "cli", "lib", "main"]).collect();
    for entry in fs::read_dir(root().join("src")).expect("src") {
        let name = entry
            .expect("an entry")
            .path()
            .file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        assert!(known.contains(name.as_str()), "src/{name} has no rule in tests/architecture.rs");
    }
}

#[test]
fn intake_sees_only_the_queue() {
    for path in files("intake") {
        for rest in code(&path).split("crate::dispatch::").skip(1) {
            let line = rest.lines().next().unwrap_or_default();
            let names: Vec<_> = line
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .filter(|n| !n.is_empty())
                .collect();
            assert!(
                names.iter().all(|name| ["Job", "Permit", "Queue"].contains(name)),
                "{} imports {line} from dispatch",
                shown(&path)
            );
        }
    }
}

#[test]
fn the_domain_does_no_io() {
    for path in files("domain") {
        let code = code(&path);
        for name in OUTSIDE_DOMAIN {
            let used = code.contains(&format!("{name}::")) || code.contains(&format!("use {name}"));
            assert!(!used, "{} uses {name}", shown(&path));
        }
    }
}

/// What decides waits for nothing and locks nothing, so that a simulation can do it, too.
#[test]
fn the_engines_decisions_are_pure() {
    let decisions = files("dispatch").into_iter().filter(|path| shown(path).contains("/decide/"));
    let decisions: Vec<_> = decisions.collect();
    assert!(decisions.len() > 4, "the decisions were not found");
    for path in decisions {
        let code = code(&path);
        for word in OUTSIDE_DOMAIN.iter().chain(&["async ", "Mutex", "RwLock", "Clock"]) {
            assert!(!code.contains(word), "{} uses {word}", shown(&path));
        }
    }
}

#[test]
fn types_of_a_library_stay_in_their_layer() {
    for (module, _) in MAY_IMPORT {
        for path in files(module) {
            let code = code(&path);
            let is_test = path.file_name().is_some_and(|name| name == "tests.rs");
            // Telemetry speaks OTLP, which is gRPC, too.
            for (owners, name) in
                [(&["store"][..], "sea_orm"), (&["api", "telemetry"], "tonic"), (&["api"], "prost")]
            {
                let is_used = !is_test && code.contains(&format!("{name}::"));
                assert!(!is_used || owners.contains(module), "{} uses {name}", shown(&path));
            }
        }
    }
}

#[test]
fn files_open_with_their_purpose_and_stay_short() {
    let modules = MAY_IMPORT.iter().map(|(module, _)| *module).chain(["app", "cli", "lib", "main"]);
    for path in modules.flat_map(files) {
        let text = fs::read_to_string(&path).expect("readable");
        assert!(text.starts_with("//!"), "{} does not say what it is for", shown(&path));
        let lines = text.split("\n#[cfg(test)]\n").next().unwrap_or_default().lines().count();
        let is_test = path.file_name().is_some_and(|name| name == "tests.rs");
        assert!(
            is_test || lines <= MAX_LINES,
            "{} has {lines} lines, at most {MAX_LINES} are allowed",
            shown(&path)
        );
    }
}
