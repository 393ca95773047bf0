// Verifies captured webhooks with libraries of npm, and with the example for receivers.
//
// Reads one JSON document from standard input:
//
//     [{"schemes": ["stripe"], "secret": "whsec_...", "public_key": "whpk_...",
//       "headers": {"webhook-id": "..."}, "body_base64": "..."}]
//
// and prints one JSON line per item, in order: what each library that knows one of the schemes says,
// as {"stripe": {"stripe (npm)": null}}. Null stands for a signature that holds, a text for one that
// does not. The libraries refuse timestamps that are more than five minutes away from this machine's
// clock.

import { text } from "node:stream/consumers";
import * as example from "../../examples/receivers/verify.mjs";
import { load, require } from "./packages.mjs";

const { Webhook } = require("standardwebhooks");
const svix = require("svix");
const { verify } = await load("@octokit/webhooks-methods");
const stripe = require("stripe");

function standardwebhooksLibrary(secret, headers, body) {
  // docs: standardwebhooks
  // npm install standardwebhooks
  // import { Webhook } from "standardwebhooks";
  new Webhook(secret).verify(body, headers, { jsonParse: false }); // throws WebhookVerificationError
  // docs: end
}

function svixLibrary(secret, headers, body) {
  new svix.Webhook(secret).verify(body, headers);
}

function stripeLibrary(secret, headers, body) {
  if (!body.toString().trimStart().startsWith("{")) {
    // What is no object can be verified, but is no event to construct.
    stripe.webhooks.signature.verifyHeader(body, headers["stripe-signature"], secret, 300);
    return;
  }
  // docs: stripe
  // npm install stripe
  // import stripe from "stripe";
  stripe.webhooks.constructEvent(body, headers["stripe-signature"], secret); // throws
  // docs: end
}

async function octokitLibrary(secret, headers, body) {
  // docs: octokit
  // npm install @octokit/webhooks-methods
  // import { verify } from "@octokit/webhooks-methods";
  const isSigned = await verify(secret, body.toString(), headers["x-hub-signature-256"]);
  // docs: end
  if (!isSigned) throw new Error("no match");
}

// The plain HMAC is GitHub's without its prefix.
const octokitOfPlain = (secret, headers, body) =>
  octokitLibrary(secret, { "x-hub-signature-256": `sha256=${headers["x-signature"]}` }, body);

const byExample = (check) => (secret, headers, body) => {
  if (!check([secret], headers, body)) throw new Error("no match");
};

const EXAMPLE = "examples (Node.js, OpenSSL)";
const LIBRARIES = {
  standard_webhooks: {
    "standardwebhooks (npm)": standardwebhooksLibrary,
    "svix (npm)": svixLibrary,
    [EXAMPLE]: byExample(example.standardWebhooks),
  },
  standard_webhooks_ed25519: { [EXAMPLE]: byExample(example.standardWebhooksEd25519) },
  hmac_sha256_hex: {
    "@octokit/webhooks-methods (npm)": octokitOfPlain,
    [EXAMPLE]: byExample(example.hmacSha256Hex),
  },
  github: {
    "@octokit/webhooks-methods (npm)": octokitLibrary,
    [EXAMPLE]: byExample(example.github),
  },
  stripe: { "stripe (npm)": stripeLibrary, [EXAMPLE]: byExample(example.stripe) },
};

async function saidBy(check, ...message) {
  try {
    await check(...message);
    return null;
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
}

for (const item of JSON.parse(await text(process.stdin))) {
  const body = Buffer.from(item.body_base64, "base64");
  const said = {};
  for (const scheme of item.schemes) {
    const secret = scheme.endsWith("ed25519") ? item.public_key : item.secret;
    said[scheme] = {};
    for (const [name, check] of Object.entries(LIBRARIES[scheme])) {
      said[scheme][name] = await saidBy(check, secret, item.headers, body);
    }
  }
  console.log(JSON.stringify(said));
}
