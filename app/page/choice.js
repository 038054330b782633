// The choice of a model, where several are served.

import { send } from "./api.js";

/** Give a path of the service with the name of a model in its query; null is the model that answers by default. */
export function withModel(path, name) {
  return name === null ? path : `${path}${path.includes("?") ? "&" : "?"}model=${encodeURIComponent(name)}`;
}

/** Fill the list of models, and show it if there are several. */
export async function listModels(label) {
  const { models } = await (await send("models")).json();
  const select = label.querySelector("select");
  const ready = models.filter(({ state }) => state === "ready");
  const chosen = ready.find(({ name }) => name === select.value) ?? ready.find((model) => model.default) ?? ready[0] ?? models[0];
  select.replaceChildren(...models.map(({ name, state }) => {
    const option = new Option(state === "ready" ? name : `${name} (${state})`, name, false, name === chosen.name);
    option.disabled = state !== "ready";
    return option;
  }));
  label.hidden = models.length < 2;
}

/** Name of the chosen model; null where there is no choice. */
export function chosenModel(label) {
  return label.hidden ? null : label.querySelector("select").value;
}
