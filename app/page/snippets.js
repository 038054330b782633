// The request of a card as a person would write it.

import { address, hasKey } from "./api.js";
import { withModel } from "./choice.js";

const CLASSES = `for prediction in answer.json()["predictions"]:
    print(prediction["label"], prediction["probability"])`;
const FEATURES = `print(answer.json()["embedding"])`;

export function curl(file, model) {
  const path = withModel(model.labels.length ? "predict?vectors=false" : "embed", model.chosen);
  const key = hasKey() ? ` -H "X-API-Key: $VIT_API_KEY"` : "";
  return `curl${key} -H 'Content-Type: ${file.type || "application/octet-stream"}' \\
  --data-binary ${quoted(`@${file.name}`)} \\
  ${quoted(address(path))}`;
}

export function python(file, model) {
  const text = JSON.stringify; // Python reads such strings as JavaScript does
  const imports = hasKey() ? "import os\n\nimport httpx\n" : "import httpx\n";
  const key = hasKey() ? `, "X-API-Key": os.environ["VIT_API_KEY"]` : "";
  return `${imports}
with open(${text(file.name)}, "rb") as file:
    answer = httpx.post(
        ${text(address(model.labels.length ? "predict" : "embed"))},
${parameters(model)}        content=file.read(),
        headers={"Content-Type": ${text(file.type || "application/octet-stream")}${key}},
    )
answer.raise_for_status()
${model.labels.length ? CLASSES : FEATURES}`;
}

function parameters(model) {
  const given = [
    ...(model.chosen === null ? [] : [`"model": ${JSON.stringify(model.chosen)}`]),
    ...(model.labels.length ? ['"vectors": False'] : []),
  ];
  return given.length ? `        params={${given.join(", ")}},\n` : "";
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
