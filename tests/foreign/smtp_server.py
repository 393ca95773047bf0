"""A mail server: aiosmtpd, with STARTTLS and AUTH.

Reads one JSON document from the variable SMTP_SERVER:

    {"folder": "...", "certificate": "...", "key": "...", "user": "...", "password": "...",
     "answers": {"rcpt ada@company.com": ["450 4.2.1 later"], "mail": [], "data": []}}

With a certificate nothing but EHLO and STARTTLS is taken before STARTTLS, and with a user nothing is
taken before AUTH. The answers to a command are given one after the other; when there are none left
the command is taken.

Listens on a free port of 127.0.0.1 and prints {"port": N} as its first line. Writes each message that
it takes, as it came, to a file of the folder, and prints

    {"file": "...", "sender": "...", "recipients": ["..."], "tls": true, "user": "..."}

as well as {"refused": "<user>"} for each wrong log-in.
"""

import asyncio
import json
import logging
import os
import pathlib
import ssl
import sys

from aiosmtpd.smtp import SMTP, AuthResult

settings = json.loads(os.environ["SMTP_SERVER"])
folder = pathlib.Path(settings["folder"])
answers = settings.get("answers", {})


def report(line):
    print(json.dumps(line), flush=True)


def answer(command):
    """What to say in place of taking the command, or None."""
    left = answers.get(command)
    return left.pop(0) if left else None


class Handler:
    def __init__(self):
        self.count = 0

    async def handle_MAIL(self, server, session, envelope, address, options):
        said = answer("mail")
        if said:
            return said
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 Ok"

    async def handle_RCPT(self, server, session, envelope, address, options):
        said = answer(f"rcpt {address}")
        if said:
            return said
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server, session, envelope):
        said = answer("data")
        if said:
            return said
        self.count += 1
        name = f"{self.count}.eml"
        (folder / name).write_bytes(envelope.original_content)
        report(
            {
                "file": name,
                "sender": envelope.mail_from,
                "recipients": envelope.rcpt_tos,
                "tls": session.ssl is not None,
                "user": session.auth_data.decode() if session.authenticated else "",
            }
        )
        return f"250 2.0.0 Ok: kept as {name}"


def authenticate(server, session, envelope, mechanism, data):
    user, password = data.login.decode(), data.password.decode()
    if (user, password) == (settings["user"], settings["password"]):
        return AuthResult(success=True, auth_data=user.encode())
    report({"refused": user})
    return AuthResult(success=False, handled=False)


async def main():
    handler = Handler()
    options = {"hostname": "mail.company.com"}
    if settings.get("certificate"):
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(settings["certificate"], settings["key"])
        options |= {"tls_context": context, "require_starttls": True}
    if settings.get("user"):
        options |= {"authenticator": authenticate, "auth_required": True}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SMTP(handler, loop=loop, **options), "127.0.0.1", 0)
    report({"port": server.sockets[0].getsockname()[1]})
    await server.serve_forever()


# The tests provoke failures; what they need to know they are told.
logging.getLogger("mail.log").setLevel(logging.CRITICAL)
try:
    asyncio.run(main())
except KeyboardInterrupt:
    sys.exit(130)
