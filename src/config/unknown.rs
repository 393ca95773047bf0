//! Names that no option has: what is misspelt is told, with the nearest name, and not ignored.
//!
//! An option that is silently not read is worse than one that is refused: a service that was meant
//! to deny a network would call it. All known names come from the options' declarations.

use std::path::Path;

use toml::Table;

use super::flags::FILE_VARIABLE;
use super::load::Environment;
use super::options::declarations;
use super::secret;

/// What our tests are configured with.
const TEST_PREFIX: &str = "TIDINGS_TEST_";
/// How alike two names must be, from 0 to 1, for one to be suggested in place of the other.
const MIN_LIKENESS: f64 = 0.7;

/// The variables that nothing reads, each as a problem.
pub(super) fn variables(environment: &Environment) -> Vec<String> {
    let known = || {
        let options = declarations().iter().map(|declaration| declaration.variable.as_str());
        options.chain([FILE_VARIABLE, secret::VARIABLE])
    };
    let is_read = |name: &str| {
        known().any(|known| known == name)
            || environment.others.contains(name)
            || name.starts_with(TEST_PREFIX)
    };
    let set = environment.variables.iter().filter(|(_, value)| !value.is_empty());
    set.filter(|(name, value)| !is_read(name) && !is_service_link(name, value))
        .map(|(name, _)| format!("{name} is no option{}", suggestion(name, known())))
        .collect()
}

/// The keys of the file that nothing reads, each as a problem.
pub(super) fn keys(path: &Path, table: &Table) -> Vec<String> {
    let known = || declarations().iter().map(|declaration| declaration.key.as_str());
    let unknown = table.keys().filter(|key| known().all(|known| known != *key));
    unknown
        .map(|key| {
            let wanted = key.replace('_', "-").to_ascii_lowercase();
            let same = declarations().iter().find(|d| d.key == wanted || d.flag == wanted);
            if let Some(same) = same {
                return format!("{key} in {} must be written {}", path.display(), same.key);
            }
            format!("{key} in {} is no option{}", path.display(), suggestion(&wanted, known()))
        })
        .collect()
}

/// `; did you mean …?`, if a name is near.
fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let likeness = |known: &'a str| (strsim::normalized_damerau_levenshtein(name, known), known);
    let nearest = known.map(likeness).max_by(|(one, _), (other, _)| one.total_cmp(other));
    match nearest {
        Some((likeness, known)) if likeness >= MIN_LIKENESS => format!("; did you mean {known}?"),
        _ => String::new(),
    }
}

/// Whether Kubernetes made the variable for a service of ours (`tidings`, `tidings-http`): it puts
/// the addresses of all services of a namespace into every container
/// (<https://kubernetes.io/docs/tutorials/services/connect-applications-service/>).
fn is_service_link(name: &str, value: &str) -> bool {
    let of_port = || {
        let (_, rest) = name.split_once("_PORT_")?;
        let (number, protocol) = rest.split_once('_')?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        Some(is_number && ["TCP", "UDP", "SCTP"].iter().any(|known| protocol.starts_with(known)))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || (name.ends_with("_PORT") && value.contains("://"))
        || of_port() == Some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(variables: &[(&str, &str)], others: &[&str]) -> Vec<String> {
        let variables =
            variables.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let others = others.iter().map(|name| (*name).into()).collect();
        super::variables(&Environment { variables, others, ..Environment::default() })
    }

    #[test]
    fn a_misspelt_variable_is_told_with_the_nearest_name() {
        let given = [
            ("TIDINGS_DENY_CIDR", "10.0.0.0/8"),
            ("TIDINGS_GRPC_ADRR", "127.0.0.1:1"),
            ("TIDINGS_UNICORNS", "many"),
            ("TIDINGS_HTTP_PORT", "8080"),
        ];
        assert_eq!(
            problems(&given, &[]),
            [
                "TIDINGS_DENY_CIDR is no option; did you mean TIDINGS_DENY_CIDRS?",
                "TIDINGS_GRPC_ADRR is no option; did you mean TIDINGS_GRPC_ADDR?",
                "TIDINGS_HTTP_PORT is no option; did you mean TIDINGS_HTTP_ADDR?",
                "TIDINGS_UNICORNS is no option",
            ]
        );
    }

    #[test]
    fn variables_of_others_are_no_concern() {
        for declaration in declarations() {
            assert_eq!(problems(&[(&declaration.variable, "x")], &[]), [""; 0]);
        }
        let given = [
            ("TIDINGS_CONFIG", "tidings.toml"),
            ("TIDINGS_TEST_POSTGRES_URL", "postgres://"),
            ("TIDINGS_UNICORNS", ""),
            ("TIDINGS_TENANT", "ten_1"),
            // What Kubernetes adds for services named tidings and tidings-http.
            ("TIDINGS_SERVICE_HOST", "10.1.2.3"),
            ("TIDINGS_SERVICE_PORT", "50051"),
            ("TIDINGS_SERVICE_PORT_GRPC", "50051"),
            ("TIDINGS_PORT", "tcp://10.1.2.3:50051"),
            ("TIDINGS_HTTP_PORT", "tcp://10.1.2.3:8080"),
            ("TIDINGS_PORT_50051_TCP", "tcp://10.1.2.3:50051"),
            ("TIDINGS_PORT_50051_TCP_ADDR", "10.1.2.3"),
        ];
        assert_eq!(problems(&given, &["TIDINGS_TENANT"]), [""; 0]);
    }

    #[test]
    fn a_key_of_the_file_is_told_as_it_must_be_written() {
        let table = "grpc_addr = 1\nallow-cidr = 1\nhttp-adr = 1\nunicorns = 1\nqueue-size = 1";
        let table: Table = table.parse().unwrap();
        assert_eq!(
            keys(Path::new("t.toml"), &table),
            [
                "allow-cidr in t.toml must be written allow-cidrs",
                "grpc_addr in t.toml must be written grpc-addr",
                "http-adr in t.toml is no option; did you mean http-addr?",
                "unicorns in t.toml is no option",
            ]
        );
    }
}
