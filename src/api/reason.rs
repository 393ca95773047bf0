//! Every reason that an error can have: what programs match on, and what `docs/errors.md` says.
//!
//! A reason's name is part of the contract and never changes its meaning. A new reason is a new
//! line of the table; the document is made from it, and a test says when it is out of date.

use std::fmt::Write;
use std::time::Duration;

use tonic::Code;

/// What is known of a reason.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// Its name, in `ErrorInfo.reason`.
    pub name: &'static str,
    /// The status code that it comes with.
    pub code: Code,
    /// What the answer says, unless more is known.
    pub message: &'static str,
    /// When it happens.
    pub cause: &'static str,
    /// What the caller can do.
    pub remedy: &'static str,
    /// After how long it is worth trying again; `None` when it is not.
    pub retry_delay: Option<Duration>,
}

macro_rules! reasons {
    ($($variant:ident = $name:literal, $code:ident, $retry:expr;
        $message:literal; $cause:literal; $remedy:literal)+) => {
        /// Why a call failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $(#[doc = $cause] $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of the document.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// What is known of the reason.
            pub const fn info(self) -> Info {
                match self {
                    $(Self::$variant => Info {
                        name: $name,
                        code: Code::$code,
                        message: $message,
                        cause: $cause,
                        remedy: $remedy,
                        retry_delay: $retry,
                    },)+
                }
            }
        }
    };
}

/// After a short time: what was full or gone may be back.
const SOON: Option<Duration> = Some(Duration::from_secs(1));
/// At once: another replica, or the next process, takes over.
const AT_ONCE: Option<Duration> = Some(Duration::from_millis(100));
/// After a while: somebody has to give something up first.
const LATER: Option<Duration> = Some(Duration::from_secs(30));

