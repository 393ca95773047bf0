//! Who may call what: one line per RPC, and nothing is let through that has no line.

use std::collections::HashMap;

use crate::domain::key::Scope;

/// What an RPC asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing: health and reflection.
    Open,
    /// A valid key, whatever its scopes.
    AnyKey,
    /// A valid key with this scope.
    Scope(Scope),
}

/// Services without a key: what they tell is public.
const OPEN: [&str; 3] = [
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];

/// Every RPC of the contract.
const RPCS: [(&str, Access); 42] = {
    use Access::{AnyKey, Scope as With};
    use Scope::{
        Admin, CatalogWrite, DeliveriesRead, DeliveriesWrite, EventsEmit, EventsRead,
        SubscriptionsRead, SubscriptionsWrite,
    };
    [
        ("/tidings.v1.EventService/Emit", With(EventsEmit)),
        ("/tidings.v1.EventService/EmitBatch", With(EventsEmit)),
        ("/tidings.v1.EventService/EmitStream", With(EventsEmit)),
        ("/tidings.v1.EventService/GetEvent", With(EventsRead)),
        ("/tidings.v1.EventService/ListEvents", With(EventsRead)),
        ("/tidings.v1.EventService/PollEvents", With(EventsRead)),
        ("/tidings.v1.SubscriptionService/CreateSubscription", With(SubscriptionsWrite)),
        ("/tidings.v1.SubscriptionService/GetSubscription", With(SubscriptionsRead)),
        ("/tidings.v1.SubscriptionService/ListSubscriptions", With(SubscriptionsRead)),
        ("/tidings.v1.SubscriptionService/UpdateSubscription", With(SubscriptionsWrite)),
        ("/tidings.v1.SubscriptionService/DeleteSubscription", With(SubscriptionsWrite)),
        ("/tidings.v1.SubscriptionService/PauseSubscription", With(SubscriptionsWrite)),
        ("/tidings.v1.SubscriptionService/ResumeSubscription", With(SubscriptionsWrite)),
        ("/tidings.v1.SubscriptionService/RotateSecret", With(SubscriptionsWrite)),
        ("/tidings.v1.SubscriptionService/TestSubscription", With(SubscriptionsWrite)),
        ("/tidings.v1.SubscriptionService/CheckSubscription", With(SubscriptionsWrite)),
        ("/tidings.v1.SubscriptionService/PreviewEmail", With(SubscriptionsRead)),
        ("/tidings.v1.SubscriptionService/GetSubscriptionStats", With(SubscriptionsRead)),
        ("/tidings.v1.SuppressionService/ListSuppressions", With(SubscriptionsRead)),
        ("/tidings.v1.SuppressionService/CreateSuppression", With(SubscriptionsWrite)),
        ("/tidings.v1.SuppressionService/DeleteSuppression", With(SubscriptionsWrite)),
        ("/tidings.v1.SuppressionService/ReportFeedback", With(SubscriptionsWrite)),
        ("/tidings.v1.DeliveryService/GetDelivery", With(DeliveriesRead)),
        ("/tidings.v1.DeliveryService/ListDeliveries", With(DeliveriesRead)),
        ("/tidings.v1.DeliveryService/ListAttempts", With(DeliveriesRead)),
        ("/tidings.v1.DeliveryService/WatchDeliveries", With(DeliveriesRead)),
        ("/tidings.v1.DeliveryService/RetryDelivery", With(DeliveriesWrite)),
        ("/tidings.v1.DeliveryService/CancelDelivery", With(DeliveriesWrite)),
        ("/tidings.v1.CatalogService/CreateEventType", With(CatalogWrite)),
        ("/tidings.v1.CatalogService/GetEventType", AnyKey),
        ("/tidings.v1.CatalogService/ListEventTypes", AnyKey),
        ("/tidings.v1.CatalogService/UpdateEventType", With(CatalogWrite)),
        ("/tidings.v1.CatalogService/DeleteEventType", With(CatalogWrite)),
        ("/tidings.v1.CatalogService/ImportCatalog", With(CatalogWrite)),
        ("/tidings.v1.TenantService/CreateTenant", With(Admin)),
        ("/tidings.v1.TenantService/GetTenant", AnyKey),
        ("/tidings.v1.TenantService/ListTenants", With(Admin)),
        ("/tidings.v1.TenantService/UpdateTenant", With(Admin)),
        ("/tidings.v1.TenantService/DeleteTenant", With(Admin)),
        ("/tidings.v1.TenantService/CreateApiKey", With(Admin)),
        ("/tidings.v1.TenantService/ListApiKeys", With(Admin)),
        ("/tidings.v1.TenantService/RevokeApiKey", With(Admin)),
    ]
};

/// The table, for look-ups.
#[derive(Debug)]
pub(super) struct Table(HashMap<&'static str, Access>);

impl Table {
    /// The table of this version.
    pub(super) fn new() -> Self {
        Self(HashMap::from(RPCS))
    }

    /// What the RPC at `path` asks for; `None` when there is no such RPC.
    pub(super) fn access(&self, path: &str) -> Option<Access> {
        self.0
            .get(path)
            .copied()
            .or_else(|| OPEN.iter().any(|open| path.starts_with(open)).then_some(Access::Open))
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::api::proto::FILE_DESCRIPTOR_SET;

    /// Every RPC of the contract, as (path, the lines of its comment).
    fn contract() -> Vec<(String, String)> {
        let set = prost_types::FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("descriptors");
        let mut rpcs = Vec::new();
        for file in set.file.iter().filter(|file| file.package() == "tidings.v1") {
            for (s, service) in file.service.iter().enumerate() {
                for (m, method) in service.method.iter().enumerate() {
                    let index = |n: usize| i32::try_from(n).expect("small");
                    let at = [6, index(s), 2, index(m)];
                    let comments = file.source_code_info.as_ref().expect("comments");
                    let comment = comments.location.iter().find(|location| location.path == at);
                    let comment = comment.expect("a comment").leading_comments().to_owned();
                    let path = format!("/tidings.v1.{}/{}", service.name(), method.name());
                    rpcs.push((path, comment));
                }
            }
        }
        rpcs
    }

    #[test]
    fn the_table_has_every_rpc_of_the_contract_and_no_other() {
        let mut expected: Vec<_> = contract().into_iter().map(|(path, _)| path).collect();
        let mut ours: Vec<_> = RPCS.iter().map(|(path, _)| (*path).to_owned()).collect();
        expected.sort_unstable();
        ours.sort_unstable();
        assert_eq!(ours, expected);
    }

    #[test]
    fn the_contract_says_the_same_scopes() {
        let table = Table::new();
        for (path, comment) in contract() {
            let scope = comment.lines().find_map(|line| line.trim().strip_prefix("Scope: "));
            let scope = scope.unwrap_or_else(|| panic!("{path} does not say its scope"));
            match table.access(&path).expect("in the table") {
                Access::Scope(wanted) => {
                    assert!(scope.starts_with(&format!("`{wanted}`")), "{path}: {scope}");
                }
                Access::AnyKey => assert!(scope.starts_with("any valid key"), "{path}: {scope}"),
                Access::Open => panic!("{path} is open"),
            }
        }
    }

    #[test]
    fn only_health_and_reflection_are_open() {
        let table = Table::new();
        assert_eq!(table.access("/grpc.health.v1.Health/Check"), Some(Access::Open));
        for path in
            ["/", "", "/tidings.v1.EventService/", "/grpc.health.v1.HealthX/Check", "/x/Emit"]
        {
            assert_eq!(table.access(path), None, "{path}");
        }
    }
}
