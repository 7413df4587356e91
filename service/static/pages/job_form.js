// The form of a new job: sliders beside numbers, and a preview that follows what is typed.
import { morph, say } from "./live.js";

const QUIET_MS = 500;
const PLAN_WAIT_S = 10;
const form = document.getElementById("job-form");
const preview = document.getElementById("preview");
let timer = null, latest = null, asked = "";

function bodyOf() {
  const body = new URLSearchParams(new FormData(form));
  body.set("part", "1");
  return body;
}

async function ask() {
  const body = bodyOf();
  if (body.toString() === asked) return;
  asked = body.toString();
  latest?.abort();
  latest = new AbortController();
  const { signal } = latest;
  const plan = preview.querySelector("[data-plan]")?.dataset.plan;
  if (plan) body.set("plan", plan);
  try {
    const answer = await fetch("/jobs/new/preview", { method: "POST", body, signal, headers: { Accept: "text/html" } });
    const fresh = parsed(await answer.text());
    if (!answer.ok) return trouble(fresh.querySelector("main p")?.textContent ?? answer.statusText);
    show(fresh);
    await followPlan(signal);
  } catch (error) {
    if (error.name === "AbortError") return;
    asked = "";
    trouble("The server does not answer.");
  }
}

function parsed(text) {
  const body = new DOMParser().parseFromString(text, "text/html").body;
  return document.adoptNode(body);
}

function trouble(why) {
  const note = document.createElement("p");
  note.className = "bad";
  note.textContent = `No preview: ${why}`;
  preview.querySelector("#plan").replaceChildren(note);
}

function show(fresh) {
  const old = preview.querySelector("#plan"), plan = fresh.querySelector("#plan");
  const pending = plan.dataset.live;
  plan.removeAttribute("data-every");  // followed here, not by live.js
  if (pending && old.querySelector(".tiles")) plan.replaceChildren(...[...old.childNodes].map((node) => node.cloneNode(true)));
  plan.toggleAttribute("aria-busy", Boolean(pending));
  const wrapped = preview.cloneNode(false);
  wrapped.append(...fresh.childNodes);
  morph(preview, wrapped);
  mark();
  copyable();
  if (!pending) sayPlan();
}

async function followPlan(signal) {
  const plan = preview.querySelector("#plan[data-live]");
  while (plan && !signal.aborted) {
    const answer = await fetch(plan.dataset.live, { signal, headers: { Accept: "text/html", Prefer: `wait=${PLAN_WAIT_S}` } });
    const fresh = parsed(await answer.text());
    const done = !answer.ok || fresh.querySelector("[data-ended]") !== null;
    if (!answer.ok) return trouble(fresh.querySelector("main p")?.textContent ?? answer.statusText);
    if (done || !plan.querySelector(".tiles")) plan.replaceChildren(...fresh.childNodes);
    if (done) {
      plan.removeAttribute("data-live");
      plan.removeAttribute("aria-busy");
      return sayPlan();
    }
    await new Promise((go) => setTimeout(go, 1000));
  }
}

function sayPlan() {
  const said = preview.querySelector("[data-say]")?.textContent.trim();
  if (said) say(said);
}

function mark() {
  const wrong = new Map([...preview.querySelectorAll("[data-for]")].map((each) => [each.dataset.for, each.dataset.why]));
  for (const place of form.querySelectorAll(".wrong")) {
    const id = place.id.replace(/-error$/, ""), why = wrong.get(id) ?? "";
    if (place.textContent !== why) place.textContent = why;
    const control = document.getElementById(id);
    if (why) control.setAttribute("aria-invalid", "true");
    else control.removeAttribute("aria-invalid");
  }
}

function copyable() {
  for (const block of preview.querySelectorAll("pre")) {
    if (block.nextElementSibling || !navigator.clipboard) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "plain copy";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy ${block.getAttribute("aria-label")}`);
    block.after(button);
  }
}

preview.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  await navigator.clipboard.writeText(button.previousElementSibling.textContent);
  say("Copied");
});

for (const slider of form.querySelectorAll("input[type=range]")) {
  const number = document.getElementById(slider.dataset.for), end = Number(slider.max);
  const words = () => slider.setAttribute("aria-valuetext", number.value ? `${Math.round(number.value * 1000) / 10} %` : "not said");
  slider.hidden = false;
  slider.addEventListener("input", () => {
    const value = Number(slider.value);
    number.value = value >= end || value <= 0 ? "" : String(Math.round(value * 1000) / 1000);
    words();
  });
  number.addEventListener("input", () => { slider.value = number.value || end; words(); });
  words();
}

form.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(ask, QUIET_MS);
  for (const link of document.querySelectorAll("[data-type]")) {
    const chosen = new URLSearchParams({ type: link.dataset.type });
    for (const [name, id] of [["model", "f-model"], ["model", "f-teacher"], ["dataset", "f-dataset"]]) {
      const value = document.getElementById(id)?.value;
      if (value) chosen.set(name, value);
    }
    link.href = `/jobs/new?${chosen}`;
  }
});

document.getElementById("preview-button").hidden = true;
copyable();
ask();
