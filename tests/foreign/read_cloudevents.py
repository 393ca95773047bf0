"""Reads captured CloudEvents with the SDK of PyPI.

Reads one JSON document from standard input:

    [{"headers": {"content-type": "..."}, "body_base64": "...", "data": "the emitted JSON"}]

and prints one JSON line per item, in order: {"attributes": {...}, "same_data": true}, or
{"error": "..."}. Attributes are text; `same_data` compares values, the bytes are the test's matter.
"""

import base64
import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http
from cloudevents.core.formats.json import JSONFormat


def read(item):
    body = base64.b64decode(item["body_base64"], validate=True)
    try:
        # No factory is named: the version is found by what arrived.
        event = from_http(HTTPMessage(headers=item["headers"], body=body), JSONFormat())
    except Exception as error:  # whatever goes wrong, it is no event
        return {"error": f"{type(error).__name__}: {error}"}
    attributes = dict(event.get_attributes())
    attributes["time"] = attributes["time"].isoformat()
    same = event.get_data() == json.loads(item["data"])
    return {"attributes": {name: str(value) for name, value in attributes.items()}, "same_data": same}


for item in json.load(sys.stdin):
    print(json.dumps(read(item)))
