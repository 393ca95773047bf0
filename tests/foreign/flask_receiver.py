"""A webhook receiver in Flask, as a customer would write it from the documentation.

Listens on a free port of 127.0.0.1 and prints {"port": N} as its first line. Every path takes
webhooks: the signature is verified with the standardwebhooks library and the secret in SIGNING_SECRET.
Prints one JSON line per request,

    {"verified": true, "type": "...", "webhook_id": "..."}

and answers 204; for a wrong signature {"verified": false, ..., "error": "..."} and 401.
"""

import json
import logging
import os
import sys
import threading

from flask import Flask, request
from standardwebhooks.webhooks import Webhook
from werkzeug.serving import make_server

webhook = Webhook(os.environ["SIGNING_SECRET"])
app = Flask(__name__)
output = threading.Lock()


def report(line):
    # Requests are served by threads; a line must arrive whole.
    with output:
        print(json.dumps(line), flush=True)


def event_type(body):
    """The type of the event: the body names it, except where the body is the bare data."""
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        fields = {}
    return fields.get("type") or fields.get("event_type") or request.headers.get("Tidings-Event-Type")


@app.post("/")
@app.post("/<path:path>")
def receive(path=""):
    body = request.get_data()  # the raw bytes: the signature covers them and nothing else
    seen = {"type": event_type(body), "webhook_id": request.headers.get("webhook-id")}
    try:
        webhook.verify(body, dict(request.headers), json_parse=False)
    except Exception as error:  # the library has no one kind for garbled signatures
        report({"verified": False, **seen, "error": str(error)})
        return "", 401
    report({"verified": True, **seen})
    return "", 204


logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line per request on standard error
server = make_server("127.0.0.1", 0, app, threaded=True)
report({"port": server.port})
try:
    server.serve_forever()
except KeyboardInterrupt:
    sys.exit(130)
