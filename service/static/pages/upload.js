// Forms with `data-upload` (`model` or `dataset`) send their file in pieces, by tus 1.0: what arrived is kept, a broken
// connection goes on where it was, and so does the same file chosen again after the page was closed. A page says which
// uploads wait for that, and asks before it is closed in the middle of one.
// Files may be dropped on such a form. Without this script it sends the file by itself, in one request.
import { say } from "./live.js";

const PIECE_BYTES = 8 << 20;
const MOST_FAILURES = 12;  // in a row, without a byte more that arrived
const TUS = { "Tus-Resumable": "1.0.0" };
const AGAIN = [408, 409, 423, 425, 429];

class Refused extends Error {}  // what trying again does not mend

function base64(text) {
  return btoa(Array.from(new TextEncoder().encode(text), (byte) => String.fromCharCode(byte)).join(""));
}

function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

// What a request that was refused says. A page cannot send a key in a header, so that advice is another one here.
function refusal(status, text) {
  if (status === 401) return new Refused("You are signed out. Sign in, and choose the same file again: it goes on.");
  try {
    const problem = JSON.parse(text);
    return new Refused(problem.detail || problem.title);
  } catch {
    return new Refused(`The server answered ${status}. Try again later.`);
  }
}

// One piece. `fetch` does not tell how much of a body was sent.
function patch(address, offset, piece, signal, onSent) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("PATCH", address);
    const headers = { ...TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": offset };
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onSent(event.loaded);
    request.onload = () => resolve(request);
    request.onerror = request.onabort = () => reject(new Error("The connection broke."));
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(piece);
  });
}

async function begin(kind, file, fields, signal) {
  const said = { kind, filename: file.name, ...fields };
  const metadata = Object.entries(said).map(([name, text]) => `${name} ${base64(text)}`).join(",");
  const headers = { ...TUS, "Upload-Length": file.size, "Upload-Metadata": metadata };
  const answer = await fetch("/v1/uploads", { method: "POST", headers, signal });
  if (!answer.ok) throw refusal(answer.status, await answer.text());
  return answer.headers.get("Location");
}

// Where the server is: {offset}, or {result} of an upload that is whole, or null of one that it does not know.
async function look(address, signal) {
  const answer = await fetch(address, { method: "HEAD", headers: TUS, signal });
  if (answer.status === 404) return null;
  if (answer.status === 401) throw refusal(401);
  if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
  return { result: answer.headers.get("Upload-Result"), offset: Number(answer.headers.get("Upload-Offset")) };
}

async function sendRest(address, state, file, signal, figures) {
  let failures = 0;
  while (!state.result) {
    figures.at(state.offset);
    try {
      const piece = file.slice(state.offset, state.offset + PIECE_BYTES);
      const answer = await patch(address, state.offset, piece, signal, (sent) => figures.at(state.offset + sent));
      const refused = answer.status >= 400 && answer.status < 500 && !AGAIN.includes(answer.status);
      if (refused || answer.status === 507) throw refusal(answer.status, answer.responseText);
      if (answer.status >= 300) throw new Error(`The server answered ${answer.status}.`);
      failures = 0;
      const header = (name) => answer.getResponseHeader(name);
      state = { result: header("Upload-Result"), offset: Number(header("Upload-Offset")) };
    } catch (error) {
      for (let broken = error; broken;) {
        if (broken instanceof Refused || signal.aborted) throw broken;
        if (++failures > MOST_FAILURES)
          throw new Refused("The connection breaks again and again. What arrived is kept: choose the same file later.");
        figures.waiting();
        await pause(Math.min(30000, 500 * 2 ** (failures - 1)), signal);
        try {
          const before = state.offset;
          state = await look(address, signal);
          if (!state) throw new Refused("The server has forgotten this upload. Send the file again.");
          if (state.offset > before) failures = 0;
          broken = null;
        } catch (next) { broken = next; }
      }
    }
  }
  return state.result;
}

function bytes(number) {
  for (const [limit, unit] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]])
    if (number >= limit) return `${(number / limit).toFixed(1)} ${unit}`;
  return `${Math.round(number)} bytes`;
}

