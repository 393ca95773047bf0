//! Programs that share no code with us, in `tests/foreign`; `make test` installs what they need.
//!
//! Captured requests go to each program as one document, and one line comes back for each: one
//! process per language, however many libraries and requests there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::{Value, json};
use tidings::api::proto::SignatureScheme;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::receiver::Captured;

/// The snippet that `docs/webhooks.md` gives to receivers in Rust.
#[expect(unreachable_pub, reason = "in a receiver it is a module of its own")]
#[path = "../../../examples/receivers/verify.rs"]
mod example;

/// For a program to start, work and end on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);
/// What the libraries say of a signature that was read, and is wrong. A forgery must be refused for
/// this and not for a header that nobody could have read.
const REFUSALS: [&str; 5] = [
    // standardwebhooks, svix
    "No matching signature found",
    // stripe
    "No signatures found matching the expected signature",
    // PyNaCl
    "BadSignatureError",
    // standardwebhooks of crates.io
    "signature invalid",
    // @octokit/webhooks-methods and the examples, which answer yes or no
    "no match",
];

/// What they say of a signature that is right, and too old.
const REPLAYS: [&str; 4] = [
    // standardwebhooks, svix
    "Message timestamp too old",
    // stripe
    "Timestamp outside the tolerance zone",
    // standardwebhooks of crates.io
    "signature timestamp too old",
    // the examples, which answer yes or no
    "no match",
];
/// A library that verifies signatures and knows nothing of webhooks and their timestamps.
const TIMELESS: &str = "PyNaCl (PyPI)";

/// All schemes that sign, by their names in the contract.
pub(crate) const SCHEMES: [SignatureScheme; 5] = [
    SignatureScheme::StandardWebhooks,
    SignatureScheme::StandardWebhooksEd25519,
    SignatureScheme::HmacSha256Hex,
    SignatureScheme::Github,
    SignatureScheme::Stripe,
];

/// What `make test` says about a program that is not ours.
pub(crate) fn tool(variable: &str) -> OsString {
    std::env::var_os(variable).unwrap_or_else(|| {
        panic!(
            "{variable} is not set: run the tests with `make test`, which installs what they need"
        )
    })
}

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A program without our variables and without a proxy, which ends with the test.
pub(crate) fn command(program: impl Into<OsString>, script: Option<&str>) -> Command {
    let mut command = Command::new(program.into());
    command.args(script.map(in_repository)).kill_on_drop(true);
    let ours = |name: &str| name.starts_with("TIDINGS_") || name.to_lowercase().ends_with("_proxy");
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command
}

/// A Python script of the repository.
pub(crate) fn python(script: &str) -> Command {
    let mut command = command(tool("TIDINGS_TEST_PYTHON"), Some(script));
    // Tests leave nothing in the source tree.
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// A Node.js script of the repository.
pub(crate) fn node(script: &str) -> Command {
    let packages = tool("TIDINGS_TEST_NODE_PATH");
    let mut command = command("node", Some(script));
    command.env("TIDINGS_TEST_NODE_PATH", packages);
    command
}

/// Gives `items` to a program, and reads its line for each.
pub(crate) async fn ask(mut program: Command, items: &[impl Serialize]) -> Vec<Value> {
    let input = serde_json::to_vec(items).expect("JSON");
    let mut child = program
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut stdin = child.stdin.take().expect("piped");
    let feed = async move {
        // A program that has ended reads no more; its exit code tells why.
        let _ = stdin.write_all(&input).await;
    };
    let ended = tokio::time::timeout(PATIENCE, async {
        tokio::join!(feed, child.wait_with_output()).1.expect("waited")
    });
    let output = ended.await.expect("ends in time");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let said: Vec<_> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(said.len(), items.len(), "one line for each item");
    said
}

/// What a receiver knows of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) secret: String,
    pub(crate) public_key: String,
}

/// A request as it was captured, or forged from one, for libraries to verify.
#[derive(Clone)]
pub(crate) struct Item {
    what: &'static str,
    schemes: Vec<SignatureScheme>,
    known: Known,
    headers: HashMap<String, String>,
    body: Bytes,
}

impl Item {
    /// A request that `schemes` should have signed.
    pub(crate) fn captured(request: &Captured, schemes: &[SignatureScheme], known: &Known) -> Self {
        Self {
            what: "captured",
            schemes: schemes.to_vec(),
            known: known.clone(),
            headers: request.headers.iter().cloned().collect(),
            body: request.body.clone(),
        }
    }

    /// This, for those of the schemes alone that cover what is changed by `change`.
    fn forged(
        &self,
        what: &'static str,
        covered_by: &[SignatureScheme],
        change: impl FnOnce(&mut Self),
    ) -> Self {
        let mut forged = Self { what, ..self.clone() };
        forged.schemes.retain(|scheme| covered_by.contains(scheme));
        change(&mut forged);
        forged
    }

