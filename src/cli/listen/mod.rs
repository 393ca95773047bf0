//! `tidings listen`: a receiver on this machine, which verifies signatures and prints what arrives.

pub mod receiver;
mod show;
pub mod verify;

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use hyper::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::Error;
use super::output::{self, Output, Style, time};
use crate::domain::signature::{HMAC_HEADER, PublicKey, STRIPE_HEADER};
use crate::shutdown::Signals;
use receiver::{Answer, Arrival};
use verify::{Verdict, Verifier};

/// Arrivals that may wait for being printed; beyond that senders wait.
const WAITING: usize = 64;

const EXAMPLES: &str = "\
Examples:
  tidings listen --secret whsec_…                    verify; answer 401 to what is not signed right
  tidings listen --public-key whpk_…                verify standard-webhooks-ed25519 without a secret
  tidings listen --port 9000 --fail-first 2          fail the first 2 attempts of every delivery
  tidings listen --status 503 --delay 2s             a slow receiver in trouble
  tidings listen --json | jq -r .body                one JSON document per request

Every signature that is there must be right, and one at least must be there: webhook-signature \
(v1 with the secret, v1a with the public key), X-Signature, X-Hub-Signature-256, Stripe-Signature. \
Timestamps may be 5 minutes old. `docs/webhooks.md` has the same in Python, Node.js, Go and Rust.

Let the service reach this machine, and point a subscription here:
  tidings serve --allow-cidr 127.0.0.0/8 --allow-http
  tidings subscriptions create --url http://127.0.0.1:9000/ --event-type '*'
  tidings subscriptions test sub_01k…";

/// Receive webhooks locally, verify their signatures and print them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    output: output::Options,

    /// The port to listen on; 0 takes a free one
    #[arg(long, short, value_name = "PORT", default_value_t = 9000)]
    port: u16,
    /// The address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// The signing secret; may be given several times while one is being replaced
    #[arg(
        long = "secret",
        short,
        value_name = "SECRET",
        env = "TIDINGS_WEBHOOK_SECRET",
        hide_env_values = true,
        value_delimiter = ','
    )]
    secrets: Vec<String>,
    /// A public key, for `standard-webhooks-ed25519`; may be given several times
    #[arg(
        long = "public-key",
        value_name = "WHPK",
        env = "TIDINGS_WEBHOOK_PUBLIC_KEY",
        value_delimiter = ',',
        value_parser = str::parse::<PublicKey>
    )]
    public_keys: Vec<PublicKey>,
    /// The header of the plain HMAC signature
    #[arg(long, value_name = "NAME", default_value = HMAC_HEADER)]
    signature_header: String,
    /// The header of the signature in Stripe's form
    #[arg(long, value_name = "NAME", default_value = STRIPE_HEADER)]
    stripe_signature_header: String,
    /// The status to answer with
    #[arg(long, value_name = "STATUS", default_value = "200", value_parser = parse_status)]
    status: StatusCode,
    /// Answer 500 to the first so many attempts of every delivery
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    fail_first: u32,
    /// Wait before answering
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = time::parse_duration)]
    delay: Duration,
    /// Also print all headers
    #[arg(long)]
    headers: bool,
    /// Print one line per request, without the body
    #[arg(long, short, conflicts_with = "headers")]
    quiet: bool,
    /// End after so many requests
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
}

/// A request, what its signatures say, and what is answered.
struct Shown {
    arrival: Arrival,
    verdict: Verdict,
    answer: Answer,
}

/// Receives until Ctrl-C, or `--limit`.
///
/// # Errors
/// When the port is taken.
pub async fn run(args: Args) -> Result<ExitCode, Error> {
    let output = Output::new(args.output);
    let address = SocketAddr::new(args.host, args.port);
    let listener = TcpListener::bind(address).await.map_err(|error| {
        Error::failure(format!("cannot listen on {address}: {error}"))
            .hint("--port 0 takes a free port")
    })?;
    let behaviour = Behaviour::of(&args);
    welcome(output, &behaviour.verifier, listener.local_addr()?);
    let (sender, arrivals) = mpsc::channel(WAITING);
    let server = receiver::serve(listener, move |arrival| {
        let (behaviour, sender) = (behaviour.clone(), sender.clone());
        async move { behaviour.receive(arrival, &sender).await }
    });
    let mut signals = Signals::install()?;
    output::ended(tokio::select! {
        () = server => Ok(()),
        result = print(output, &args, arrivals) => result,
        _ = signals.next() => Ok(()),
    })
}

