// Reads captured CloudEvents with the SDK of npm.
//
// Reads one JSON document from standard input:
//
//     [{"headers": {"content-type": "..."}, "body_base64": "...", "data": "the emitted JSON"}]
//
// and prints one JSON line per item, in order: {"attributes": {...}, "same_data": true}, or
// {"error": "..."}. Attributes are text; `same_data` compares values, the bytes are the test's matter.

import { text } from "node:stream/consumers";
import { isDeepStrictEqual } from "node:util";
import { require } from "./packages.mjs";

const { HTTP } = require("cloudevents");

// The SDK leaves the percent-encoding of the binary mode to its caller.
const decoded = (value, isBinary) => (isBinary ? decodeURIComponent(value) : String(value));

function read({ headers, body_base64, data }) {
  try {
    const body = Buffer.from(body_base64, "base64").toString();
    const event = HTTP.toEvent({ headers, body });
    event.validate();
    const isBinary = "ce-id" in headers;
    const attributes = {};
    for (const [name, value] of Object.entries(event)) {
      if (!["data", "data_base64"].includes(name) && value !== undefined) {
        attributes[name] = decoded(value, isBinary);
      }
    }
    return { attributes, same_data: isDeepStrictEqual(event.data, JSON.parse(data)) };
  } catch (error) {
    return { error: `${error.name}: ${error.message}` };
  }
}

for (const item of JSON.parse(await text(process.stdin))) {
  console.log(JSON.stringify(read(item)));
}
