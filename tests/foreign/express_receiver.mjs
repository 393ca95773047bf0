// A webhook receiver in Express, as a customer would write it from the documentation.
//
// Listens on a free port of 127.0.0.1 and prints {"port":N} as its first line. Every path takes
// webhooks: the signature is verified with the standardwebhooks library and the secret in
// SIGNING_SECRET. Prints one JSON line per request,
//
//     {"verified":true,"type":"...","webhook_id":"..."}
//
// and answers 204; for a wrong signature {"verified":false,...,"error":"..."} and 401.

import { require } from "./packages.mjs";

const express = require("express");
const { Webhook } = require("standardwebhooks");

const webhook = new Webhook(process.env.SIGNING_SECRET);
const report = (line) => console.log(JSON.stringify(line));

// The type of the event: the body names it, except where the body is the bare data.
function eventType(request) {
  let fields;
  try {
    fields = JSON.parse(request.body);
  } catch {
    // not JSON: the signature decides what to answer
  }
  return fields?.type ?? fields?.event_type ?? request.get("tidings-event-type") ?? null;
}

const app = express();
// The raw bytes: the signature covers them and nothing else.
app.use(express.raw({ type: () => true, limit: "4mb" }));
app.post("/{*path}", (request, response) => {
  // Express leaves the body undefined when there was none.
  request.body ??= Buffer.alloc(0);
  const seen = { type: eventType(request), webhook_id: request.get("webhook-id") ?? null };
  try {
    webhook.verify(request.body, request.headers, { jsonParse: false });
  } catch (error) {
    report({ verified: false, ...seen, error: error.message });
    response.status(401).end();
    return;
  }
  report({ verified: true, ...seen });
  response.status(204).end();
});

const server = app.listen(0, "127.0.0.1", (error) => {
  if (error) throw error;
  report({ port: server.address().port });
});
