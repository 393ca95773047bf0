// Finds the npm packages of the tests. They are installed outside this folder, and an `import` looks
// only beside the importing file and above it; `require` can be told where to look.

import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { join } from "node:path";

const folder =
  process.env.TIDINGS_TEST_NODE_PATH ??
  fileURLToPath(new URL("../../.tools/node/node_modules", import.meta.url));

export const require = createRequire(join(folder, "any-file.js"));
