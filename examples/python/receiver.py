"""A webhook receiver in Flask: the side that your customers write.

It believes nothing but the signature, and has that checked by the `standardwebhooks` library, which
shares no code with Tidings.
"""

import logging
import threading

from flask import Flask, request
from standardwebhooks.webhooks import Webhook
from werkzeug.serving import make_server


class Receiver:
    """Listens on a free port of 127.0.0.1 while its `with` block lasts."""

    def __init__(self):
        self.secret = None  # known once there is a subscription; until then everything is refused
        self.events = {}  # what was verified, by webhook-id: what arrives twice counts once
        app = Flask(__name__)
        app.post("/webhooks")(self.receive)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line per request
        self._server = make_server("127.0.0.1", 0, app, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.port}/webhooks"

    def receive(self):
        # The raw bytes: the signature covers them and nothing else. Whoever parses first and
        # serializes again has another body.
        body = request.get_data()
        try:
            event = Webhook(self.secret).verify(body, dict(request.headers))
        except Exception:  # the library has no one kind of error for garbled signatures
            return "", 401
        self.events[request.headers["webhook-id"]] = event
        return "", 204

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
