// The page: takes images by every way that a browser offers, and shows a card for each.

import { changeKey, hasKey, mayAskAgain, onKeyNeeded, send } from "./api.js";
import { Card, fact } from "./card.js";
import { chosenModel, listModels, withModel } from "./choice.js";

const AT_ONCE = 2;
const POLL_MS = 1000;

const find = (id) => document.getElementById(id);
const waiting = [];
let running = 0;
let pasted = 0;
const described = new Map(); // by the name of the model that was chosen

/** Give the description of the chosen model; asks until the service has loaded it. */
function model(chosen = chosenModel(find("choice"))) {
  if (!described.has(chosen)) {
    described.set(chosen, askForModel(chosen).catch((error) => {
      described.delete(chosen); // the next image asks again
      throw error;
    }));
  }
  return described.get(chosen);
}

/** Forget the description of a model, and give that of its version that is served now. */
function refresh(chosen) {
  described.delete(chosen);
  return model(chosen);
}

async function askForModel(chosen) {
  for (;;) {
    try {
      await listModels(find("choice"));
      const name = chosen ?? chosenModel(find("choice"));
      const answer = { ...await (await send(withModel("model", name))).json(), chosen: name };
      showModel(answer);
      return answer;
    } catch (error) {
      find("served").textContent = error.message;
      if (error.status === 401) find("change-key").hidden = false;
      if (error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
      await new Promise((resolve) => { setTimeout(resolve, Math.max(POLL_MS, 1000 * (error.retryAfterS ?? 0))); });
    }
  }
}

function listen() {
  find("choose").addEventListener("click", () => find("files").click());
  find("photograph").addEventListener("click", () => find("camera").click());
  for (const id of ["files", "camera"]) {
    find(id).addEventListener("change", (event) => {
      take([...event.target.files]);
      event.target.value = ""; // so that the same file can be chosen again
    });
  }
  find("choice").addEventListener("change", async () => {
    const served = await model().catch(() => null); // it says why at the top
    if (served !== null) showModel(served);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].filter(({ type }) => type.startsWith("image/"));
    if (!files.length) return;
    mayAskAgain();
    event.preventDefault();
    take(files.map((file) => new File([file], `pasted-${(pasted += 1)}.${file.type.split("/")[1]}`, { type: file.type })));
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) document.body.classList.remove("dragging");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    take([...event.dataTransfer.files]);
  });
  find("change-key").addEventListener("click", async () => {
    await changeKey();
    await model().catch(() => {});
  });
}

/** Make a card for each file, the newest first, and send a few at once. */
async function take(files) {
  if (!files.length) return;
  const served = await model().catch(() => null);
  if (served === null) return; // it says why at the top
  for (const file of files) {
    const card = new Card(file, served, { scales: () => find("scale").checked, announce, refresh });
    card.part(".remove").addEventListener("click", () => removeCard(card));
    find("results").prepend(card.element);
    document.body.classList.add("has-results");
    waiting.push(card);
  }
  next();
}

async function next() {
  if (running >= AT_ONCE || !waiting.length) return;
  running += 1;
  const card = waiting.shift();
  next();
  await card.run();
  running -= 1;
  next();
}

function removeCard(card) {
  const at = waiting.indexOf(card);
  if (at >= 0) waiting.splice(at, 1);
  const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
  card.remove();
  document.body.classList.toggle("has-results", find("results").childElementCount > 0);
  (next?.querySelector(".remove") ?? find("choose")).focus();
}

function announce(message) {
  find("announcer").textContent = message;
}

function showModel(model) {
  const classes = model.labels.length ? `${model.labels.length.toLocaleString("en")} classes` : "features";
  find("served").textContent = `${model.name}, ${classes}, on ${model.device}`;
  const facts = {
    Model: model.name,
    Architecture: model.architecture,
    Parameters: model.parameters.toLocaleString("en"),
    Classes: model.labels.length.toLocaleString("en"),
    Input: `${model.image_size} x ${model.image_size} pixels${model.patch_size ? `, patches of ${model.patch_size}` : ""}`,
    Preprocessing: model.preprocessing,
    Outputs: { softmax: "one class of all (softmax)", sigmoid: "each class by itself (sigmoid)", none: "measured values" }[model.activation],
    Engine: `${model.engine}, ${model.dtype}, on ${model.device}`,
    "Batch size": `up to ${model.max_batch_size}`,
    "Served by": model.served_by,
  };
  find("facts").replaceChildren(...Object.entries(facts).flatMap(([term, value]) => fact(term, value)));
  find("change-key").hidden = !hasKey();
}

/** Show the dialog; gives the key, or null if it was closed. */
function askForKey(wasRefused) {
  const [dialog, input] = [find("key-dialog"), find("key")];
  find("key-error").hidden = !wasRefused;
  input.value = "";
  find("key-cancel").onclick = () => dialog.close("");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "use" && input.value ? input.value : null);
      input.value = "";
    }, { once: true });
  });
}

/** Show the link to the documentation where there is one. */
async function showDocs() {
  const answer = await fetch("docs", { method: "HEAD" }).catch(() => null);
  find("docs-link").hidden = !answer?.ok;
}

onKeyNeeded(askForKey);
listen();
showDocs();
model().catch(() => {});
