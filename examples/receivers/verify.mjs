// Verifies webhooks of Tidings: one function per signature scheme, with Node.js alone.
//
// `headers` has lower-case names, as Node.js gives them; `body` is a Buffer with the raw bytes. Give
// every secret or key that is valid now: two while a rotation overlaps.

import { createHmac, createPublicKey, timingSafeEqual, verify } from "node:crypto";

const TOLERANCE = 300; // seconds that a timestamp may be from now: anything older may be a replay

const isRecent = (timestamp) =>
  /^\d+$/.test(timestamp) && Math.abs(Date.now() / 1000 - Number(timestamp)) <= TOLERANCE;

function same(expected, given = "") {
  const [a, b] = [Buffer.from(expected), Buffer.from(given)];
  return a.length === b.length && timingSafeEqual(a, b);
}

const hmac = (key, ...parts) =>
  parts.reduce((mac, part) => mac.update(part), createHmac("sha256", key));

export function standardWebhooks(secrets, headers, body) {
  const timestamp = headers["webhook-timestamp"];
  const entries = (headers["webhook-signature"] ?? "").split(" ");
  return secrets.some((secret) => {
    const key = Buffer.from(secret.replace(/^whsec_/, ""), "base64");
    const mac = hmac(key, `${headers["webhook-id"]}.${timestamp}.`, body).digest("base64");
    return entries.some((entry) => same(`v1,${mac}`, entry)) && isRecent(timestamp);
  });
}

export function standardWebhooksEd25519(publicKeys, headers, body) {
  const timestamp = headers["webhook-timestamp"];
  const signed = Buffer.concat([Buffer.from(`${headers["webhook-id"]}.${timestamp}.`), body]);
  const signatures = (headers["webhook-signature"] ?? "").split(" ");
  const entries = signatures.filter((entry) => entry.startsWith("v1a,"));
  return publicKeys.some((text) => {
    const x = Buffer.from(text.replace(/^whpk_/, ""), "base64").toString("base64url");
    const key = createPublicKey({ key: { kty: "OKP", crv: "Ed25519", x }, format: "jwk" });
    const isSigned = (entry) => verify(null, signed, key, Buffer.from(entry.slice(4), "base64"));
    return entries.some(isSigned) && isRecent(timestamp);
  });
}

export function hmacSha256Hex(secrets, headers, body, header = "x-signature") {
  return secrets.some((secret) => same(hmac(secret, body).digest("hex"), headers[header]));
}

export function github(secrets, headers, body) {
  const given = headers["x-hub-signature-256"];
  return secrets.some((secret) => same(`sha256=${hmac(secret, body).digest("hex")}`, given));
}

export function stripe(secrets, headers, body, header = "stripe-signature") {
  const items = (headers[header] ?? "").split(",").map((item) => item.split("="));
  const timestamp = items.find(([name]) => name === "t")?.[1] ?? "";
  return secrets.some((secret) => {
    const expected = hmac(secret, `${timestamp}.`, body).digest("hex");
    const isSigned = ([name, given]) => name === "v1" && same(expected, given);
    return items.some(isSigned) && isRecent(timestamp);
  });
}
