// The card of one image: its classes, why, how long it took, and the code that would do the same.

import { Failure, mayAskAgain, send, stagesOf } from "./api.js";
import { withModel } from "./choice.js";
import { drawHeat } from "./heat.js";
import { toSend } from "./scale.js";
import { curl, python } from "./snippets.js";

const BEST = 5;
const MOST_ROWS = 200; // more would take a browser seconds
const MOST_CHOICES = 100;
const SETTLED_MS = 150; // a held key changes the class many times
const OUTSIDE = "rgb(10 12 16 / 65%)";
const STAGES = [["decode_wait", "Waiting for a decoder"], ["decode", "Decoding"], ["queue", "Waiting for a batch"], ["inference", "Inference"], ["other", "All else in the service"]];

export class Card {
  constructor(file, model, { scales, announce, refresh }) {
    this.refresh = refresh;
    this.file = file;
    this.sent = null;
    this.model = model;
    this.scales = scales;
    this.announce = announce;
    this.element = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.part("h2").textContent = file.name;
    this.part(".remove").setAttribute("aria-label", `Remove ${file.name}`);
    this.part(".by").textContent = `by ${model.chosen}`;
    this.part(".by").hidden = model.chosen === null;
    this.preview();
    this.listen();
  }

  part(selector) {
    return this.element.querySelector(selector);
  }

  parts(selector) {
    return [...this.element.querySelectorAll(selector)];
  }

  preview() {
    const image = this.part("img");
    this.url = URL.createObjectURL(this.file);
    image.alt = this.file.name;
    image.addEventListener("error", () => {
      image.hidden = true;
      this.part(".frame").append(text("no-preview quiet", "This browser cannot show the image."));
    });
    image.src = this.url;
  }

  listen() {
    this.part(".retry button").addEventListener("click", () => {
      mayAskAgain();
      this.run();
    });
    this.part(".why").addEventListener("toggle", (event) => (event.target.open ? this.explain() : this.hideHeat()));
    for (const choice of this.parts(".why select")) choice.addEventListener("change", () => this.explain());
    this.part(".opacity").addEventListener("input", () => this.setOpacity());
    this.part(".all").addEventListener("toggle", () => this.listAll());
    this.part(".find").addEventListener("input", () => this.listAll());
    for (const button of this.parts(".copy")) button.addEventListener("click", () => copy(button));
  }

  remove() {
    this.stopped?.abort();
    this.question?.abort();
    URL.revokeObjectURL(this.url);
    this.element.remove();
  }

  /** Send the image and show the answer, or the error in words. */
  async run() {
    this.stopped = new AbortController();
    this.show({ state: "Waiting for the answer …" });
    this.element.setAttribute("aria-busy", "true");
    try {
      await readable(this.file);
      this.sent ??= this.scales() ? await toSend(this.file, this.model.image_size) : this.file;
      const began = performance.now();
      const response = await send(withModel(this.model.labels.length ? "predict" : "embed", this.model.chosen), this.request(this.sent));
      const answer = await response.json();
      await this.checkModel(answer);
      this.showAnswer(answer, stagesOf(response), performance.now() - began);
    } catch (error) {
      if (error.name !== "AbortError") this.showError(error);
    } finally {
      this.element.removeAttribute("aria-busy");
    }
  }

  request(file, { signal = this.stopped.signal, ...headers } = {}) {
    const type = file.type || "application/octet-stream";
    return { method: "POST", body: file, headers: { "Content-Type": type, ...headers }, signal };
  }

  /** Fail if the answer is of another model than the page knows: its labels would be wrong. */
  async checkModel(answer) {
    const known = this.model;
    if (answer.model === known.name && (answer.logits?.length ?? 0) === known.labels.length) return;
    this.model = await this.refresh(known.chosen);
    throw new Failure(`The service has changed its model since, to ${this.model.name}. Try again.`);
  }

  show({ state = "", error = "", retry = false }) {
    this.part(".state").textContent = state;
    this.part(".state").hidden = !state;
    this.part(".answer > .error").textContent = error;
    this.part(".answer > .error").hidden = !error;
    this.part(".retry").hidden = !retry;
  }

