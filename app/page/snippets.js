// The request of a card as a person would write it.

import { address, hasKey } from "./api.js";

export function curl(file) {
  const key = hasKey() ? ` -H "X-API-Key: $VIT_API_KEY"` : "";
  return `curl${key} -H 'Content-Type: ${file.type || "application/octet-stream"}' \\
  --data-binary ${quoted(`@${file.name}`)} \\
  ${quoted(address("predict?vectors=false"))}`;
}

export function python(file) {
  const text = JSON.stringify; // Python reads such strings as JavaScript does
  const imports = hasKey() ? "import os\n\nimport httpx\n" : "import httpx\n";
  const key = hasKey() ? `, "X-API-Key": os.environ["VIT_API_KEY"]` : "";
  return `${imports}
with open(${text(file.name)}, "rb") as file:
    answer = httpx.post(
        ${text(address("predict"))},
        params={"vectors": False},
        content=file.read(),
        headers={"Content-Type": ${text(file.type || "application/octet-stream")}${key}},
    )
answer.raise_for_status()
for prediction in answer.json()["predictions"]:
    print(prediction["label"], prediction["probability"])`;
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}
