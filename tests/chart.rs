//! The Helm chart says nothing that the service does not know: each variable that it sets is an option,
//! and the paths, ports and commands in it are the service's. (`scripts/check-chart` renders it.)

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn templates() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/tidings/templates");
    let files = fs::read_dir(folder).expect("the chart's templates");
    let mut files: Vec<_> = files.map(|file| file.expect("readable").path()).collect();
    files.sort();
    assert!(files.len() > 5, "{files:?}");
    files.iter().map(|file| fs::read_to_string(file).expect("text")).collect()
}

/// The words that begin with `TIDINGS_`.
fn variables(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_part(c));
    words.filter(|word| word.len() > "TIDINGS_".len() && word.starts_with("TIDINGS_")).collect()
}

/// What the binary itself says of its options: the reference, with a table of all of them.
fn reference() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tidings"))
        .args(["config", "--reference"])
        .output()
        .expect("ran");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("UTF-8")
}

#[test]
fn every_variable_of_the_chart_and_the_image_is_an_option() {
    let (templates, dockerfile, reference) = (templates(), read("Dockerfile"), reference());
    let known = variables(&reference);
    let used: BTreeSet<_> =
        variables(&templates).into_iter().chain(variables(&dockerfile)).collect();
    for expected in ["TIDINGS_DATABASE_URL", "TIDINGS_MASTER_KEY_FILE", "TIDINGS_SHUTDOWN_GRACE"] {
        assert!(used.contains(expected), "{expected} is not looked for in the right place");
    }
    let unknown: Vec<_> = used.difference(&known).collect();
    assert!(unknown.is_empty(), "no options of the service: {unknown:?}");
}

/// Options that the values give by name: those of the defaults, and those that examples show.
#[test]
fn every_option_in_the_values_and_the_examples_exists() {
    let reference = reference();
    let (mut names, mut is_inside) = (Vec::new(), false);
    let texts = read("helm/tidings/values.yaml") + &read("helm/tidings/README.md");
    for line in texts.lines() {
        if line.starts_with("options:") {
            is_inside = true;
        } else if !line.starts_with("  ") {
            is_inside = false;
        } else if is_inside && let Some((name, _)) = line.trim().split_once(':') {
            names.push(name);
        }
    }
    assert!(names.len() >= 3, "{names:?}");
    for name in names {
        assert!(reference.contains(&format!("| `{name}` |")), "{name} is no option");
    }
}

#[test]
fn paths_and_commands_are_the_services() {
    let templates = templates();
    let help = Command::new(env!("CARGO_BIN_EXE_tidings")).arg("--help").output().expect("ran");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    for (argument, command) in [("args: [serve]", "serve"), ("args: [migrate]", "migrate")] {
        assert!(templates.contains(argument), "{argument}");
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command}");
    }
    let pages = read("src/web/pages.rs");
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert!(templates.contains(&format!("path: {path}")), "{path}");
        assert!(pages.contains(&format!("\"{path}\" =>")), "{path} is answered");
    }
    // A pod is killed only after the service's own deadline: beside it there is the time in which it
    // is taken out of the Service.
    let period = "terminationGracePeriodSeconds: {{ add .Values.shutdown.drainSeconds .Values.shutdown.graceSeconds 5 }}";
    assert!(templates.contains(period));
}