  showError(error) {
    const again = error.retryAfterS ? ` Try again in ${error.retryAfterS} s.` : "";
    const passes = error.status === undefined || error.status === 401 || error.status === 429 || error.status >= 500;
    this.show({ error: `${error.message}${again}`, retry: passes && error.status !== 501 });
    this.announce(`${this.file.name}: ${error.message}`);
  }

  showAnswer(answer, stages, roundTripMs) {
    this.show({ state: this.scaledNote() });
    this.ranked = this.model.labels.length ? ranking(answer, this.model.labels) : [];
    const best = this.part(".answer > .classes");
    if (this.ranked.length) {
      best.replaceChildren(...this.ranked.slice(0, BEST).map(row));
      this.announce(`${this.file.name}: ${this.ranked[0].label}, ${this.ranked[0].shown}`);
    } else {
      best.replaceChildren(featuresRow(answer));
      this.announce(`${this.file.name}: ${answer.size} features`);
    }
    this.part(".more").hidden = false;
    this.showAll();
    this.showTime(stages, roundTripMs);
    this.showCode();
    this.showMethods();
  }

  scaledNote() {
    if (this.sent === this.file) return "";
    return `Scaled down before it was sent: ${size(this.sent.size)} instead of ${size(this.file.size)}.`;
  }

  showAll() {
    const all = this.part(".all");
    all.hidden = this.ranked.length <= BEST;
    all.querySelector("summary").textContent = `All ${this.ranked.length.toLocaleString("en")} classes`;
    all.querySelector(".classes").setAttribute("aria-label", "All classes, best first");
  }

  listAll() {
    const wanted = this.part(".find").value.trim().toLowerCase();
    const found = this.ranked.filter(({ label }) => label.toLowerCase().includes(wanted));
    this.part(".all .classes").replaceChildren(...found.slice(0, MOST_ROWS).map(row));
    this.part(".rest").textContent = found.length > MOST_ROWS ? `the first ${MOST_ROWS} of ${found.length.toLocaleString("en")}` : "";
  }

  showTime(stages, roundTripMs) {
    const total = stages.total ?? 0;
    const known = (stages.decode_wait ?? 0) + (stages.decode ?? 0) + (stages.queue ?? 0) + (stages.inference ?? 0);
    const all = { ...stages, other: Math.max(0, total - known) };
    this.part(".time summary").textContent = `Answered in ${milliseconds(total || roundTripMs)}`;
    this.part(".stages").hidden = this.part(".time dl").hidden = !total; // a proxy may take the header away
    this.part(".stages").replaceChildren(...STAGES.map(([name]) => {
      const bar = document.createElement("span");
      bar.className = name;
      bar.style.setProperty("--share", `${total ? (100 * (all[name] ?? 0)) / total : 0}%`);
      return bar;
    }));
    const list = this.part(".time dl");
    list.replaceChildren();
    for (const [name, title] of STAGES) list.append(...fact(title, milliseconds(all[name] ?? 0), name));
    list.append(...fact("Network and browser", milliseconds(Math.max(0, roundTripMs - total))));
  }

  showCode() {
    const [first, second] = this.parts(".snippet code");
    first.textContent = curl(this.file, this.model);
    second.textContent = python(this.file, this.model);
  }

  showMethods() {
    const why = this.part(".why");
    why.hidden = !this.model.explanations?.length;
    if (why.hidden) return;
    const names = { relevance: "Relevance for the class", rollout: "Attention rollout" };
    options(why.querySelector(".method"), this.model.explanations.map((name) => [name, names[name] ?? name]));
    options(why.querySelector(".class"), this.ranked.slice(0, MOST_CHOICES).map(({ index, label, shown }) => [index, `${label} (${shown})`]));
    why.querySelector(".class").closest("label").hidden = !this.ranked.length;
  }

  /** Ask why, once the choice has settled; an earlier question is dropped. */
  async explain() {
    const [status, question] = [this.part(".explained"), new AbortController()];
    this.question?.abort();
    this.question = question;
    const [method, chosen] = [this.part(".method").value, this.part(".why .class").value];
    const asked = new URLSearchParams(chosen && method !== "rollout" ? { method, class_index: chosen } : { method });
    status.classList.remove("error");
    status.textContent = "Asking why …";
    this.part(".why .class").disabled = method === "rollout"; // it is the same for all classes
    try {
      await new Promise((resolve) => { setTimeout(resolve, SETTLED_MS); });
      question.signal.throwIfAborted();
      const explanation = await (await send(withModel(`explain?${asked}`, this.model.chosen), this.request(this.sent, { signal: question.signal }))).json();
      await this.showHeat(explanation, asked, question.signal);
      status.textContent = inWords(explanation);
    } catch (error) {
      if (error.name === "AbortError") return;
      status.textContent = error.message;
      status.classList.add("error");
      this.part("canvas").hidden = true;
    }
  }

