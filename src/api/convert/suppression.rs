//! Suppressions, and reports about messages.

use crate::api::proto as pb;
use crate::domain::Violations;
use crate::domain::feedback::{
    Feedback, Ignored, Kind, delivery_of_message_id, kind_of_status, mail,
};
use crate::domain::mail_address;
use crate::domain::suppression::{Reason, Suppression, detail};
use crate::store::FeedbackResult;

use super::timestamp_to_proto;

/// A suppression as the contract writes it.
pub(crate) fn suppression_to_proto(suppression: Suppression) -> pb::Suppression {
    let reason = match suppression.reason {
        Reason::Manual => pb::SuppressionReason::Manual,
        Reason::Unsubscribed => pb::SuppressionReason::Unsubscribed,
        Reason::Bounced => pb::SuppressionReason::Bounced,
        Reason::Complained => pb::SuppressionReason::Complained,
    };
    pb::Suppression {
        tenant_id: suppression.tenant_id.to_string(),
        address: suppression.address,
        subscription_id: suppression.subscription_id.map(|id| id.to_string()).unwrap_or_default(),
        reason: reason.into(),
        detail: suppression.detail,
        delivery_id: suppression.delivery_id.map(|id| id.to_string()).unwrap_or_default(),
        create_time: Some(timestamp_to_proto(suppression.create_time)),
    }
}

/// What a report says. `None`, without a violation, when a message is no report.
pub(crate) fn feedback(
    report: Option<&pb::report_feedback_request::Report>,
    violations: &mut Violations,
) -> Option<Feedback> {
    use pb::report_feedback_request::Report;
    match report {
        Some(Report::Message(message)) if message.len() > mail::MAX_BYTES => {
            violations.add("message", format!("must have at most {} bytes", mail::MAX_BYTES));
            None
        }
        Some(Report::Message(message)) => mail::read(message),
        Some(Report::Feedback(feedback)) => fields(feedback, violations),
        None => {
            violations.add("feedback", "must be set, or message: what is reported");
            None
        }
    }
}

fn fields(message: &pb::Feedback, violations: &mut Violations) -> Option<Feedback> {
    let kind = match message.kind() {
        pb::FeedbackKind::Bounce if message.status.is_empty() => Some(Kind::Bounce),
        pb::FeedbackKind::Bounce => Some(kind_of_status(&message.status)),
        pb::FeedbackKind::Delay => Some(Kind::Delay),
        pb::FeedbackKind::Complaint => Some(Kind::Complaint),
        pb::FeedbackKind::Unsubscribe => Some(Kind::Unsubscribe),
        pb::FeedbackKind::Unspecified => {
            violations.add("feedback.kind", "must say what happened, for example BOUNCE");
            None
        }
    };
    let delivery_id = delivery_of_message_id(&message.delivery_id);
    if delivery_id.is_none() && !message.delivery_id.is_empty() {
        violations.add("feedback.delivery_id", "must be a delivery's id or a message's Message-ID");
    }
    let address = (!message.address.is_empty())
        .then(|| mail_address::check_one(&message.address, "feedback.address", violations));
    if delivery_id.is_none() && address.is_none() && message.delivery_id.is_empty() {
        violations.add("feedback.delivery_id", "must be set, or address: what the report is about");
    }
    Some(Feedback {
        kind: kind?,
        delivery_id,
        addresses: address.flatten().into_iter().collect(),
        detail: detail(&format!("{} {}", message.status, message.detail)),
    })
}

/// What became of a report.
pub(crate) fn result_to_proto(result: FeedbackResult) -> pb::ReportFeedbackResponse {
    let (outcome, suppression) = match result {
        FeedbackResult::Suppressed(suppression) => {
            (pb::FeedbackOutcome::Suppressed, Some(suppression))
        }
        FeedbackResult::Known(suppression) => {
            (pb::FeedbackOutcome::AlreadySuppressed, Some(suppression))
        }
        FeedbackResult::Ignored(ignored) => (outcome_of(ignored), None),
    };
    pb::ReportFeedbackResponse {
        outcome: outcome.into(),
        suppression: suppression.map(suppression_to_proto),
    }
}

const fn outcome_of(ignored: Ignored) -> pb::FeedbackOutcome {
    match ignored {
        Ignored::NotAReport => pb::FeedbackOutcome::NotAReport,
        Ignored::Temporary => pb::FeedbackOutcome::Temporary,
        Ignored::UnknownDelivery => pb::FeedbackOutcome::UnknownDelivery,
        Ignored::OtherAddress => pb::FeedbackOutcome::OtherAddress,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_reasons_are_those_of_the_contract() {
        for reason in Reason::ALL {
            let known = pb::SuppressionReason::try_from(i32::from(reason.code())).expect("known");
            assert_eq!(known.as_str_name(), format!("SUPPRESSION_REASON_{}", reason.as_str()));
        }
    }

    #[test]
    fn everything_that_is_wrong_with_a_report_is_told() {
        use pb::report_feedback_request::Report;
        let told = |report: Option<Report>| {
            let mut violations = Violations::new();
            let read = feedback(report.as_ref(), &mut violations);
            (read, violations.iter().map(|violation| violation.field.clone()).collect::<Vec<_>>())
        };
        let wrong = pb::Feedback {
            delivery_id: "evt_1".into(),
            address: "ops@localhost".into(),
            ..Default::default()
        };
        let (_, fields) = told(Some(Report::Feedback(wrong)));
        assert_eq!(fields, ["feedback.kind", "feedback.delivery_id", "feedback.address"]);
        assert_eq!(told(None).1, ["feedback"]);
        let empty = pb::Feedback { kind: pb::FeedbackKind::Bounce.into(), ..Default::default() };
        assert_eq!(told(Some(Report::Feedback(empty.clone()))).1, ["feedback.delivery_id"]);
        assert_eq!(told(Some(Report::Message(vec![0; mail::MAX_BYTES + 1].into()))).1, ["message"]);
        assert_eq!(told(Some(Report::Message(vec![].into()))), (None, vec![]));
        let full = pb::Feedback { address: "a@b.com".into(), status: "4.2.2".into(), ..empty };
        let (read, fields) = told(Some(Report::Feedback(full)));
        assert!(fields.is_empty());
        assert_eq!(read.map(|feedback| feedback.kind), Some(Kind::Delay));
    }
}
