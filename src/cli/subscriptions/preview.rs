//! `tidings subscriptions preview`: the mail that an event would make.

use std::path::PathBuf;

use super::super::Error;
use super::Session;
use crate::api::proto::PreviewEmailRequest;

/// What the mail is to be made of.
#[derive(Debug, clap::Args)]
pub(super) struct Preview {
    /// The subscription whose template is meant; otherwise the event type's or the built-in one
    #[arg(value_name = "SUBSCRIPTION_ID", default_value = "", hide_default_value = true)]
    id: String,
    /// A file with a template to try
    #[arg(long, value_name = "PATH")]
    template: Option<PathBuf>,
    /// The event's type [default: tidings.preview]
    #[arg(long, short = 't', value_name = "TYPE", default_value = "", hide_default_value = true)]
    event_type: String,
    /// What the event is about
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    subject: String,
    /// The payload, JSON [default: a sample]
    #[arg(long, value_name = "JSON", default_value = "", hide_default_value = true)]
    data: String,
    /// Print the HTML in place of the text
    #[arg(long, conflicts_with = "json")]
    html: bool,
}

impl Session {
    pub(super) async fn preview(self, preview: Preview) -> Result<(), Error> {
        let template = match preview.template {
            None => String::new(),
            Some(path) => std::fs::read_to_string(&path).map_err(|error| {
                Error::failure(format!("{} cannot be read: {error}", path.display()))
            })?,
        };
        let request = PreviewEmailRequest {
            tenant_id: self.tenant_id,
            subscription_id: preview.id,
            event_type: preview.event_type,
            subject: preview.subject,
            data_json: preview.data,
            template,
        };
        let response = self.client.subscriptions().preview_email(request).await?.into_inner();
        self.output.message(&response, |output, mail| {
            if preview.html {
                return output.line(&mail.html);
            }
            output.line(&format!("Subject: {}\n", mail.subject))?;
            output.line(&mail.text)
        })
    }
}