reasons! {
    ApiKeyMissing = "API_KEY_MISSING", Unauthenticated, None;
    "No API key: send metadata `authorization: Bearer` and your key.";
    "The call carried no metadata `authorization: Bearer <key>`.";
    "Send the key with every call. With grpcurl: `-H 'authorization: Bearer tdk_…'`."

    ApiKeyInvalid = "API_KEY_INVALID", Unauthenticated, None;
    "The API key is not valid: it is unknown, expired or revoked.";
    "The key is unknown, has expired or was revoked. A stream that is open when that happens ends with this reason.";
    "Look at the key's `expire_time` and `revoke_time` with `ListApiKeys`; have an operator create a new one."

    ScopeMissing = "SCOPE_MISSING", PermissionDenied, None;
    "The API key does not permit this call.";
    "The key is valid, but lacks the scope that the RPC needs, or the RPC is for operator keys only.";
    "Use a key with the scope that the message names. Scopes of a key never change: create another key."

    InvalidFields = "INVALID_FIELDS", InvalidArgument, None;
    "A field is wrong.";
    "One or more fields of the request are missing or wrong. `google.rpc.BadRequest` lists them all, each with its path.";
    "Correct the fields. The same request never succeeds."

    MalformedRequest = "MALFORMED_REQUEST", InvalidArgument, None;
    "The request is malformed: it is not a protobuf message of this RPC, or it ended early.";
    "The bytes are not a message of this RPC: wrong wire format, a string that is not UTF-8, nested too deep (a `google.protobuf.Struct` more than about 30 levels), or cut off.";
    "Generate the client anew from `proto/`. For deeply nested data use `data_json`."

    RequestTooLarge = "REQUEST_TOO_LARGE", InvalidArgument, None;
    "The request is too large: a message may have 4 MiB.";
    "A request message has more than 4 MiB.";
    "Split the batch, or send the items with `EmitStream`. Large content does not belong into an event: emit a link to it."

    PageTokenInvalid = "PAGE_TOKEN_INVALID", InvalidArgument, None;
    "The page token is not one of this list.";
    "`page_token` is damaged, or was given for another RPC, another tenant or other filters.";
    "Keep tenant and filters as they were for the first page, or begin with an empty `page_token`."

    ResumeTokenInvalid = "RESUME_TOKEN_INVALID", InvalidArgument, None;
    "The resume token is not one of this watch.";
    "`resume_token` is damaged, or was given for another tenant or other filters.";
    "Keep tenant and filters as they were, or begin anew with `include_current`."

    ResumeTokenExpired = "RESUME_TOKEN_EXPIRED", OutOfRange, None;
    "The resume token is older than the changes that are kept. Begin anew with include_current.";
    "The changes after this token have been removed: the token is older than retention. Also ends a stream whose reader fell that far behind.";
    "Watch again with `include_current` and without a token: every delivery is told as it is now, and then what changes."

    TenantNotFound = "TENANT_NOT_FOUND", NotFound, None;
    "There is no such tenant.";
    "There is no tenant with this id that the key may see. A foreign tenant and one that does not exist are answered alike.";
    "Check the id; with a tenant's own key, leave `tenant_id` empty."

    ApiKeyNotFound = "API_KEY_NOT_FOUND", NotFound, None;
    "There is no such API key.";
    "The tenant, or the operator when `tenant_id` is empty, has no key with this id.";
    "Check the id (`key_…`, not the key's text) and whose key it is."

    SubscriptionNotFound = "SUBSCRIPTION_NOT_FOUND", NotFound, None;
    "There is no such subscription.";
    "The tenant has no subscription with this id, or it was deleted.";
    "Check the id, and with an operator key the `tenant_id`."

    EventNotFound = "EVENT_NOT_FOUND", NotFound, None;
    "There is no such event.";
    "The tenant has no event with this id, or it is older than retention.";
    "Check the id, and with an operator key the `tenant_id`."

    EventTypeNotFound = "EVENT_TYPE_NOT_FOUND", NotFound, None;
    "There is no such event type.";
    "The catalog has no type of this name; or, for a change, the type is the platform's and the key is a tenant's.";
    "Check the name. A tenant can create a type of its own under the same name."

    DeliveryNotFound = "DELIVERY_NOT_FOUND", NotFound, None;
    "There is no such delivery.";
    "The tenant has no delivery with this id, or it is older than retention.";
    "Check the id, and with an operator key the `tenant_id`."

    SuppressionNotFound = "SUPPRESSION_NOT_FOUND", NotFound, None;
    "There is no such suppression.";
    "The tenant has no suppression of this address with this `subscription_id`. One of all of the tenant's mail has an empty one.";
    "List those of the address with `ListSuppressions`, and with an operator key check the `tenant_id`."

    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED", AlreadyExists, None;
    "The idempotency key was used before with another request.";
    "The `idempotency_key` came before, within the time for which keys are remembered, with a request that differs.";
    "Use one key per event, and send the same request again under the same key."

    EventTypeExists = "EVENT_TYPE_EXISTS", AlreadyExists, None;
    "There is an event type of this name already.";
    "The same owner, tenant or platform, has an event type of this name.";
    "Change it with `UpdateEventType`."

    EtagMismatch = "ETAG_MISMATCH", Aborted, None;
    "The resource has changed since it was read.";
    "The `etag` is not the current one: somebody else, or the service, changed the resource meanwhile.";
    "Read the resource again, apply your change to what you read, and send the new `etag`."

    SubscriptionUnreadable = "SUBSCRIPTION_UNREADABLE", FailedPrecondition, None;
    "What is kept sealed of the subscription (secrets, URL, headers) cannot be read, so it cannot be changed.";
    "The subscription's row in the database, or the master key, is damaged. Its deliveries fail and are retried meanwhile; other subscriptions are not affected.";
    "Have an operator restore the row or the key (the service's log names both), or delete the subscription and create it anew."

    TenantNotEmpty = "TENANT_NOT_EMPTY", FailedPrecondition, None;
    "The tenant has subscriptions. Set force to delete them too.";
    "`DeleteTenant` without `force`, while the tenant has subscriptions.";
    "Delete the subscriptions first, or set `force`."

    DeliveryNotRetryable = "DELIVERY_NOT_RETRYABLE", FailedPrecondition, None;
    "The delivery cannot be retried at present.";
    "The delivery is `DELIVERING` or `HELD`, or its subscription was deleted.";
    "Wait for the attempt under way, or resume the subscription."

    DeliveryEnded = "DELIVERY_ENDED", FailedPrecondition, None;
    "The delivery has ended already.";
    "`CancelDelivery` on a delivery that has ended. Ends are final.";
    "Nothing is left to do."

    Overloaded = "OVERLOADED", ResourceExhausted, SOON;
    "More is arriving than can be dealt with. Try again a little later.";
    "More requests are under way, or more events are waiting to be stored, than the service's limits allow.";
    "Try again after the delay in `google.rpc.RetryInfo`, with growing waits; events with the same `idempotency_key`."

    RateLimited = "RATE_LIMITED", ResourceExhausted, SOON;
    "The API key makes too many calls. Try again after the time in RetryInfo.";
    "The key has made more calls per second than the service allows (`key-rate-limit`); every event of a batch counts as one. An `EmitStream` is slowed down instead.";
    "Try again after the delay in `google.rpc.RetryInfo`. Spread the load over several keys only if the operator agrees; or have the limit raised."

    TooManyStreams = "TOO_MANY_STREAMS", ResourceExhausted, LATER;
    "Too many streams are open. Close one, or try again later.";
    "As many streams (`EmitStream`, `WatchDeliveries`) are open as this replica allows.";
    "Close streams that are not needed: one watch serves all subscriptions of a tenant."

    TooManySubscriptions = "TOO_MANY_SUBSCRIPTIONS", ResourceExhausted, LATER;
    "The tenant has as many subscriptions as are allowed.";
    "The tenant has reached the limit of subscriptions.";
    "Delete subscriptions that are not needed, or widen the patterns of those that are there."

    DatabaseUnavailable = "DATABASE_UNAVAILABLE", Unavailable, SOON;
    "The database is unavailable. Try again a little later.";
    "The database does not answer, or refuses more work. A write that was under way may or may not have been made.";
    "Try again after the delay in `google.rpc.RetryInfo`; events with the same `idempotency_key`. Operators: see `/readyz` and the log."

    StorageFull = "STORAGE_FULL", ResourceExhausted, LATER;
    "The disk of the service's database is full. Nothing was stored; try again after the time in RetryInfo.";
    "The database has no space left on its disk, so nothing can be stored. What was acknowledged before is not affected; what is read is still answered.";
    "Try again after the delay in `google.rpc.RetryInfo`. Operators: make room (see the log); the service goes on by itself."

    ShuttingDown = "SHUTTING_DOWN", Unavailable, AT_ONCE;
    "This replica is shutting down. Try again: another one answers.";
    "The process was told to stop. It takes nothing new, and ends streams.";
    "Connect again and repeat the call; resume a watch with its last `resume_token`."

    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded, None;
    "The deadline passed before the call was done.";
    "The time that the client gave (`grpc-timeout`) passed. An event whose deadline passed before it was being stored is not stored.";
    "Give more time. Repeat an emit with the same `idempotency_key`: it is stored once at most."

    MethodUnknown = "METHOD_UNKNOWN", Unimplemented, None;
    "There is no such service or method.";
    "The path names no RPC of this version.";
    "Compare the client's `proto/` with the service's: `grpcurl list` shows what is served."

    CompressionUnsupported = "COMPRESSION_UNSUPPORTED", Unimplemented, None;
    "The request is compressed, which is not supported.";
    "The request was sent with a `grpc-encoding` other than `identity`.";
    "Switch compression off in the client."

    NotImplemented = "NOT_IMPLEMENTED", Unimplemented, None;
    "This version does not support this yet.";
    "The contract has it, this version does not: `CheckSubscription`, `ImportCatalog`, `PollEvents`.";
    "Do without for now; the changelog says when it comes."

    Internal = "INTERNAL", Internal, None;
    "The service failed. The fault is in its log.";
    "A fault of the service. The answer says nothing more; the log does.";
    "Operators: look for the log line of level ERROR at the time of the call, and report it."
}