  /** Lay the heat over the image; where the browser shows none, or turns it in another way, show the service's picture. */
  async showHeat(explanation, asked, signal) {
    const [image, canvas] = [this.part("img"), this.part("canvas")];
    const aspect = explanation.image.width / explanation.image.height;
    const fits = !image.hidden && Math.abs(image.naturalWidth / image.naturalHeight / aspect - 1) < 0.05;
    if (fits) {
      drawHeat(canvas, explanation, OUTSIDE);
    } else {
      const picture = await send(withModel(`explain?${asked}`, this.model.chosen), this.request(this.sent, { signal, Accept: "image/png" }));
      await drawPicture(canvas, await picture.blob());
    }
    this.part(".frame").classList.toggle("alone", !fits);
    canvas.hidden = false;
    this.setOpacity();
  }

  hideHeat() {
    this.question?.abort();
    this.part("canvas").hidden = true;
    this.part(".frame").classList.remove("alone");
  }

  setOpacity() {
    this.part("canvas").style.opacity = String(this.part(".opacity").value / 100);
  }
}

/** All classes, best first, each with what to show for it and the length of its bar. */
function ranking(answer, labels) {
  const { logits, probabilities } = answer;
  const order = labels.map((_, index) => index).sort((first, second) => logits[second] - logits[first] || first - second);
  const [least, largest] = [logits[order.at(-1)], logits[order[0]]];
  return order.map((index) => ({
    index,
    label: labels[index],
    shown: probabilities ? percent(probabilities[index]) : logits[index].toPrecision(4),
    share: probabilities ? 100 * probabilities[index] : (100 * (logits[index] - least)) / (largest - least || 1),
  }));
}

function row({ label, shown, share }) {
  const item = document.createElement("li");
  item.append(text("label", label), text("value", shown));
  const bar = text("bar", "");
  bar.setAttribute("aria-hidden", "true");
  bar.append(document.createElement("span"));
  bar.firstElementChild.style.setProperty("--share", `${share}%`);
  item.append(bar);
  return item;
}

function featuresRow(answer) {
  const item = document.createElement("li");
  const first = answer.embedding.slice(0, 6).map((value) => value.toFixed(3)).join(", ");
  item.append(text("label", `${answer.size} features (${answer.pooling})`), text("value", `${first}, …`));
  return item;
}

function text(className, content) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = content;
  return element;
}

/** A term with its value, and the colour of its stage if it has one. */
export function fact(term, value, stage) {
  const [title, content] = [document.createElement("dt"), document.createElement("dd")];
  if (stage) {
    const mark = document.createElement("i");
    mark.className = stage;
    title.append(mark);
  }
  title.append(term);
  content.textContent = value;
  return [title, content];
}

function options(select, choices) {
  select.replaceChildren(...choices.map(([value, label]) => new Option(label, value)));
}

/** Fail in words if a file cannot be read; a request would only say that the network failed. */
async function readable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Failure("This file cannot be read: it is a folder, or has changed since it was chosen.");
  }
}

async function drawPicture(canvas, blob) {
  const bitmap = await createImageBitmap(blob);
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  bitmap.close();
}

function inWords(explanation) {
  if (explanation.method === "rollout") return "Where attention flows, whatever the class. Dark parts were cut off before the model saw the image.";
  return `What speaks for ${explanation.label}${explanation.probability === null ? "" : ` (${percent(explanation.probability)})`}: the lighter, the more. Dark parts were cut off before the model saw the image.`;
}

function percent(probability) {
  if (probability === null) return "";
  if (probability > 0 && probability < 0.0005) return "< 0.1 %";
  return `${(100 * probability).toFixed(1)} %`;
}

function milliseconds(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

function size(bytes) {
  return bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

async function copy(button) {
  const code = button.parentElement.querySelector("code");
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code); // no permission: it is selected, to be copied by hand
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}
