//! The reference documentation of all options, made from their declarations.

use std::fmt::Write;

use super::options::{Declaration, declarations};
use super::setting::Shape;

const INTRODUCTION: &str = "\
# Configuration

Every option can be given as a flag, as an environment variable, or in a TOML file; a flag wins over
a variable, a variable over the file, the file over the default. The file is the one that `--config`
or `TIDINGS_CONFIG` names, or else `tidings.toml` in the current folder, if there is one. Its keys
are the names in the first column. An empty variable counts as not set.

`tidings config` prints the effective value of every option and where it comes from, with secrets
masked. All wrong options are reported at once, before anything is started. So is a key of the file or
a `TIDINGS_…` variable that is no option, with the nearest name: nothing misspelt is ignored. The
variables of the client commands (`TIDINGS_ENDPOINT` and the like) and those that Kubernetes makes for
services (`TIDINGS_SERVICE_HOST`, `TIDINGS_PORT_50051_TCP` and so on) may stand beside them.

Secrets in the database are sealed under a master key: `master-key-file` names the file with it, or the
variable `TIDINGS_MASTER_KEY` holds it; no flag and no file of options does. See
[secrets.md](secrets.md). Lines that libraries log below `info` are never written, whatever
`log-filter` says, because they may quote secrets.

Durations are whole numbers with units: `500ms`, `15s`, `5m`, `1h30m`, `30d`.
";

const EXAMPLE: &str = "
## Example

```toml
grpc-addr = \"0.0.0.0:50051\"
database-url = \"postgres://tidings@db.internal/tidings\"
allow-cidrs = [\"10.20.0.0/16\"]
event-retention = \"90d\"
log-format = \"json\"
```
";

/// The text of `docs/configuration.md` behind its first line, which names the generator.
pub fn configuration_markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    let mut group = "";
    for declaration in declarations() {
        if declaration.group != group {
            group = declaration.group;
            let _ = write!(
                text,
                "\n## {group}\n\n| option | flag | variable | default (range) | what it is |\n\
                 |---|---|---|---|---|\n"
            );
        }
        text.push_str(&row(declaration));
    }
    text.push_str(EXAMPLE);
    text
}

fn row(declaration: &Declaration) -> String {
    let flag = match declaration.shape {
        Shape::Switch => format!("--{}", declaration.flag),
        Shape::One | Shape::Many => {
            format!("--{} {}", declaration.flag, declaration.value_name)
        }
    };
    let mut default = match declaration.default {
        "" => "none".to_owned(),
        default => format!("`{default}`"),
    };
    if let Some((least, most)) = declaration.range {
        let _ = write!(default, " ({least} to {most})");
    }
    format!(
        "| `{}` | `{flag}` | `{}` | {default} | {} |\n",
        declaration.key,
        declaration.variable,
        declaration.help.replace('|', "\\|"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
        let written = std::fs::read_to_string(path).unwrap();
        let (_, written) = written.split_once('\n').unwrap();
        assert_eq!(written, configuration_markdown(), "run: make generate");
    }
}