    fn header(&mut self, name: &str, change: impl FnOnce(&str) -> String) {
        if let Some(value) = self.headers.get_mut(name) {
            let changed = change(value);
            assert_ne!(changed, *value, "{name} is changed");
            *value = changed;
        }
    }

    /// Everything that an attacker without the secret would change.
    pub(crate) fn forgeries(&self, other_id: &str, other: &Known) -> Vec<Self> {
        use SignatureScheme::{StandardWebhooks, StandardWebhooksEd25519, Stripe};
        const STANDARD: [SignatureScheme; 2] = [StandardWebhooks, StandardWebhooksEd25519];
        assert!(self.known.secret != other.secret && self.known.public_key != other.public_key);
        let later = |seconds: &str| {
            let seconds: i64 = seconds.parse().expect("seconds");
            (seconds + 1).to_string()
        };
        let mut forged = vec![
            self.forged("a longer body", &SCHEMES, |item| {
                item.body = [&item.body[..], b" "].concat().into();
            }),
            // The first byte of JSON is ASCII, and stays it: the body must be wrong, not unreadable.
            self.forged("a changed body", &SCHEMES, |item| {
                let mut body = item.body.to_vec();
                body[0] ^= 1;
                item.body = body.into();
            }),
            self.forged("another id", &STANDARD, |item| {
                item.header("webhook-id", |_| other_id.to_owned());
            }),
            self.forged("another time", &STANDARD, |item| {
                item.header("webhook-timestamp", later);
            }),
            self.forged("another time", &[Stripe], |item| {
                item.header("stripe-signature", |value| {
                    let (time, rest) = value.split_once(',').expect("t=…,v1=…");
                    format!("t={},{rest}", later(&time[2..]))
                });
            }),
            self.forged("another secret", &SCHEMES, |item| item.known = other.clone()),
            self.forged("a changed signature", &SCHEMES, |item| {
                for (name, starts) in [
                    ("webhook-signature", &["v1,", "v1a,"][..]),
                    ("x-signature", &[""]),
                    ("x-hub-signature-256", &["sha256="]),
                    ("stripe-signature", &["v1="]),
                ] {
                    item.header(name, |value| starts.iter().fold(value.to_owned(), one_off));
                }
            }),
        ];
        forged.retain(|item| !item.schemes.is_empty());
        forged
    }

    fn json(&self) -> Value {
        json!({
            "schemes": self.schemes.iter().map(|scheme| key(*scheme)).collect::<Vec<_>>(),
            "secret": self.known.secret,
            "public_key": self.known.public_key,
            "headers": self.headers,
            "body_base64": BASE64.encode(&self.body),
        })
    }
}

/// A value with the first digit of each signature changed, which stands behind `start`.
#[expect(clippy::needless_pass_by_value, reason = "as `fold` wants it")]
fn one_off(value: String, start: &&str) -> String {
    let mut changed = value.clone().into_bytes();
    let places = value.match_indices(start).map(|(place, _)| place + start.len());
    let limit = if start.is_empty() { 1 } else { usize::MAX };
    for place in places.take(limit) {
        changed[place] = if changed[place] == b'0' { b'1' } else { b'0' };
    }
    String::from_utf8(changed).expect("UTF-8")
}

/// A scheme as the programs name it.
fn key(scheme: SignatureScheme) -> String {
    scheme.as_str_name().trim_start_matches("SIGNATURE_SCHEME_").to_lowercase()
}

/// How often each library verified a scheme, and how often it refused one.
#[derive(Debug, Default)]
pub(crate) struct Matrix(BTreeMap<(String, String), (usize, usize)>);

impl Matrix {
    /// The libraries that know `scheme`.
    pub(crate) fn libraries(&self, scheme: SignatureScheme) -> BTreeSet<&str> {
        let cells = self.0.keys().filter(|(known, _)| *known == key(scheme));
        cells.map(|(_, library)| library.as_str()).collect()
    }

    /// How often each library verified and refused `scheme`: the same for all.
    pub(crate) fn counts(&self, scheme: SignatureScheme) -> BTreeSet<(usize, usize)> {
        let cells = self.0.iter().filter(|((known, _), _)| *known == key(scheme));
        cells.map(|(_, counts)| *counts).collect()
    }

    pub(crate) fn print(&self) {
        for ((scheme, library), (verified, refused)) in &self.0 {
            println!("{scheme:26} {library:32} {verified:4} verified, {refused:4} refused");
        }
    }
}

/// What the libraries of all languages say of `genuine` requests, which must hold, and of `forged`
/// ones, which must not.
pub(crate) async fn verify(genuine: &[Item], forged: &[Item]) -> Matrix {
    verify_against(genuine, forged, &REFUSALS).await
}

/// What the libraries say of `genuine` requests, which must hold, and of `replayed` ones, whose
/// signatures hold and which are too old. No scheme without a timestamp may be among those.
pub(crate) async fn verify_in_time(genuine: &[Item], replayed: &[Item]) -> Matrix {
    verify_against(genuine, replayed, &REPLAYS).await
}

