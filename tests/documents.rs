//! Code in the documents is code that tests run: each block that names a file is that file, or the
//! part of it between `docs: name` and `docs: end`.
//!
//! What the captured requests say is held by `channel::webhook::tests`.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The part of a file that is shown, without the indentation that it has there.
fn part(file: &str, name: &str) -> String {
    let text = read(file);
    let is_marker = |line: &str, name: &str| line.trim_end().ends_with(&format!(" docs: {name}"));
    let lines = text.lines().skip_while(|line| !is_marker(line, name)).skip(1);
    let lines: Vec<_> = lines.take_while(|line| !is_marker(line, "end")).collect();
    assert!(!lines.is_empty(), "{file} has no part {name}");
    let indent = |line: &&str| line.len() - line.trim_start().len();
    let indent = lines.iter().filter(|line| !line.is_empty()).map(indent).min().unwrap_or(0);
    lines.iter().fold(String::new(), |text, line| text + line.get(indent..).unwrap_or("") + "\n")
}

#[test]
fn snippets_for_receivers_are_the_files_that_tests_run() {
    let document = read("docs/webhooks.md");
    let mut count = 0;
    for block in document.split("<!-- from ").skip(1) {
        let (source, rest) = block.split_once(" -->\n```").expect("a block behind the comment");
        let (_, rest) = rest.split_once('\n').expect("a language");
        let (shown, _) = rest.split_once("```\n").expect("an end");
        let wanted = match source.split_once(": ") {
            Some((file, name)) => part(file, name),
            None => read(source),
        };
        assert_eq!(shown, wanted, "docs/webhooks.md does not show {source} as it is");
        count += 1;
    }
    assert_eq!(count, 9, "five libraries and four languages");
}

#[test]
fn the_table_of_costs_is_what_the_script_prints() {
    let document = read("docs/scaling.md");
    let (_, rest) =
        document.split_once("<!-- Printed by scripts/scaling-cost -->\n").expect("a table");
    let (shown, _) = rest.split_once("<!-- until here -->").expect("its end");
    let python = std::env::var("TIDINGS_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/scaling-cost");
    let output = std::process::Command::new(python).arg(script).output().expect("ran");
    let (printed, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}");
    assert_eq!(shown, printed, "run scripts/scaling-cost and put its table into docs/scaling.md");
}
