//! What the demo says before and after.

use super::super::Error;
use super::super::output::{self, Output, Style, Table, names, table};
use super::scene::{Cast, PARTS};
use super::{Args, Stage};
use crate::api::proto::{Delivery, PayloadFormat, SignatureScheme};

/// Says what there is.
///
/// # Errors
/// When nobody reads.
pub(super) fn introduce(output: Output, stage: &Stage, cast: &Cast) -> Result<(), Error> {
    let (service, folder) = (&stage.service, stage.folder.path().display());
    let title = "One Emit becomes signed webhooks and mail: retried, recorded, watched.";
    output.line(&format!("{}  {title}", output.paint(Style::Strong, "Tidings")))?;
    output.line("")?;
    output.fields(&[
        ("  service", format!("gRPC {}  HTTP {}", service.endpoint, service.http)),
        ("  data", format!("SQLite in {folder}")),
        ("  tenant", format!("{} {}", cast.tenant.display_name, cast.tenant.id)),
    ])?;
    output.line("")?;
    let parts = parts().lines(output.is_colored());
    for line in parts {
        output.line(&table::clip(&format!("  {line}"), output.width()))?;
    }
    output.line("")
}

/// Who subscribes: narrow enough for 80 columns.
fn parts() -> Table {
    let mut parts = Table::new(&["SUBSCRIBER", "WANTS", "BODY", "SIGNED", "ITS RECEIVER"]);
    for part in &PARTS {
        let signed = match part.signatures {
            [SignatureScheme::StandardWebhooks] => "standard",
            [_] => "hmac",
            _ => "both ways",
        };
        parts.row([
            part.name.into(),
            part.patterns.join(" ").into(),
            names::plain::<PayloadFormat>(part.format.into()).into(),
            signed.into(),
            part.role.describe().into(),
        ]);
    }
    parts.row(["contact".into(), "all of it".into(), "mail".into(), "-".into(), "a file".into()]);
    parts
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
    let (program, service) = (output::program(), &stage.service);
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
    command(
        "emit billing.paid --data '{\"invoice_id\":1043}'",
        "one event, two webhooks and a mail",
    )?;
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

#[cfg(test)]
mod tests {
    use super::super::super::output::WIDTH;
    use super::*;

    #[test]
    fn who_subscribes_fits_into_80_columns() {
        for line in parts().lines(false) {
            assert!(table::width(&line) + 2 < WIDTH, "{line}");
        }
    }
}
