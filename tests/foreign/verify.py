"""Verifies captured webhooks with the standardwebhooks library of PyPI.

Reads one JSON document from standard input:

    [{"secret": "whsec_...", "headers": {"webhook-id": "..."}, "body_base64": "..."}]

and prints one JSON line per item, in order: {"ok": true} or {"ok": false, "error": "..."}.
The library refuses timestamps that are more than five minutes away from this machine's clock.
"""

import base64
import json
import sys

from standardwebhooks.webhooks import Webhook


def verify(item):
    try:
        body = base64.b64decode(item["body_base64"], validate=True)
        # Only the signature is in question here; whether a body is JSON is another test's matter.
        Webhook(item["secret"]).verify(body, item["headers"], json_parse=False)
    except Exception as error:  # whatever goes wrong, the item is not verified
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return {"ok": True}


for item in json.load(sys.stdin):
    print(json.dumps(verify(item)))
