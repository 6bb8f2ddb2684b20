// Joins the server that this page came from, gives each of its workers a Web Worker, and carries messages between them.
// All requests come through one long poll: a browser opens six connections to a server, and there may be more workers.
import { deviceCard } from "./card.js";

const RETRY_MS = 2000;
const workers = new Map();
let page = null; // what the server calls this visit
let posting = Promise.resolve(); // answers leave in their order
let failed = null; // an answer could not be given: this visit is over

function show(text) {
  document.getElementById("state").textContent = text;
}

async function post(path, body, seconds) {
  const options = { method: "POST", body: JSON.stringify(body), signal: AbortSignal.timeout(1000 * seconds) };
  const response = await fetch(path, options);
  if (!response.ok) throw new Error(`${path}: ${response.status} ${await response.text()}`);
  return response.json();
}

function answer(worker, message) {
  const visit = page;
  posting = posting.then(() => post("answer", { page: visit, worker, message }, 60)).catch((error) => (failed = error));
}

function startWorker(number) {
  const worker = new Worker("worker.js");
  workers.set(number, worker);
  worker.onmessage = ({ data }) => answer(number, data);
  worker.onerror = (event) => answer(number, { end: event.message || "the worker failed" });
}

function endWorker(number) {
  workers.get(number)?.terminate();
  workers.delete(number);
}

function endWorkers() {
  [...workers.keys()].forEach(endWorker);
}

function take({ worker, message }) {
  if (message.op === "start") startWorker(worker);
  else if (message.op === "stop") endWorker(worker);
  else workers.get(worker)?.postMessage(message);
}

async function stayAwake() {
  try {
    await navigator.wakeLock?.request("screen");
  } catch {
    // the battery is low, or the page lies behind another
  }
}

async function visit(card) {
  const joined = await post("join", { card }, 20);
  page = joined.page;
  failed = null;
  show("Ready.");
  try {
    for (;;) {
      const { messages } = await post("poll", { page }, joined.watch_s);
      if (failed) throw failed;
      messages.forEach(take);
      show(workers.size ? "Measuring ..." : "Ready.");
    }
  } finally {
    endWorkers();
    page = null;
  }
}

addEventListener("pagehide", () => {
  if (page !== null) navigator.sendBeacon("bye", JSON.stringify({ page }));
});
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && stayAwake());

const card = await deviceCard();
for (const [name, value] of Object.entries(card)) {
  const [term, text] = [document.createElement("dt"), document.createElement("dd")];
  [term.textContent, text.textContent] = [name, typeof value === "string" ? value : JSON.stringify(value)];
  document.getElementById("card").append(term, text);
}
await stayAwake();
for (;;) {
  try {
    await visit(card);
  } catch (error) {
    show(`Not connected (${error.message}). The run is over, or at a part that needs no browser; waiting.`);
  }
  await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
}
