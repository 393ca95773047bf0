//! The process that makes one attempt: it reads an order, says that it begins, makes the attempt and
//! writes the report. It knows no database and no other task.

use std::io::{self, Read, Write};
use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};

use super::super::{Channels, email, webhook};
use super::{BEGUN, Order};
use crate::domain::{Clock, Timestamp};

/// The service's time, carried on.
struct Since {
    started: Instant,
    origin: Timestamp,
}

impl Clock for Since {
    #[expect(clippy::disallowed_methods, reason = "this is where the steady clock comes from")]
    fn now(&self) -> Timestamp {
        self.origin.plus(self.started.elapsed())
    }
}

/// Makes the attempt that standard input orders, and reports it on standard output.
///
/// # Errors
/// When the order cannot be read or carried out, or nobody takes the report.
pub async fn make() -> io::Result<()> {
    // Whoever stops the service with all of its processes means the service: an attempt that is under
    // way ends by itself, or with its service. Otherwise a stop would look like the attempt's doing.
    let _terminate = signal(SignalKind::terminate())?;
    let mut text = zeroize::Zeroizing::new(Vec::new());
    io::stdin().read_to_end(&mut text)?;
    let order: Order = serde_json::from_slice(&text)?;
    drop(text);
    let channels = channels(&order).map_err(io::Error::other)?;
    let mut output = io::stdout().lock();
    writeln!(output, "{BEGUN}")?;
    output.flush()?;
    let attempt = AssertUnwindSafe(channels.attempt(&order.task, None)).catch_unwind().await;
    // A panic ends an attempt, not its process: no report.
    output.write_all(&serde_json::to_vec(&attempt.ok())?)?;
    output.flush()
}

fn channels(order: &Order) -> Result<Channels, Box<dyn std::error::Error + Send + Sync>> {
    let ranges = |texts: &[String]| -> Result<Vec<_>, webhook::InvalidCidr> {
        texts.iter().map(|text| webhook::Cidr::from_str(text)).collect()
    };
    let config = webhook::Config {
        allow_cidrs: ranges(&order.allow_cidrs)?,
        deny_cidrs: ranges(&order.deny_cidrs)?,
        allow_http: order.allow_http,
        ca_file: order.ca_file.clone(),
        ..webhook::Config::default()
    };
    #[expect(clippy::disallowed_methods, reason = "this is where the steady clock comes from")]
    let clock = Arc::new(Since { started: Instant::now(), origin: order.now });
    // Nobody reads the metrics of this process.
    let mut registry = Registry::default();
    let metrics = webhook::Metrics::new(&mut registry);
    let client = webhook::Client::new(&config, Arc::clone(&clock) as _, metrics)?;
    Ok(Channels::new(client, email::Mailer::new(&order.email, clock, &mut registry)?))
}
