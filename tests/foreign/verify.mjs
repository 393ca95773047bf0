// Verifies captured webhooks with the standardwebhooks library of npm.
//
// Reads one JSON document from standard input:
//
//     [{"secret": "whsec_...", "headers": {"webhook-id": "..."}, "body_base64": "..."}]
//
// and prints one JSON line per item, in order: {"ok":true} or {"ok":false,"error":"..."}.
// The library refuses timestamps that are more than five minutes away from this machine's clock.

import { text } from "node:stream/consumers";
import { require } from "./packages.mjs";

const { Webhook } = require("standardwebhooks");

function verify({ secret, headers, body_base64 }) {
  try {
    const body = Buffer.from(body_base64, "base64");
    // Only the signature is in question here; whether a body is JSON is another test's matter.
    new Webhook(secret).verify(body, headers, { jsonParse: false });
    return { ok: true };
  } catch (error) {
    return { ok: false, error: `${error.name}: ${error.message}` };
  }
}

for (const item of JSON.parse(await text(process.stdin))) {
  console.log(JSON.stringify(verify(item)));
}
