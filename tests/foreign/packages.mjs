// Finds the npm packages of the tests. They are installed outside this folder, and an `import` looks
// only beside the importing file and above it; `require` can be told where to look.

import { createRequire } from "node:module";
import { readFile } from "node:fs/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import { join } from "node:path";

const folder =
  process.env.TIDINGS_TEST_NODE_PATH ??
  fileURLToPath(new URL("../../.tools/node/node_modules", import.meta.url));

export const require = createRequire(join(folder, "any-file.js"));

// Loads a package that is an ECMAScript module and cannot be required.
export async function load(name) {
  const { exports } = JSON.parse(await readFile(join(folder, name, "package.json"), "utf8"));
  const entry = exports["."].node ?? exports["."];
  const file = typeof entry === "string" ? entry : entry.import;
  return import(pathToFileURL(join(folder, name, file)));
}
