// Parts of a page that follow the server, where JavaScript runs: without it, a reload shows the same.
//
//   <section data-live="/jobs/ID/live" data-events="/v1/jobs/ID/events">   is fetched anew when an event comes
//   <section data-live="/models/ID/card" data-every="1">                    is fetched anew every second; both may be there
//
// The answer is the same markup as the section's content. It is put into the page node by node, so that focus, open
// details and selected text stay. A section follows until its content has an element with `data-ended`; elements with
// `data-say` tell a screen reader when their text changes.
//
// While a page is hidden it holds no stream, of which a browser opens six to one server, all tabs together; it asks now
// and then instead. What only follows the clock waits until the page is looked at again.
const LEAST_MS = 700, HIDDEN_MS = 5000;
const TROUBLE = "The server does not answer. This page asks again every few seconds, and then goes on by itself.";

export function morph(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName || old.id !== fresh.id) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  const own = old.nodeName === "DETAILS" ? ["open"] : [];
  for (const { name } of [...old.attributes])
    if (!fresh.hasAttribute(name) && !own.includes(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes)
    if (old.getAttribute(name) !== value && !own.includes(name)) old.setAttribute(name, value);
  morphChildren(old, fresh);
}

// In order; an element with an id stays the one that has it, whatever comes or goes before it.
function morphChildren(old, fresh) {
  const ids = new Set([...fresh.children].map(({ id }) => id).filter(Boolean));
  let place = old.firstChild;
  for (const node of [...fresh.childNodes]) {
    const same = node.id ? withId(place, node.id) : place?.id && ids.has(place.id) ? null : place;
    if (!same) { old.insertBefore(node, place); continue; }
    while (place !== same) place = removed(place);
    place = place.nextSibling;
    morph(same, node);
  }
  while (place) place = removed(place);
}

function withId(node, id) {
  while (node && node.id !== id) node = node.nextSibling;
  return node;
}

function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

export function say(text) {
  document.getElementById("spoken").textContent = text;
}

function follow(section) {
  let timer = null, due = 0, asking = false, again = false, stream = null, said = spoken(section);
  const ended = () => section.querySelector("[data-ended]") !== null;
  const later = (ms) => {
    if (timer !== null && due <= Date.now() + ms) return;
    clearTimeout(timer);
    due = Date.now() + ms;
    timer = setTimeout(refresh, ms);
  };

  async function refresh() {
    timer = null;
    if (asking) { again = true; return; }
    asking = true;
    let trouble = false;
    try {
      const answer = await fetch(section.dataset.live, { headers: { Accept: "text/html" } });
      trouble = answer.status >= 500 || answer.status === 429;
      if (answer.ok && !answer.redirected) show(await answer.text());
      else if (!trouble) return location.reload();  // signed out, or deleted: the whole page says so
    } catch { trouble = true; }
    asking = false;
    tell(trouble);
    if (trouble) later(3000);
    else if (ended()) stream?.close();
    else if (again) later(LEAST_MS);
    else {
      tick();
      if (document.hidden && section.dataset.events) later(HIDDEN_MS);
    }
    again = false;
  }

  function tick() {
    if (section.dataset.every && (section.dataset.events || !document.hidden)) later(section.dataset.every * 1000);
  }

  function tell(trouble) {
    if (trouble === section.hasAttribute("data-trouble")) return;
    section.toggleAttribute("data-trouble", trouble);
    if (trouble) {
      const note = document.createElement("p");
      note.className = "notes";
      note.textContent = TROUBLE;
      section.before(note);
    } else section.previousElementSibling.remove();
    say(trouble ? TROUBLE : "The server answers again.");
  }

  function show(text) {
    const parsed = new DOMParser().parseFromString(text, "text/html");
    const fresh = document.createElement("div");
    fresh.append(...document.adoptNode(parsed.body).childNodes);
    const log = section.querySelector("[data-tail]");
    const atEnd = log && log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    // The parser drops white space at the beginning.
    const first = section.firstChild;
    if (first?.nodeType === Node.TEXT_NODE && !first.data.trim()) fresh.prepend(first.cloneNode());
    morphChildren(section, fresh);
    const tail = section.querySelector("[data-tail]");
    if (tail && (atEnd || tail !== log)) tail.scrollTop = tail.scrollHeight;
    const now = spoken(section);
    if (now && now !== said) say(now);
    said = now;
    section.dispatchEvent(new CustomEvent("shown", { bubbles: true }));
  }

  function listen() {
    if (ended() || document.hidden || (stream && stream.readyState !== EventSource.CLOSED)) return;
    stream = new EventSource(section.dataset.events);
    for (const kind of ["status", "progress", "metric", "log", "done"])
      stream.addEventListener(kind, () => later(LEAST_MS));
    stream.addEventListener("done", () => stream.close());
    // A connection that is lost the browser opens again by itself; one that is refused it does not.
    stream.onerror = () => { later(3000); setTimeout(listen, 5000); };
  }

  const log = section.querySelector("[data-tail]");
  if (log) log.scrollTop = log.scrollHeight;
  if (ended()) return;
  if (section.dataset.events) listen();
  document.addEventListener("visibilitychange", () => {
    if (ended()) return;
    if (section.dataset.events) {
      if (document.hidden) stream?.close();
      else listen();
      later(document.hidden ? HIDDEN_MS : 0);
    } else if (document.hidden) {
      clearTimeout(timer);
      timer = null;
    } else if (section.dataset.every) later(0);
  });
  tick();
}

function spoken(section) {
  return [...section.querySelectorAll("[data-say]")].map((node) => node.textContent.trim()).join(". ");
}

document.querySelectorAll("[data-live]").forEach(follow);
