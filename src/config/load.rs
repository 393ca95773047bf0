//! Reading the options: flag, then variable, then file, then default.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::{env, fs, io};

use toml::{Table, Value};

use super::flags::{DEFAULT_FILE, FILE_VARIABLE, Given};
use super::options::{Declaration, declarations};
use super::secret::{self, MasterKeyFile};
use super::{Invalid, Options, unknown};

/// What surrounds the process: its variables and where it looks for its file.
#[derive(Clone, Default)]
pub struct Environment {
    /// Variables that start with `TIDINGS_`.
    pub variables: BTreeMap<String, String>,
    /// Those that something else reads. What is neither here nor an option is an error.
    pub others: BTreeSet<String>,
    /// The folder of the default file.
    pub folder: PathBuf,
}

/// Tells the variables' names: their values may be secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.variables.keys().collect();
        f.debug_struct("Environment").field("variables", &names).finish_non_exhaustive()
    }
}

impl Environment {
    /// The process's own; `others` are the variables that client commands read. A variable that is
    /// not UTF-8 counts as not set.
    pub fn of_process(others: BTreeSet<String>) -> Self {
        let variables = env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("TIDINGS_"))
            .collect();
        Self { variables, others, folder: PathBuf::new() }
    }

    /// A variable's value; one that is empty counts as not set.
    fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This flag.
    Flag(String),
    /// This variable.
    Variable(String),
    /// The file.
    File(PathBuf),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "--{flag}"),
            Self::Variable(variable) => f.write_str(variable),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// An option's value for showing.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The heading under which it is documented.
    pub group: &'static str,
    /// Its key in the file.
    pub key: String,
    /// Its value without secrets; `None` when it is not set.
    pub value: Option<Value>,
    /// Where it comes from.
    pub origin: Origin,
}

/// The options and where each comes from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values.
    pub options: Options,
    origins: Vec<Origin>,
}

impl Loaded {
    /// Every option's value, in the order of the documentation.
    pub fn shown(&self) -> impl Iterator<Item = Shown> {
        declarations().iter().zip(&self.origins).map(|(declaration, origin)| Shown {
            group: declaration.group,
            key: declaration.key.clone(),
            value: (declaration.show)(&self.options),
            origin: origin.clone(),
        })
    }

    pub(super) fn read(given: &Given, environment: &Environment) -> Result<Self, Invalid> {
        let mut problems = Vec::new();
        let file = File::read(given, environment, &mut problems);
        problems.extend(unknown::variables(environment));
        let mut options = Options::default();
        let mut origins = Vec::with_capacity(declarations().len());
        for declaration in declarations() {
            let (origin, text) = find(declaration, given, environment, &file);
            if let Some(text) = text
                && let Err(right) = text.and_then(|text| (declaration.set)(&mut options, &text))
            {
                problems.push(problem(declaration, &origin, &right));
            }
            origins.push(origin);
        }
        if let Some(text) = environment.variable(secret::VARIABLE) {
            if options.master_key_file.is_file() {
                problems.push(format!(
                    "{} and master-key-file are both set: one of them must go",
                    secret::VARIABLE
                ));
            } else {
                options.master_key_file = MasterKeyFile::in_variable(text.to_owned());
                let places = declarations().iter().zip(&mut origins);
                for (_, origin) in places.filter(|(known, _)| known.key == "master-key-file") {
                    *origin = Origin::Variable(secret::VARIABLE.into());
                }
            }
        }
        if problems.is_empty() {
            problems = options.conflicts();
        }
        if problems.is_empty() { Ok(Self { options, origins }) } else { Err(Invalid(problems)) }
    }
}

/// The value as text, or what would be right in its place.
type Text = Result<String, String>;

fn find(
    declaration: &Declaration,
    given: &Given,
    environment: &Environment,
    file: &File,
) -> (Origin, Option<Text>) {
    let key = &declaration.key;
    if let Some(text) = given.values.get(key) {
        return (Origin::Flag(declaration.flag.clone()), Some(Ok(text.clone())));
    }
    if let Some(text) = environment.variable(&declaration.variable) {
        return (Origin::Variable(declaration.variable.clone()), Some(Ok(text.to_owned())));
    }
    if let Some(value) = file.table.get(key) {
        return (Origin::File(file.path.clone()), Some(text_of(value)));
    }
    (Origin::Default, None)
}

/// The problem in a sentence. The wrong value is not repeated: it may be a secret.
fn problem(declaration: &Declaration, origin: &Origin, right: &str) -> String {
    match origin {
        Origin::File(path) => {
            format!("{} in {} must be {right}", declaration.key, path.display())
        }
        origin => format!("{origin} must be {right}"),
    }
}

/// A value of the file as the text that a flag would have.
fn text_of(value: &Value) -> Text {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(value) => Ok(value.to_string()),
        Value::Array(values) => {
            let texts: Result<Vec<_>, _> = values.iter().map(text_of).collect();
            Ok(texts?.join(","))
        }
        Value::Datetime(_) | Value::Table(_) => {
            Err("a string, a number, a boolean or a list".into())
        }
    }
}

/// The file's content; empty when there is none.
#[derive(Debug, Default)]
struct File {
    path: PathBuf,
    table: Table,
}