/// `docs/errors.md` after its first line: a section per reason.
pub fn errors_markdown() -> String {
    let mut text = String::from(
        "# Errors

Every error carries `google.rpc.ErrorInfo` with the domain `tidings` and one of the reasons below:
match on the reason, not on the message. Bad input also carries `google.rpc.BadRequest` with all
wrong fields. RESOURCE_EXHAUSTED and UNAVAILABLE carry `google.rpc.RetryInfo`: wait that long, and
longer each time, before trying again. Items of `EmitBatch` and `EmitStream` carry the same in
`EmitError`.
",
    );
    for reason in Reason::ALL {
        let info = reason.info();
        let code = code_name(info.code);
        // Writing into a String cannot fail.
        let _ = write!(
            text,
            "\n## {}\n\nCode: `{code}` ({})\n\n{}\n\n**What to do:** {}\n",
            info.name, info.code as i32, info.cause, info.remedy
        );
    }
    text
}

/// A code as it is written in the gRPC specification.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_upper_snake_and_match_their_variant() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.info().name).collect();
        for (reason, name) in Reason::ALL.iter().zip(&names) {
            assert!(name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{name}");
            assert_eq!(format!("{reason:?}").to_uppercase(), name.replace('_', ""));
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn the_document_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/errors.md");
        let document = std::fs::read_to_string(path).expect("docs/errors.md");
        let (header, body) = document.split_once('\n').expect("a first line");
        assert!(header.contains("Generated by"), "{header}");
        assert_eq!(body, errors_markdown(), "run: make generate");
    }

    #[test]
    fn every_reason_that_the_contract_names_is_one_of_ours() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/proto/tidings/v1");
        for entry in std::fs::read_dir(folder).expect(folder) {
            let text = std::fs::read_to_string(entry.expect("file").path()).expect("text");
            // A reason stands in backquotes before its code in parentheses: `X` (NOT_FOUND).
            for line in text.lines().filter(|line| line.trim_start().starts_with("//")) {
                for (before, _) in line.match_indices("` (").map(|(at, _)| line.split_at(at)) {
                    let name = before.rsplit('`').next().unwrap_or_default();
                    let code = &line[before.len() + 3..];
                    let shouted = |text: &str| {
                        text.len() > 3 && text.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
                    };
                    let code = code.split([',', ')', ':']).next().unwrap_or_default();
                    if shouted(name) && shouted(code) {
                        let found = Reason::ALL.iter().find(|reason| reason.info().name == name);
                        let info = found.map(|reason| reason.info()).expect(name);
                        assert_eq!(code_name(info.code), code, "{name}");
                    }
                }
            }
        }
    }
}
