"""One round through Tidings: tenant, key, subscription, Emit, Watch, and a receiver that verifies.

Configured like the command line: TIDINGS_ENDPOINT and TIDINGS_API_KEY, an operator's key. Exits with
0 when the delivery succeeded and its signature was good, else with 1 and the reason.
"""

import os
import sys

import grpc

from receiver import Receiver
from stubs import generated

with generated():
    from tidings.v1 import channel_pb2, delivery_pb2, delivery_service_pb2, delivery_service_pb2_grpc
    from tidings.v1 import event_service_pb2, event_service_pb2_grpc, subscription_pb2, subscription_service_pb2
    from tidings.v1 import subscription_service_pb2_grpc, tenant_pb2, tenant_service_pb2, tenant_service_pb2_grpc

PATIENCE_SECONDS = 30
ENDED = {"FAILED", "CANCELED", "EXPIRED", "SUPPRESSED"}


def bearer(key):
    return [("authorization", f"Bearer {key}")]


def create_tenant_and_key(channel, operator_key):
    """What an operator does once per customer."""
    tenants = tenant_service_pb2_grpc.TenantServiceStub(channel)
    tenant = tenants.CreateTenant(
        tenant_service_pb2.CreateTenantRequest(tenant=tenant_pb2.Tenant(display_name="Python example")),
        metadata=bearer(operator_key),
    ).tenant
    print(f"tenant        {tenant.id}")
    created = tenants.CreateApiKey(
        tenant_service_pb2.CreateApiKeyRequest(
            api_key=tenant_pb2.ApiKey(
                tenant_id=tenant.id,
                display_name="example",
                scopes=["events:emit", "subscriptions:write", "deliveries:read"],
            )
        ),
        metadata=bearer(operator_key),
    )
    print(f"key           {created.api_key.prefix}… may {', '.join(created.api_key.scopes)}")
    return created.secret


def subscribe(channel, key, url):
    created = subscription_service_pb2_grpc.SubscriptionServiceStub(channel).CreateSubscription(
        subscription_service_pb2.CreateSubscriptionRequest(
            subscription=subscription_pb2.Subscription(
                display_name="example",
                event_types=["billing.*"],
                webhook=channel_pb2.WebhookChannel(url=url),
            )
        ),
        metadata=bearer(key),
    )
    print(f"subscription  {created.subscription.id} → {url}")
    return created


def emit(channel, key):
    emitted = event_service_pb2_grpc.EventServiceStub(channel).Emit(
        event_service_pb2.EmitRequest(
            type="billing.paid",
            data_json='{"invoice": "in_42", "amount": 1200}',
            # The same key again would answer the same event, and send nothing twice.
            idempotency_key="in_42-paid",
        ),
        metadata=bearer(key),
    )
    print(f"event         {emitted.event_id}, {emitted.delivery_count} delivery")
    return emitted.event_id


def follow(watch, url):
    """Follows the delivery to its end."""
    for response in watch:
        if not response.HasField("delivery"):
            continue
        delivery = response.delivery
        state = delivery_pb2.DeliveryState.Name(delivery.state).removeprefix("DELIVERY_STATE_")
        print(f"delivery      {delivery.id} revision {delivery.revision}: {state}")
        if state == "SUCCEEDED":
            # Asking with this token would go on right here, on any replica.
            print(f"resume token  {response.resume_token}")
            return
        if state in ENDED:
            sys.exit(f"the delivery is {state}: {delivery.last_attempt.error_message} (url {url})")
    sys.exit("the watch ended before the delivery did")


def main():
    endpoint = os.environ.get("TIDINGS_ENDPOINT", "http://127.0.0.1:50051")
    operator_key = os.environ.get("TIDINGS_API_KEY")
    if not operator_key:
        sys.exit("TIDINGS_API_KEY is not set; make a key with: tidings keys create --operator")
    with Receiver() as receiver, grpc.insecure_channel(endpoint.removeprefix("http://")) as channel:
        key = create_tenant_and_key(channel, operator_key)
        created = subscribe(channel, key, receiver.url)
        receiver.secret = created.signing_secret
        watch = delivery_service_pb2_grpc.DeliveryServiceStub(channel).WatchDeliveries(
            delivery_service_pb2.WatchDeliveriesRequest(subscription_id=created.subscription.id),
            metadata=bearer(key),
            timeout=PATIENCE_SECONDS,
        )
        next(watch)  # the first answer is a checkpoint: no change is missed from here on
        event_id = emit(channel, key)
        follow(watch, receiver.url)
        watch.cancel()
        if event_id not in receiver.events:
            sys.exit("nothing arrived that was signed as it should be")
        print(f"signature     verified {event_id}: {receiver.events[event_id]['data']}")


if __name__ == "__main__":
    try:
        main()
    except grpc.RpcError as error:
        sys.exit(f"{error.code().name}: {error.details()}")
