"""Reads mails with Python's `email`, and verifies their DKIM signatures with dkimpy.

Reads one JSON document from standard input:

    [{"message_base64": "...", "records": {"rsa._domainkey.company.com": "v=DKIM1; k=rsa; p=..."}}]

and prints one JSON line per item, in order:

    {"defects": ["..."], "type": "multipart/alternative", "headers": [["Subject", "..."]],
     "parts": [{"type": "text/plain", "charset": "utf-8", "content": "..."}],
     "dkim": [{"algorithm": "rsa-sha256", "verified": true, "forgeries": {"body": false}}]}

Headers are decoded. Each signature is also held against forgeries of the message, by what was changed
or added in them: none may verify.
"""

import base64
import email
import email.policy
import json
import re
import sys

import dkim

# Headers that must not be changed.
KEPT = ["From", "To", "Subject", "Date", "Message-ID", "Content-Type", "Auto-Submitted", "List-Id"]
# Headers that must not be there twice.
ALONE = ["From", "To", "Subject", "Date"]


def forgeries(message):
    """The message with one thing changed each, by what that is."""
    head, _, body = message.partition(b"\r\n\r\n")
    middle = len(body) // 2
    changed = bytes([body[middle] ^ 1])
    yield "body", head + b"\r\n\r\n" + body[:middle] + changed + body[middle + 1 :]
    yield "longer body", message.rstrip() + b"\r\nmore\r\n"
    for name in KEPT:
        pattern = re.compile(rb"(?mi)^(" + name.encode() + rb": )")
        altered, count = pattern.subn(rb"\1x", head, count=1)
        if count:
            yield name, altered + b"\r\n\r\n" + body
    for name in ALONE:
        for place, forged in (
            ("before", name.encode() + b": x@evil.com\r\n" + message),
            ("behind", head + b"\r\n" + name.encode() + b": x@evil.com\r\n\r\n" + body),
        ):
            yield f"another {name} {place}", forged


def verify(message, index, records):
    def lookup(name, timeout=5):
        return records.get(name.decode().rstrip("."), "").encode()

    try:
        return dkim.DKIM(message).verify(index, dnsfunc=lookup)
    except dkim.DKIMException:
        return False


def signatures(message, records):
    parsed = email.message_from_bytes(message)
    for index, value in enumerate(parsed.get_all("DKIM-Signature", [])):
        yield {
            "algorithm": re.search(r"a=([a-z0-9-]+)", value).group(1),
            "verified": verify(message, index, records),
            "forgeries": {
                # What is put before the others is no signature: the index stays.
                what: verify(forged, index, records)
                for what, forged in forgeries(message)
            },
        }


def defects(part):
    yield from (repr(defect) for defect in part.defects)
    for name, value in part.items():
        yield from (f"{name}: {defect!r}" for defect in value.defects)


def read(item):
    message = base64.b64decode(item["message_base64"])
    parsed = email.message_from_bytes(message, policy=email.policy.default)
    parts = [part for part in parsed.walk() if not part.is_multipart()]
    content = [
        {
            "type": part.get_content_type(),
            "charset": part.get_content_charset(),
            "content": part.get_content(),
        }
        for part in parts
    ]
    return {
        # Content is decoded first: that is where some defects show.
        "defects": [defect for part in parsed.walk() for defect in defects(part)],
        "type": parsed.get_content_type(),
        "headers": [[name, str(value)] for name, value in parsed.items()],
        "parts": content,
        "dkim": list(signatures(message, item["records"])),
    }


for item in json.load(sys.stdin):
    print(json.dumps(read(item)), flush=True)
