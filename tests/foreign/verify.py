"""Verifies captured webhooks with libraries of PyPI, and with the example for receivers.

Reads one JSON document from standard input:

    [{"schemes": ["stripe"], "secret": "whsec_...", "public_key": "whpk_...",
      "headers": {"webhook-id": "..."}, "body_base64": "..."}]

and prints one JSON line per item, in order: what each library that knows one of the schemes says, as
{"stripe": {"stripe (PyPI)": null}}. Null stands for a signature that holds, a text for one that does
not. The libraries refuse timestamps that are more than five minutes away from this machine's clock.
"""

import base64
import json
import pathlib
import sys

import stripe
import svix.webhooks
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from standardwebhooks.webhooks import Webhook

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples" / "receivers"))
import verify as example  # noqa: E402


def standardwebhooks_library(secret, headers, body):
    # docs: standardwebhooks
    # pip install standardwebhooks
    # from standardwebhooks.webhooks import Webhook
    Webhook(secret).verify(body, headers, json_parse=False)  # raises WebhookVerificationError
    # docs: end


def svix_library(secret, headers, body):
    svix.webhooks.Webhook(secret).verify(body, headers)


def stripe_library(secret, headers, body):
    if not body.lstrip().startswith(b"{"):
        # What is no object can be verified, but is no event to construct.
        stripe.WebhookSignature.verify_header(body, headers["stripe-signature"], secret, 300)
        return
    # docs: stripe
    # pip install stripe
    stripe.Webhook.construct_event(body, headers["stripe-signature"], secret)  # raises
    # docs: end


def nacl_library(public_key, headers, body):
    key = VerifyKey(base64.b64decode(public_key.removeprefix("whpk_")))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    for entry in headers["webhook-signature"].split(" "):
        if entry.startswith("v1a,"):
            try:
                key.verify(signed, base64.b64decode(entry.removeprefix("v1a,")))
                return
            except BadSignatureError:
                continue  # made with another key
    raise BadSignatureError("no signature is by this key")


def by_example(function):
    def check(secret, headers, body):
        if not function([secret], headers, body):
            raise ValueError("no match")

    return check


EXAMPLE = "examples (Python)"
LIBRARIES = {
    "standard_webhooks": {
        "standardwebhooks (PyPI)": standardwebhooks_library,
        "svix (PyPI)": svix_library,
        EXAMPLE: by_example(example.standard_webhooks),
    },
    "standard_webhooks_ed25519": {
        "PyNaCl (PyPI)": nacl_library,
        EXAMPLE: by_example(example.standard_webhooks_ed25519),
    },
    "hmac_sha256_hex": {EXAMPLE: by_example(example.hmac_sha256_hex)},
    "github": {EXAMPLE: by_example(example.github)},
    "stripe": {
        "stripe (PyPI)": stripe_library,
        EXAMPLE: by_example(example.stripe),
    },
}


def said_by(check, *message):
    try:
        check(*message)
    except Exception as error:  # whatever goes wrong, the item is not verified
        return f"{type(error).__name__}: {error}"
    return None


def verdicts(item):
    body = base64.b64decode(item["body_base64"], validate=True)
    said = {}
    for scheme in item["schemes"]:
        secret = item["public_key" if scheme.endswith("ed25519") else "secret"]
        checks = LIBRARIES[scheme].items()
        said[scheme] = {name: said_by(check, secret, item["headers"], body) for name, check in checks}
    return said


for item in json.load(sys.stdin):
    print(json.dumps(verdicts(item)))
