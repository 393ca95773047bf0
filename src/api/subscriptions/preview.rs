//! `PreviewEmail`: the mail that an event would make.

use tonic::Request;

use crate::api::context::{caller, named_tenant};
use crate::api::proto as pb;
use crate::api::status::Failure;
use crate::domain::channel::Channel;
use crate::domain::event::{Event, NewEvent};
use crate::domain::id::{EventId, TenantId};
use crate::domain::labels::Labels;
use crate::domain::mail::{self, Occasion};
use crate::domain::trace::TraceContext;
use crate::domain::{Violations, event};

use super::Subscriptions;

/// The type of a preview, unless the client names one.
const SAMPLE_TYPE: &str = "tidings.preview";
/// The payload of a preview, unless the client has one.
const SAMPLE_DATA: &str = r#"{"message":"This is what a mail looks like.","amount":"12.30",
    "currency":"EUR","customer":{"name":"Ada"},"url":"https://company.com/invoices/7"}"#;

impl Subscriptions {
    pub(super) async fn preview(
        &self,
        request: Request<pb::PreviewEmailRequest>,
    ) -> Result<pb::PreviewEmailResponse, Failure> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let (mut violations, mut said_below) = (Violations::new(), Violations::new());
        let tenant_id = named_tenant(&caller, &request.tenant_id, "tenant_id", &mut said_below)?;
        let event = self.event(tenant_id, &request, &mut violations);
        if let Err(error) = mail::check(&request.template) {
            violations.add("template", error.to_string());
        }
        let tenant_id = self.0.tenant(&caller, &request.tenant_id, "tenant_id", violations).await?;
        let template = self.template(&caller, tenant_id, request).await?;
        let tenant = self.0.existing_tenant(tenant_id).await?;
        let occasion = Occasion {
            event: &event,
            further: &[],
            tenant: &tenant,
            locale: tenant.spec.locale(),
            time_zone: tenant.spec.time_zone(),
            look: &self.0.look,
            unsubscribe_url: "",
        };
        let content = mail::preview(occasion, &template)
            .map_err(|error| Violations::of("template", error.to_string()))?;
        Ok(pb::PreviewEmailResponse {
            subject: content.subject,
            text: content.text,
            html: content.html,
        })
    }

    /// The template that is meant: the one to try, or the first one that is stored.
    async fn template(
        &self,
        caller: &crate::api::auth::Caller,
        tenant_id: TenantId,
        request: pb::PreviewEmailRequest,
    ) -> Result<String, Failure> {
        if !request.template.is_empty() {
            return Ok(request.template);
        }
        if !request.subscription_id.is_empty() {
            let owner = tenant_id.to_string();
            let found = self.plainly_named(caller, &owner, &request.subscription_id).await?;
            match found.spec.channel {
                Channel::Email(email) if !email.template.is_empty() => return Ok(email.template),
                Channel::Email(_) => {}
                Channel::Webhook(_) => {
                    let says = "is a webhook; name a subscription by mail";
                    return Err(Violations::of("subscription_id", says).into());
                }
            }
        }
        let store = &self.0.store;
        let own = store.event_type(Some(tenant_id), &request.event_type).await?;
        let found = match own {
            None => store.event_type(None, &request.event_type).await?,
            own => own,
        };
        Ok(found.map(|found| found.spec.email_template).unwrap_or_default())
    }

    fn event(
        &self,
        tenant_id: TenantId,
        request: &pb::PreviewEmailRequest,
        violations: &mut Violations,
    ) -> Event {
        let now = self.0.now();
        let or = |text: &str, other: &str| match text {
            "" => other.to_owned(),
            text => text.to_owned(),
        };
        let new = NewEvent {
            tenant_id,
            event_type: or(&request.event_type, SAMPLE_TYPE),
            subject: request.subject.clone(),
            data: or(&request.data_json, SAMPLE_DATA).into(),
            data_field: "data_json",
            labels: Labels::new(),
            occur_time: None,
            deliver_time: None,
            expire_time: None,
            idempotency_key: String::new(),
            trace: self.0.random(TraceContext::root),
        };
        // The service's own events have mails, too, although nobody may emit them.
        let mut judged = new.clone();
        if event::is_reserved(&judged.event_type) {
            "preview".clone_into(&mut judged.event_type);
        }
        let mut found = Violations::new();
        judged.check(now, self.0.max_payload_bytes, &mut found);
        for violation in found.iter() {
            let field = match violation.field.as_str() {
                "type" => "event_type",
                field => field,
            };
            violations.add(field, violation.description.clone());
        }
        new.accepted(self.0.random(|random| EventId::new(now, random)), now)
    }
}
