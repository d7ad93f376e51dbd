// Renders Vega-Lite specifications to SVG: node render.mjs FIGURE.vl.json …
// Writes FIGURE.svg beside each and prints one line of JSON a figure: {"file": …} or {"file": …, "error": …}.
// Exit code 1 when any failed. Needs vega and vega-lite in node_modules beside it, and nothing from the network.

import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { textWidth } from "./text-widths.mjs";

// The self-contained bundles, so that a published tool carries two files instead of eighty packages.
const vega = load("vega/build/vega.min.js", {});
const vegaLite = load("vega-lite/build/vega-lite.min.js", { vega, "vega-util": vega });

vega.textMetrics.width = (item, text) => {
  const lines = [text ?? item.text].flat();
  const isBold = item.fontWeight === "bold" || Number(item.fontWeight) >= 600;
  return Math.max(0, ...lines.map((line) => textWidth(String(line ?? ""), item.fontSize ?? 11, isBold)));
};

let failed = false;
for (const file of process.argv.slice(2)) {
  try {
    const specification = JSON.parse(readFileSync(file, "utf8"));
    validate(specification);
    const svg = await render(specification);
    const target = file.replace(/\.vl\.json$/, ".svg");
    writeFileSync(`${target}.tmp`, svg + "\n");
    renameSync(`${target}.tmp`, target);
    console.log(JSON.stringify({ file }));
  } catch (error) {
    failed = true;
    console.log(JSON.stringify({ file, error: String(error.message).split("\n")[0] }));
  }
}
process.exitCode = failed ? 1 : 0;

function load(path, dependencies) {
  const code = readFileSync(new URL(`node_modules/${path}`, import.meta.url), "utf8");
  const module = { exports: {} };
  const require = (name) => {
    if (name in dependencies) {
      return dependencies[name];
    }
    throw new Error(`${path} asks for ${name}`);
  };
  new Function("module", "exports", "require", code)(module, module.exports, require);
  return module.exports;
}

async function render(specification) {
  // Vega-Lite draws what it can and warns about the rest; a figure with a part missing is a wrong figure.
  const warnings = [];
  const logger = {
    level: () => logger,
    error: (...text) => (warnings.push(text.join(" ")), logger),
    warn: (...text) => (warnings.push(text.join(" ")), logger),
    info: () => logger,
    debug: () => logger,
  };
  const compiled = vegaLite.compile(specification, { logger }).spec;
  const view = new vega.View(vega.parse(compiled), { renderer: "none", logger, loader: offline() });
  vega.resetSVGDefIds();
  const svg = await view.toSVG();
  view.finalize();
  if (warnings.length > 0) {
    throw new Error(warnings.join("; "));
  }
  return svg;
}

/** A loader that loads nothing: all data is in the specification. */
function offline() {
  const loader = vega.loader();
  const refuse = () => Promise.reject(new Error("a figure must not load anything"));
  return { ...loader, load: refuse, http: refuse, file: refuse };
}

/** What Vega itself would only stumble over: no data, fields that no row has, numbers that are none. */
function validate(specification) {
  if (!/vega-lite\/v6/.test(specification.$schema ?? "")) {
    throw new Error("$schema is not Vega-Lite 6");
  }
  let marks = 0;
  visit(specification, specification.data);
  if (marks === 0) {
    throw new Error("the figure has no mark");
  }

  function visit(view, inherited) {
    const data = view.data ?? inherited;
    for (const part of view.layer ?? view.hconcat ?? view.vconcat ?? view.concat ?? []) {
      visit(part, data);
    }
    if (view.spec) {
      visit(view.spec, data);
    }
    if (view.mark === undefined) {
      return;
    }
    marks++;
    const rows = data?.values;
    if (!Array.isArray(rows) || rows.length === 0) {
      throw new Error("a mark has no data");
    }
    const made = (view.transform ?? []).flatMap((step) => [step.as].flat()).filter(Boolean);
    for (const [channel, definition] of Object.entries(view.encoding ?? {})) {
      const field = definition?.field;
      if (field === undefined || made.includes(field)) {
        continue;
      }
      if (!rows.some((row) => field in row)) {
        throw new Error(`${channel} shows "${field}", which no row has`);
      }
      if (definition.type === "quantitative" && rows.some((row) => row[field] != null && !Number.isFinite(row[field]))) {
        throw new Error(`${channel} shows "${field}", which is not a number in some row`);
      }
    }
  }
}