async fn print(
    output: Output,
    args: &Args,
    mut arrivals: mpsc::Receiver<Shown>,
) -> Result<(), Error> {
    let mut left = args.limit.unwrap_or(u64::MAX);
    while let Some(shown) = arrivals.recv().await {
        if output.is_json() {
            show::json(output, &shown)?;
        } else {
            show::people(output, &shown, args)?;
        }
        left -= 1;
        if left == 0 {
            // The answer to this last request is on its way; give it the time to leave.
            tokio::time::sleep(args.delay + Duration::from_millis(100)).await;
            break;
        }
    }
    Ok(())
}

/// How requests are answered.
#[derive(Clone)]
struct Behaviour {
    verifier: Verifier,
    status: StatusCode,
    fail_first: u32,
    delay: Duration,
}

impl Behaviour {
    fn of(args: &Args) -> Self {
        let secrets = args.secrets.iter().filter(|secret| !secret.is_empty()).cloned().collect();
        let verifier = Verifier {
            secrets,
            public_keys: args.public_keys.clone(),
            signature_header: args.signature_header.clone(),
            stripe_signature_header: args.stripe_signature_header.clone(),
        };
        let (status, fail_first, delay) = (args.status, args.fail_first, args.delay);
        Self { verifier, status, fail_first, delay }
    }

    async fn receive(&self, arrival: Arrival, shown: &mpsc::Sender<Shown>) -> Answer {
        let verdict = self.verifier.verify(&arrival.headers, &arrival.body, arrival.time);
        let answer = self.answer(&arrival, &verdict);
        // When nobody prints any more, the command is ending.
        let _ = shown.send(Shown { arrival, verdict, answer }).await;
        tokio::time::sleep(self.delay).await;
        answer
    }

    fn answer(&self, arrival: &Arrival, verdict: &Verdict) -> Answer {
        if matches!(verdict, Verdict::Refused(_)) {
            return Answer { status: StatusCode::UNAUTHORIZED, body: "signature refused\n" };
        }
        if (1..=self.fail_first).contains(&arrival.attempt()) {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return Answer { status, body: "failing as told by --fail-first\n" };
        }
        Answer { status: self.status, body: "" }
    }
}

fn welcome(output: Output, verifier: &Verifier, address: SocketAddr) {
    if output.is_json() {
        output.note(&format!("listening on http://{address}/"));
        return;
    }
    let checks = if verifier.is_blind() {
        let advice = "signatures are not verified (give --secret or --public-key)";
        output.paint(Style::Pending, advice)
    } else {
        output.paint(Style::Good, "signatures are verified")
    };
    output.note(&format!("listening on http://{address}/ · {checks} · Ctrl-C ends"));
}

fn parse_status(text: &str) -> Result<StatusCode, String> {
    StatusCode::from_bytes(text.as_bytes())
        .ok()
        .filter(|status| (200..600).contains(&status.as_u16()))
        .ok_or_else(|| format!("`{text}` is no final HTTP status; write 200 to 599"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use hyper::header::HeaderValue;
    use hyper::{HeaderMap, Method};

    use super::*;

    fn attempt(number: &'static str) -> Arrival {
        let mut headers = HeaderMap::new();
        headers.insert("tidings-attempt", HeaderValue::from_static(number));
        let (method, path) = (Method::POST, "/".into());
        Arrival { time: time::now(), method, path, headers, body: Bytes::new() }
    }

    #[test]
    fn the_first_attempts_fail_when_asked() {
        let verifier = Verifier::new(Vec::new(), Vec::new());
        let behaviour = Behaviour {
            verifier,
            status: StatusCode::NO_CONTENT,
            fail_first: 2,
            delay: Duration::ZERO,
        };
        let status = |number| behaviour.answer(&attempt(number), &Verdict::Unchecked).status;
        assert_eq!(["1", "2", "3", "x"].map(|n| status(n).as_u16()), [500, 500, 204, 204]);
        let refused = Verdict::Refused("no".into());
        assert_eq!(behaviour.answer(&attempt("3"), &refused).status, StatusCode::UNAUTHORIZED);
    }

    #[test]
    fn only_final_statuses_can_be_answered() {
        assert_eq!(parse_status("410"), Ok(StatusCode::GONE));
        for text in ["100", "600", "ok", ""] {
            assert!(parse_status(text).is_err(), "{text}");
        }
    }
}
