"""Tidings from Python, end to end: from a new tenant to a webhook that arrived and was verified.

    TIDINGS_API_KEY   an operator key, as `tidings keys create --operator` prints it
    TIDINGS_ENDPOINT  where the service listens; http://127.0.0.1:50051 when it is not set

Exits with 0 when the event was delivered and its signature verified, and with 1 otherwise.
"""

import json
import os
import sys
from urllib.parse import urlsplit

import grpc

import stubs
from receiver import Receiver

with stubs.generated():
    from tidings.v1 import delivery_pb2, delivery_service_pb2, delivery_service_pb2_grpc
    from tidings.v1 import event_service_pb2, event_service_pb2_grpc
    from tidings.v1 import subscription_service_pb2, subscription_service_pb2_grpc
    from tidings.v1 import tenant_service_pb2, tenant_service_pb2_grpc

# Sent, signed and delivered byte for byte as it stands here: the spacing, "ë" and the long number too.
DATA = '{ "invoice": "in_42", "customer": "Zoë", "amount": 123456789012345678901234567890 }'

CALL_SECONDS = 10  # for one call; whoever sets no deadline may wait for ever
WATCH_SECONDS = 60  # for the delivery to end

ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "EXPIRED", "SUPPRESSED"}


def main():
    endpoint = os.environ.get("TIDINGS_ENDPOINT") or "http://127.0.0.1:50051"
    operator_key = os.environ.get("TIDINGS_API_KEY")
    if not operator_key:
        return "TIDINGS_API_KEY is not set. `tidings keys create --operator` makes a key."
    try:
        with connect(endpoint) as channel, Receiver() as receiver:
            return run(channel, operator_key, receiver)
    except grpc.RpcError as error:
        return f"{endpoint} answered {error.code().name}: {error.details()}"


def run(channel, operator_key, receiver):
    """The story. Returns what went wrong, or None."""
    say("Receiver", f"{receiver.url} verifies with the standardwebhooks library")

    # The operator makes a tenant, and a key that can do no more than it has to. From here on the
    # tenant's key is used; it says whose tenant it is, so requests need no tenant_id.
    operator = {"metadata": bearer(operator_key), "timeout": CALL_SECONDS}
    tenants = tenant_service_pb2_grpc.TenantServiceStub(channel)
    request = tenant_service_pb2.CreateTenantRequest(tenant={"display_name": "Python example"})
    tenant = tenants.CreateTenant(request, **operator).tenant
    say("Tenant", f"{tenant.id} {tenant.display_name}")

    scopes = ["subscriptions:write", "events:emit", "deliveries:read"]
    wanted = {"tenant_id": tenant.id, "display_name": "Python example", "scopes": scopes}
    key = tenants.CreateApiKey(tenant_service_pb2.CreateApiKeyRequest(api_key=wanted), **operator)
    say("Key", f"{key.api_key.prefix}… may do {', '.join(key.api_key.scopes)}")
    caller = {"metadata": bearer(key.secret), "timeout": CALL_SECONDS}

    # The answer is the only place where the signing secret is shown: it goes to the receiver.
    request = subscription_service_pb2.CreateSubscriptionRequest(
        subscription={
            "display_name": "Python example",
            "event_types": ["billing.*"],
            "webhook": {"url": receiver.url},
        }
    )
    subscriptions = subscription_service_pb2_grpc.SubscriptionServiceStub(channel)
    created = subscriptions.CreateSubscription(request, **caller)
    receiver.secret = created.signing_secret
    say("Subscription", f"{created.subscription.id} sends billing.* to the receiver")

    # A watch first says where it stands. That token is kept, and nobody watches any more.
    deliveries = delivery_service_pb2_grpc.DeliveryServiceStub(channel)
    request = delivery_service_pb2.WatchDeliveriesRequest(subscription_id=created.subscription.id)
    watching = {**caller, "timeout": WATCH_SECONDS}
    stream = deliveries.WatchDeliveries(request, **watching)
    request.resume_token = next(stream).resume_token
    stream.cancel()
    say("Watch", f"stopped at resume token {request.resume_token}")

    # The key makes it safe to emit again after an answer that never came: it would be one event.
    emit = event_service_pb2.EmitRequest(
        type="billing.paid", data_json=DATA, idempotency_key="in_42-paid"
    )
    emitted = event_service_pb2_grpc.EventServiceStub(channel).Emit(emit, **caller)
    say("Event", f"{emitted.event_id} billing.paid is stored; deliveries: {emitted.delivery_count}")

    # The watch goes on at its token: what happened in between is told as well.
    stream = deliveries.WatchDeliveries(request, **watching)
    delivery = watch_until_ended(stream, emitted.event_id)
    stream.cancel()
    if state_of(delivery) != "SUCCEEDED":
        return f"The delivery ended as {state_of(delivery)}: {delivery.last_attempt.error_message}"

    event = receiver.events.get(emitted.event_id)
    if event is None:
        return "The delivery succeeded, but the receiver verified no such event."
    if event["data"] != json.loads(DATA):
        return f"The receiver verified other data: {event['data']}"
    say("Receiver", f"verified {emitted.event_id}: {event['data']}")
    say("Done", "the event was emitted, delivered and verified")
    return None


def watch_until_ended(stream, event_id):
    """Shows every change of the event's delivery, and returns it as it ended."""
    for response in stream:
        delivery = response.delivery
        if delivery.event_id != event_id:
            continue  # a checkpoint, which has no delivery
        state = state_of(delivery)
        say("Delivery", f"{delivery.id} revision {delivery.revision}: {state}{outcome(delivery)}")
        say("", f"resume token {response.resume_token}")
        if state in ENDED:
            return delivery
    raise AssertionError("a watch ends with an error or not at all")


def outcome(delivery):
    """What became of the last attempt, if there was one."""
    if not delivery.HasField("last_attempt"):
        return ""
    attempt = delivery.last_attempt
    milliseconds = attempt.duration.ToTimedelta().total_seconds() * 1000
    answer = f"HTTP {attempt.http_status}" if attempt.http_status else attempt.error_message
    return f", attempt {attempt.number}: {answer} after {milliseconds:.0f} ms"


def state_of(delivery):
    return delivery_pb2.DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_")


def connect(endpoint):
    """A channel: encrypted for https, plain for http."""
    url = urlsplit(endpoint)
    if url.scheme == "https":
        return grpc.secure_channel(url.netloc, grpc.ssl_channel_credentials())
    return grpc.insecure_channel(url.netloc)


def bearer(key):
    return (("authorization", f"Bearer {key}"),)


def say(what, text):
    print(f"{what:<13} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())  # a text goes to standard error, and the exit code is 1
