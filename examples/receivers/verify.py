"""Verifies webhooks of Tidings: one function per signature scheme.

`headers` has lower-case names, `body` is the raw bytes as they came. Give every secret or key that
is valid now: two while a rotation overlaps. Needs PyNaCl for Ed25519, and nothing else.
"""

import base64
import hashlib
import hmac
import time

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

TOLERANCE = 300  # seconds that a timestamp may be from now: anything older may be a replay


def is_recent(timestamp):
    return timestamp.isdecimal() and abs(time.time() - int(timestamp)) <= TOLERANCE


def same(expected, given):
    return hmac.compare_digest(expected.encode(), given.encode())


def standard_webhooks(secrets, headers, body):
    timestamp = headers.get("webhook-timestamp", "")
    signed = f"{headers.get('webhook-id', '')}.{timestamp}.".encode() + body
    entries = headers.get("webhook-signature", "").split(" ")
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
        if any(same(f"v1,{signature}", entry) for entry in entries):
            return is_recent(timestamp)
    return False


def standard_webhooks_ed25519(public_keys, headers, body):
    timestamp = headers.get("webhook-timestamp", "")
    signed = f"{headers.get('webhook-id', '')}.{timestamp}.".encode() + body
    for text in public_keys:
        key = VerifyKey(base64.b64decode(text.removeprefix("whpk_")))
        for entry in headers.get("webhook-signature", "").split(" "):
            if entry.startswith("v1a,"):
                try:
                    key.verify(signed, base64.b64decode(entry.removeprefix("v1a,")))
                    return is_recent(timestamp)
                except (BadSignatureError, ValueError):
                    continue  # made with another key
    return False


def hmac_sha256_hex(secrets, headers, body, header="x-signature"):
    given = headers.get(header, "")
    return any(same(hmac.digest(s.encode(), body, hashlib.sha256).hex(), given) for s in secrets)


def github(secrets, headers, body):
    prefix, _, given = headers.get("x-hub-signature-256", "").partition("=")
    return prefix == "sha256" and hmac_sha256_hex(secrets, {"x-signature": given}, body)


def stripe(secrets, headers, body, header="stripe-signature"):
    items = [item.partition("=")[::2] for item in headers.get(header, "").split(",")]
    timestamp = dict(items).get("t", "")
    signed = f"{timestamp}.".encode() + body
    for secret in secrets:
        expected = hmac.digest(secret.encode(), signed, hashlib.sha256).hex()
        if any(name == "v1" and same(expected, given) for name, given in items):
            return is_recent(timestamp)
    return False
