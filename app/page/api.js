// Requests to the service: beside this page, whatever the prefix of its path, with the API key if one is asked for.

const BASE = new URL(".", document.baseURI);
const KEY = "vit-serve api key";
const WRITABLE = /^[\x21-\x7e]+$/; // what a header can hold, without blanks

/** An answer that is an error, in the service's words. */
export class Failure extends Error {
  constructor(message, status, retryAfterS) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

let askForKey = async () => null;
let asking = null;
let declined = false; // the dialog was closed without a key: nothing asks again by itself

/** Set the function that asks a person for the key: `ask(wasRefused)` gives a key, or null. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export function hasKey() {
  return sessionStorage.getItem(KEY) !== null;
}

/** Ask for another key; the old one is kept if nothing is given. */
export async function changeKey() {
  declined = false;
  await newKey(false);
}

/** Let requests ask for a key again after the dialog was closed without one. */
export function mayAskAgain() {
  declined = false;
}

/** Absolute address of a path of the service. */
export function address(path) {
  return new URL(path, BASE).href;
}

/** Send a request; gives the response if its status is a success, and asks for a key where one is needed. */
export async function send(path, options = {}) {
  for (;;) {
    const sent = sessionStorage.getItem(KEY);
    const response = await answerTo(path, options, sent);
    if (response.ok) return response;
    if (response.status !== 401) throw await failureOf(response);
    // of several requests at once, one asks, and the others go on with what it got
    const current = sessionStorage.getItem(KEY);
    if (current === sent && (declined || !(await newKey(sent !== null)))) {
      throw new Failure("This service needs an API key.", 401);
    }
  }
}

async function answerTo(path, options, key) {
  const headers = new Headers(options.headers);
  if (key !== null) headers.set("X-API-Key", key);
  try {
    return await fetch(address(path), { ...options, headers, credentials: "same-origin", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service cannot be reached. Is it running, and are you online?");
  }
}

async function newKey(wasRefused) {
  asking ??= readKey(wasRefused).finally(() => { asking = null; });
  const key = await asking;
  declined = key === null;
  if (key !== null) sessionStorage.setItem(KEY, key);
  return key !== null;
}

async function readKey(wasRefused) {
  for (;;) {
    const key = (await askForKey(wasRefused))?.trim() ?? null;
    if (key === null || WRITABLE.test(key)) return key;
    wasRefused = true;
  }
}

async function failureOf(response) {
  const retryAfterS = Number(response.headers.get("Retry-After")) || null;
  let detail = `The service answered ${response.status}.`;
  try {
    detail = (await response.json()).detail ?? detail;
  } catch {
    // a proxy's error is no JSON
  }
  if (response.status === 413 && detail.includes("413")) detail = "The image is too large for the service, or for a proxy in front of it.";
  return new Failure(detail, response.status, retryAfterS);
}

/** Milliseconds by stage from the header Server-Timing. */
export function stagesOf(response) {
  const stages = {};
  for (const part of (response.headers.get("Server-Timing") ?? "").split(",")) {
    const [name, duration] = part.trim().split(";dur=");
    if (duration !== undefined) stages[name] = Number(duration);
  }
  return stages;
}
