// Classifies the image in a file with Hugging Face's client: node classify.mjs URL FILE, with the key in VIT_KEY.
import { readFile } from "node:fs/promises";
import { InferenceClient } from "@huggingface/inference";

const [url, file] = process.argv.slice(2);
const client = new InferenceClient(process.env.VIT_KEY).endpoint(url);
const data = new Blob([await readFile(file)], { type: "image/jpeg" });
console.log(JSON.stringify(await client.imageClassification({ data }, { retry_on_error: false })));
