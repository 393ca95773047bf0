//! What the demo says before and after.

use super::super::Error;
use super::super::output::{Output, Style, Table, names};
use super::scene::{Cast, PARTS};
use super::{Args, Stage};
use crate::api::proto::{Delivery, PayloadFormat, SignatureScheme};

/// Says what there is.
///
/// # Errors
/// When nobody reads.
pub(super) fn introduce(output: Output, stage: &Stage, cast: &Cast) -> Result<(), Error> {
    let (service, folder) = (&stage.service, stage.folder.path().display());
    let title = "One Emit becomes signed webhooks: retried, recorded, watched.";
    output.line(&format!("{}  {title}", output.paint(Style::Strong, "Tidings")))?;
    output.line("")?;
    output.fields(&[
        ("  service", format!("gRPC {}  HTTP {}", service.endpoint, service.http)),
        ("  data", format!("SQLite in {folder}")),
        ("  tenant", format!("{} {}", cast.tenant.display_name, cast.tenant.id)),
    ])?;
    output.line("")?;
    let mut table = Table::new(&["SUBSCRIBER", "IS TOLD OF", "FORMAT", "SIGNATURE", "AND"]);
    for part in &PARTS {
        let signatures = part.signatures.iter().map(|scheme| match scheme {
            SignatureScheme::StandardWebhooks => "webhook-signature",
            _ => "x-signature",
        });
        let signatures: Vec<_> = signatures.collect();
        table.row([
            part.name.into(),
            part.patterns.join(" ").into(),
            names::plain::<PayloadFormat>(part.format.into()).into(),
            if signatures.len() > 1 { "both" } else { signatures[0] }.into(),
            part.role.describe().into(),
        ]);
    }
    for line in table.lines(output.is_colored()) {
        output.line(&format!("  {line}"))?;
    }
    output.line("")
}

/// Says whether all is well.
///
/// # Errors
/// When it is not: with every problem.
pub(super) fn verdict(output: Output, problems: &[String]) -> Result<(), Error> {
    output.line("")?;
    if problems.is_empty() {
        return output.line(&output.paint(Style::Good, "✓ Everything came as it should."));
    }
    let error = Error::failure("not everything came as it should");
    Err(problems.iter().fold(error, |error, problem| error.detail(problem.as_str())))
}

/// Says what to try next: commands that can be copied.
///
/// # Errors
/// When nobody reads.
pub(super) fn suggest(
    args: &Args,
    output: Output,
    stage: &Stage,
    cast: &Cast,
    deliveries: &[&Delivery],
) -> Result<(), Error> {
    let (program, service) = (program(), &stage.service);
    let command = |text: &str, why: &str| {
        let line = output.paint(Style::Accent, &format!("{program} {text}"));
        output.line(&format!("  {line}"))?;
        output.line(&output.paint(Style::Dim, &format!("      {why}")))
    };
    output.line("")?;
    output.line(&output.paint(Style::Strong, "Try next"))?;
    if !args.keep {
        command("demo --keep", "the same, left running, with commands to try on it")?;
        command("serve --allow-http --allow-cidr 127.0.0.0/8", "a service of your own")?;
        return command("--help", "all commands, and how they go together");
    }
    let variables = [
        format!("export TIDINGS_ENDPOINT={}", service.endpoint),
        format!("export TIDINGS_API_KEY={}", cast.api_key),
    ];
    for variable in variables {
        output.line(&format!("  {}", output.paint(Style::Accent, &variable)))?;
    }
    command("watch", "deliveries as they happen; leave it open in another terminal")?;
    command("emit billing.paid --data '{\"invoice_id\":1043}'", "one event, two deliveries")?;
    command("subscriptions list", "who is told of what")?;
    for delivery in deliveries {
        let why = format!("every attempt to deliver {}", delivery.event_type);
        command(&format!("deliveries show {}", delivery.id), &why)?;
    }
    let metrics = output.paint(Style::Accent, &format!("curl -s {}/metrics", service.http));
    output.line(&format!("  {metrics}"))?;
    output.line("")?;
    output.line(&format!(
        "Running until Ctrl-C. The data stays in {}.",
        stage.folder.path().display()
    ))
}

/// How this program was called, so that the commands can be copied.
fn program() -> String {
    let called = std::env::args().next().unwrap_or_default();
    if called.contains('/') { called } else { "tidings".to_owned() }
}