async fn verify_against(genuine: &[Item], forged: &[Item], refusals: &[&str]) -> Matrix {
    assert!(!genuine.is_empty() && !forged.is_empty(), "nothing was verified");
    let items = [genuine, forged].concat();
    let mut matrix = Matrix::default();
    for said in ask_everybody(&items).await {
        for (number, (item, said)) in items.iter().zip(&said).enumerate() {
            judge(item, (number >= genuine.len()).then_some(refusals), said, &mut matrix);
        }
    }
    matrix
}

/// What everybody says of each item: the programs of each language, and what is in Rust.
async fn ask_everybody(items: &[Item]) -> [Vec<Value>; 4] {
    let documents: Vec<_> = items.iter().map(Item::json).collect();
    let (pypi, npm, go) = tokio::join!(
        ask(python("tests/foreign/verify.py"), &documents),
        ask(node("tests/foreign/verify.mjs"), &documents),
        ask(command(tool("TIDINGS_TEST_GO_VERIFY"), None), &documents),
    );
    [pypi, npm, go, items.iter().map(by_crates).collect()]
}

/// Has the examples for receivers, in every language, look at requests that lack the headers of their
/// scheme, or have others than `headers`: they must say no, and not fail over them. Returns how often
/// one did.
pub(crate) async fn examples_refuse(headers: &[&[(&str, &str)]], known: &Known) -> usize {
    let items: Vec<_> = headers
        .iter()
        .map(|headers| Item {
            what: "without its headers",
            schemes: SCHEMES.to_vec(),
            known: known.clone(),
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            body: "{}".into(),
        })
        .collect();
    let mut refused = 0;
    for said in ask_everybody(&items).await.iter().flatten() {
        for (scheme, libraries) in said.as_object().expect("an object") {
            let libraries = libraries.as_object().expect("an object");
            let examples = libraries.iter().filter(|(library, _)| library.starts_with("examples"));
            for (example, verdict) in examples {
                let verdict = verdict.as_str().unwrap_or_else(|| panic!("{example}: accepted"));
                assert!(verdict.ends_with("no match"), "{example}, {scheme}: {verdict}");
                refused += 1;
            }
        }
    }
    refused
}

/// Notes what is said of an item, which must be refused for one of `refusals` when there are any.
fn judge(item: &Item, refusals: Option<&[&str]>, said: &Value, matrix: &mut Matrix) {
    for scheme in item.schemes.iter().map(|scheme| key(*scheme)) {
        let libraries = said[&scheme].as_object().expect("an object");
        assert!(!libraries.is_empty(), "nobody verified {scheme}");
        for (library, verdict) in libraries {
            let body = String::from_utf8_lossy(&item.body[..item.body.len().min(200)]);
            let told = format!("{library}, {scheme}, {}, {body}: {verdict}", item.what);
            let counts = matrix.0.entry((scheme.clone(), library.clone())).or_default();
            if let Some(refusals) = refusals {
                if refusals == REPLAYS && library == TIMELESS {
                    continue;
                }
                let reason = verdict.as_str().unwrap_or_else(|| panic!("accepted: {told}"));
                assert!(refusals.iter().any(|refusal| reason.contains(refusal)), "{told}");
                counts.1 += 1;
            } else {
                assert_eq!(*verdict, Value::Null, "{told}");
                counts.0 += 1;
            }
        }
    }
}

/// What a crate of others and the example in Rust say, in the form of the programs' lines.
fn by_crates(item: &Item) -> Value {
    let headers: HeaderMap = item
        .headers
        .iter()
        .map(|(name, value)| {
            let name = HeaderName::try_from(name).expect("a name");
            (name, HeaderValue::try_from(value).expect("a value"))
        })
        .collect();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs();
    let secrets = [item.known.secret.as_str()];
    let mut said = json!({});
    for scheme in &item.schemes {
        let holds = match scheme {
            SignatureScheme::StandardWebhooks => {
                let webhook = standardwebhooks::Webhook::new(secrets[0]).expect("a secret");
                let verdict = webhook.verify(&item.body, &headers).err();
                let verdict = verdict.map(|error| error.to_string());
                said[key(*scheme)]["standardwebhooks (crates.io)"] = json!(verdict);
                example::standard_webhooks(&secrets, &headers, &item.body, now)
            }
            SignatureScheme::StandardWebhooksEd25519 => {
                let keys = [item.known.public_key.as_str()];
                example::standard_webhooks_ed25519(&keys, &headers, &item.body, now)
            }
            SignatureScheme::HmacSha256Hex => {
                example::hmac_sha256_hex(&secrets, &headers, &item.body)
            }
            SignatureScheme::Github => example::github(&secrets, &headers, &item.body),
            SignatureScheme::Stripe => example::stripe(&secrets, &headers, &item.body, now),
            SignatureScheme::None | SignatureScheme::Unspecified => unreachable!("signs nothing"),
        };
        let verdict = (holds != Some(true)).then_some("no match");
        said[key(*scheme)]["examples (Rust)"] = json!(verdict);
    }
    said
}