impl File {
    fn read(given: &Given, environment: &Environment, problems: &mut Vec<String>) -> Self {
        let named =
            given.file.clone().or_else(|| environment.variable(FILE_VARIABLE).map(PathBuf::from));
        let is_named = named.is_some();
        let path = named.unwrap_or_else(|| environment.folder.join(DEFAULT_FILE));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => {
                return Self::default();
            }
            Err(error) => {
                problems.push(format!("{} (--config) cannot be read: {error}", path.display()));
                return Self::default();
            }
        };
        match text.parse::<Table>() {
            Ok(table) => {
                problems.extend(unknown::keys(&path, &table));
                Self { path, table }
            }
            Err(error) => {
                // The error's own rendering would show the line, which may hold a password.
                let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count());
                let message = error.message().trim_end();
                problems.push(format!("{} line {}: {message}", path.display(), line + 1));
                Self::default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    fn given(values: &[(&str, &str)]) -> Given {
        let values = values.iter().map(|(key, text)| ((*key).into(), (*text).into())).collect();
        Given { file: None, values }
    }

    fn environment(folder: &Path, variables: &[(&str, &str)]) -> Environment {
        let variables =
            variables.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
        Environment { variables, folder: folder.into(), ..Environment::default() }
    }

    #[test]
    fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let file = "lease-ttl = '20s'\nmax-in-flight = 5\nqueue-size = 6\nallow-http = true\n\
                    allow-cidrs = ['127.0.0.0/8', '10.0.0.0/8']";
        fs::write(folder.path().join(DEFAULT_FILE), file).unwrap();
        let variables = [
            ("TIDINGS_LEASE_TTL", "30s"),
            ("TIDINGS_MAX_IN_FLIGHT", "7"),
            ("TIDINGS_QUEUE_SIZE", ""),
        ];
        let environment = environment(folder.path(), &variables);
        let loaded = Loaded::read(&given(&[("lease-ttl", "40s")]), &environment).unwrap();
        let options = &loaded.options;
        assert_eq!(options.lease_ttl, Duration::from_secs(40));
        assert_eq!(options.max_in_flight, 7);
        assert_eq!(options.queue_size, 6, "an empty variable counts as not set");
        assert_eq!(options.emit_queue_size, 10_000);
        assert!(options.allow_http);
        assert_eq!(options.allow_cidrs.len(), 2);
        let origins: Vec<_> = loaded
            .shown()
            .filter(|shown| ["lease-ttl", "max-in-flight"].contains(&shown.key.as_str()))
            .map(|shown| shown.origin.to_string())
            .collect();
        assert_eq!(origins, ["TIDINGS_MAX_IN_FLIGHT", "--lease-ttl"]);
    }

    #[test]
    fn all_wrong_options_are_told_at_once_without_their_values() {
        let folder = tempfile::tempdir().unwrap();
        let file = "grpc_addr = '0.0.0.0:1'\nhttp-adr = 1\npoll-interval = 12";
        fs::write(folder.path().join(DEFAULT_FILE), file).unwrap();
        let variables = [
            ("TIDINGS_DATABASE_URL", "mysql://me:hunter2@db/x"),
            ("TIDINGS_IDEMPOTENCY_RETENTION", "1h"),
        ];
        let environment = environment(folder.path(), &variables);
        let error = Loaded::read(&given(&[("allow-cidrs", "1.2.3")]), &environment).unwrap_err();
        let text = error.to_string();
        for (index, part) in [
            "grpc_addr in ",
            "http-adr in ",
            "TIDINGS_DATABASE_URL must be sqlite://path or postgres://",
            "--allow-cidr must be networks such as 127.0.0.0/8",
            "poll-interval in ",
            "TIDINGS_IDEMPOTENCY_RETENTION must be between 24h and 365d",
        ]
        .into_iter()
        .enumerate()
        {
            assert!(error.problems()[index].starts_with(part), "{part}: {text}");
        }
        assert!(text.contains("must be written grpc-addr"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn a_file_that_is_named_must_exist_and_be_toml() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing.toml");
        let given = Given { file: Some(missing), ..Given::default() };
        let error = Loaded::read(&given, &Environment::default()).unwrap_err();
        assert!(error.to_string().contains("missing.toml (--config) cannot be read"), "{error}");
        let bad = folder.path().join("bad.toml");
        fs::write(&bad, "queue-size = 1\ndatabase-url = hunter2").unwrap();
        let variables = [(FILE_VARIABLE, bad.to_str().unwrap())];
        let environment = environment(folder.path(), &variables);
        let error = Loaded::read(&Given::default(), &environment).unwrap_err();
        assert!(error.to_string().contains("bad.toml line 2: "), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn a_master_key_comes_from_one_place_and_is_never_shown() {
        let variables = [("TIDINGS_MASTER_KEY", "tdmk_hunter2")];
        let mut environment = environment(Path::new("/nowhere"), &variables);
        assert!(!format!("{environment:?}").contains("hunter2"));
        let loaded = Loaded::read(&Given::default(), &environment).unwrap();
        assert!(!format!("{loaded:?}").contains("hunter2"));
        let shown = loaded.shown().find(|shown| shown.key == "master-key-file").unwrap();
        assert_eq!((shown.value, shown.origin.to_string()), (None, "TIDINGS_MASTER_KEY".into()));
        let name = "TIDINGS_MASTER_KEY_FILE".to_owned();
        environment.variables.insert(name, "/etc/master.key".into());
        let error = Loaded::read(&Given::default(), &environment).unwrap_err().to_string();
        assert!(error.contains("both set") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        let given = given(&[("grpc-addr", "127.0.0.1:8080"), ("poll-interval", "20s")]);
        let error = Loaded::read(&given, &Environment::default()).unwrap_err();
        assert_eq!(error.problems().len(), 2, "{error}");
    }
}