function duration(seconds) {
  if (seconds < 60) return `${Math.max(1, Math.ceil(seconds))} s`;
  return seconds < 3600 ? `${Math.ceil(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

// Percent, rate over the last seconds, and time left; every quarter is said.
class Figures {
  constructor(progress, file) {
    [this.bar, this.text] = [progress.querySelector("progress"), progress.querySelector(".figures")];
    [this.file, this.seen, this.quarter] = [file, [], 0];
    this.text.textContent = `${file.name}: begins`;
  }

  at(sent) {
    const now = performance.now(), share = Math.min(1, sent / this.file.size);
    this.seen.push([now, sent]);
    while (this.seen.length > 2 && now - this.seen[0][0] > 5000) this.seen.shift();
    const [then, before] = this.seen[0];
    const rate = now - then > 250 ? (sent - before) / ((now - then) / 1000) : 0;
    this.bar.value = share;
    const parts = [`${Math.floor(100 * share)} % of ${bytes(this.file.size)}`];
    if (rate > 0) parts.push(`${bytes(rate)}/s`, `${duration((this.file.size - sent) / rate)} left`);
    this.text.textContent = parts.join(" · ");
    if (Math.floor(4 * share) > this.quarter) {
      this.quarter = Math.floor(4 * share);
      say(`${25 * this.quarter} % uploaded`);
    }
  }

  waiting() {
    this.seen = [];
    this.text.textContent = "The connection broke. It goes on by itself.";
    say(this.text.textContent);
  }
}

function forget(key, address) {
  localStorage.removeItem(key);
  if (address) fetch(address, { method: "DELETE", headers: TUS }).catch(() => {});  // else it expires by itself
}

const sending = new Set();  // forms

// The browser asks whether to leave while something is sent.
function stay(event) {
  event.preventDefault();
}

function begins(form) {
  sending.add(form);
  addEventListener("beforeunload", stay);
}

function ends(form) {
  sending.delete(form);
  if (!sending.size) removeEventListener("beforeunload", stay);
}

// Leads to what arrived, or says where it is while another form of this page still sends.
function arrived(form, file, address) {
  if (!sending.size) return location.assign(address);
  const line = form.querySelector(".arrived"), link = document.createElement("a");
  Object.assign(link, { href: address, target: "_blank", textContent: file.name });
  line.replaceChildren(link, " has arrived, and opens in a new tab while the other file is sent.");
  line.hidden = false;
  say(line.textContent);
}

// Lists the uploads that this browser began and that the server still waits for.
async function listUnfinished(form) {
  const list = form.querySelector(".unfinished");
  for (const key of Object.keys(localStorage).filter((name) => name.startsWith("upload "))) {
    const [kind, name, size] = JSON.parse(key.slice("upload ".length)), address = localStorage.getItem(key);
    if (kind !== form.dataset.upload) continue;
    let state;
    try { state = await look(address); } catch { continue; }  // which says nothing about the upload
    if (!state || state.result) { localStorage.removeItem(key); continue; }
    if (sending.has(form)) return;  // it may be this one
    const row = document.createElement("li"), discard = document.createElement("button");
    row.dataset.key = key;
    row.textContent = `${name} is not finished: ${Math.floor(100 * state.offset / size)} % of ${bytes(size)} arrived. `
      + "If no other tab sends it, choose the same file: it goes on where it was. ";
    Object.assign(discard, { type: "button", className: "plain", textContent: "Discard it" });
    discard.onclick = () => {
      forget(key, address);
      dropRow(row);
      say(`What arrived of ${name} is discarded.`);
      form.elements.file.focus();
    };
    row.append(discard);
    list.append(row);
    list.hidden = false;
  }
}

function dropRow(row) {
  if (!row) return;
  const list = row.parentNode;
  row.remove();
  list.hidden = !list.children.length;
}

async function upload(form, file) {
  const alert = form.querySelector("[role=alert]"), progress = form.querySelector(".sending");
  const button = form.querySelector("button:not([type])"), cancel = progress.querySelector("button");
  const fields = {};
  for (const [name, value] of new FormData(form)) if (typeof value === "string" && value) fields[name] = value;
  const key = `upload ${JSON.stringify([form.dataset.upload, file.name, file.size, file.lastModified, fields])}`;
  const canceling = new AbortController(), { signal } = canceling;
  let address = localStorage.getItem(key);

  const idle = () => {
    ends(form);
    progress.hidden = true;
    button.disabled = false;
  };

  alert.hidden = form.querySelector(".arrived").hidden = true;
  progress.hidden = false;
  button.disabled = true;
  cancel.onclick = () => canceling.abort();
  dropRow([...form.querySelectorAll(".unfinished li")].find((row) => row.dataset.key === key));
  begins(form);
  try {
    let state = address && (await look(address, signal));
    if (!state) {
      address = await begin(form.dataset.upload, file, fields, signal);
      localStorage.setItem(key, address);
      state = { offset: 0 };
    }
    const result = await sendRest(address, state, file, signal, new Figures(progress, file));
    localStorage.removeItem(key);
    idle();
    arrived(form, file, result.replace(/^\/v1/, ""));
  } catch (error) {
    idle();
    if (signal.aborted) {
      forget(key, address);
      say("The upload was canceled.");
    } else {
      alert.textContent = error instanceof Refused ? error.message : "The server cannot be reached. Try again.";
      alert.hidden = false;
    }
    button.focus();
  }
}

function dropped(form, transfer) {
  const alert = form.querySelector("[role=alert]"), entry = transfer.items[0]?.webkitGetAsEntry?.();
  const trouble = entry?.isDirectory ? "This is a folder. Zip it, and drop the zip."
    : transfer.files.length > 1 ? "Drop one file. Several that belong together go into a zip." : "";
  alert.textContent = trouble;
  alert.hidden = !trouble;
  if (trouble || !transfer.files.length) return;
  form.elements.file.files = transfer.files;
  form.requestSubmit();
}

for (const form of document.querySelectorAll("[data-upload]")) {
  listUnfinished(form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!form.querySelector("button:not([type])").disabled) upload(form, form.elements.file.files[0]);
  });
  const over = (on) => () => form.classList.toggle("over", on);
  form.addEventListener("dragenter", over(true));
  form.addEventListener("dragover", over(true));
  form.addEventListener("dragleave", over(false));
  form.addEventListener("drop", (event) => { over(false)(); dropped(form, event.dataTransfer); });
}
// A file that misses the form would replace the page.
for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
