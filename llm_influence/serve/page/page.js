"use strict";
// One page, one state: the user, the changes of the history, and the query time. Every change of
// the state asks the server for both lists; an answer that is no longer wanted is dropped. Texts of
// the log reach the page as text nodes only.

const $ = (id) => document.getElementById(id);
const K = 10;
let about = { behaviors: [], reads_values: false };
let original = [];
let state = { user: "", edits: {}, adds: [], now: null };
let past = [];
let latest = null;
let running = null;
let token = sessionStorage.getItem("token") || "";

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  const options = body === undefined ? { headers, signal } :
    { method: "POST", headers, body: JSON.stringify(body), signal };
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Check that it runs, then try again.");
  }
  if (response.status === 401) $("key").hidden = false;
  if (!response.ok) {
    const problem = await response.json().catch(() => null);
    throw new Error(problem ? `${problem.where}: ${problem.found}. Expected ${problem.expected}. ` +
      `Fix: ${problem.fix}.` : `The server answered with status ${response.status}.`);
  }
  return response.json();
}

function trouble(error) {
  $("trouble").hidden = !error;
  $("trouble").replaceChildren();
  if (!error) return;
  $("trouble").append(error.message + " ", node("button", { type: "button", onclick: refresh },
    "Try again"));
}

// --- state and address ------------------------------------------------------------------------

function remember() {
  const { user, edits, adds, now } = state;
  const hash = "#" + encodeURIComponent(JSON.stringify({ user, edits, adds, now }));
  history.replaceState(null, "", hash);
}

function fromAddress() {
  try {
    const read = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    return { user: String(read.user || ""), edits: read.edits || {}, adds: read.adds || [],
      now: read.now ?? null };
  } catch {
    return null;
  }
}

function change(next) {
  past.push(JSON.stringify(state));
  state = { ...state, ...next };
  refresh();
}

function editsOf() {
  const edits = [];
  for (const [place, edit] of Object.entries(state.edits)) {
    if (edit.off) edits.push({ action: "remove", place: Number(place) });
    else edits.push({ action: "change", place: Number(place), ...edit });
  }
  for (const { title, ...added } of state.adds) edits.push({ action: "add", ...added });
  return edits;
}

const asked = (more = {}) => ({ user: state.user, edits: editsOf(), now: state.now, ...more });
const isChanged = () => editsOf().length > 0 || state.now !== null;

// --- asking -----------------------------------------------------------------------------------

async function refresh() {
  if (running) running.abort();
  const mine = running = new AbortController();
  remember();
  $("undo").disabled = past.length === 0;
  $("reset").disabled = !isChanged();
  drawHistory();
  const slow = setTimeout(() => { $("status").textContent = "Working…"; }, 150);
  document.body.setAttribute("aria-busy", "true");
  try {
    // The list first, which is fast; then its reasons.
    const answer = await ask("/what-if", asked({ k: K, explain: false }), mine.signal);
    if (mine !== running) return;
    latest = answer;
    trouble(null);
    drawSlate(answer);
    const why = answer.events.length ? await ask("/explain", asked(), mine.signal) : null;
    if (mine !== running) return;
    latest.why = why;
    drawWhy(why);
    $("status").textContent = isChanged() ? answer.says : "";
  } catch (error) {
    if (error.name !== "AbortError" && mine === running) {
      trouble(error);
      $("status").textContent = "";
    }
  } finally {
    clearTimeout(slow);
    if (mine === running) document.body.removeAttribute("aria-busy");
  }
}

async function open(next, keep) {
  try {
    original = await ask("/history", { user: next.user });
    state = next;
    past = keep ? past : [];
    $("user").value = state.user;
    trouble(null);
    await refresh();
    if (!isChanged() && latest) offerStrongest(latest.why);
  } catch (error) {
    trouble(error);
  }
}

// --- drawing ----------------------------------------------------------------------------------

const when = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16).replace("T", " ");
const asInput = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 16);
const fromInput = (text) => Math.round(Date.parse(text + ":00Z") / 1000);
const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);
const percent = (p) => (p >= 0.1 ? (100 * p).toFixed(0) : (100 * p).toPrecision(2)) + "%";

function setEdit(place, part) {
  const edits = { ...state.edits };
  const merged = { ...(edits[place] || {}), ...part };
  for (const name of Object.keys(merged)) {
    const same = name === "off" ? !merged.off : merged[name] === original[place][name];
    if (same) delete merged[name];
  }
  if (Object.keys(merged).length) edits[place] = merged;
  else delete edits[place];
  change({ edits });
}

function options(chosen) {
  return about.behaviors.map((name) => node("option", { value: name, selected: name === chosen },
    name));
}

function eventRow(event, place) {
  const edit = state.edits[place] || {};
  const now = { ...event, ...edit };
  const row = node("li", { className: (edit.off ? "off " : "") +
    (Object.keys(edit).length ? "changed" : "") });
  row.dataset.place = place;
  row.append(
    node("input", { type: "checkbox", checked: !edit.off, "aria-label": `Count ${event.title}`,
      onchange: (e) => setEdit(place, { off: !e.target.checked }) }),
    node("span", { className: "name" }, event.title),
  );
  const more = node("span", { className: "more" });
  if (about.behaviors.length > 1) {
    more.append(node("select", { "aria-label": `Behaviour of ${event.title}`,
      onchange: (e) => setEdit(place, { behavior: e.target.value }) }, ...options(now.behavior)));
  } else {
    more.append(now.behavior);
  }
  if (about.reads_values && now.value !== null) {
    more.append(node("input", { type: "number", step: "any", value: now.value,
      "aria-label": `Value of ${event.title}`,
      onchange: (e) => e.target.value !== "" && setEdit(place, { value: Number(e.target.value) }) }));
  }
  more.append(node("input", { type: "datetime-local", value: asInput(now.timestamp),
    "aria-label": `Time of ${event.title}`,
    onchange: (e) => e.target.value && setEdit(place, { timestamp: fromInput(e.target.value) }) }));
  row.append(more);
  return row;
}

function addedRow(event, place) {
  return node("li", { className: "changed" },
    node("button", { type: "button", "aria-label": `Take ${event.title || event.item} away`,
      onclick: () => change({ adds: state.adds.filter((_, n) => n !== place) }) }, "×"),
    node("span", { className: "name" }, event.title || event.item),
    node("span", { className: "more" }, `added: ${event.behavior}, ${when(event.timestamp)}`));
}

function drawHistory() {
  const focused = document.activeElement?.closest?.("#history li")?.dataset.place;
  const kind = document.activeElement?.type;
  $("history").replaceChildren(...original.map(eventRow), ...state.adds.map(addedRow));
  if (focused !== undefined) {
    const row = $("history").querySelector(`li[data-place="${focused}"]`);
    row?.querySelector(`[type="${kind}"]`)?.focus();
  }
  $("now").value = state.now === null ? "" : asInput(state.now);
}

function drawSlate(answer) {
  for (const says of ["change-says", "keep-says", "contrast-sentence"]) $(says).textContent = "";
  const before = new Map(answer.before.map((one) => [one.item, one.rank]));
  $("slate").replaceChildren(...answer.after.map((one) => {
    const old = before.get(one.item);
    let arrow = node("span", {}, "");
    if (isChanged() && old === undefined) arrow = node("span", { className: "rose" }, "▲ new");
    else if (isChanged() && old > one.rank) {
      arrow = node("span", { className: "rose" }, `▲ from ${old}`);
    } else if (isChanged() && old < one.rank) {
      arrow = node("span", { className: "fell" }, `▼ from ${old}`);
    }
    return node("li", {}, node("span", {}, `${one.rank}.`), arrow, node("span", {}, one.title),
      node("span", { className: "number" }, percent(one.probability)));
  }));
  const gone = answer.moved.filter((one) => one.after === null);
  $("left").replaceChildren(...(gone.length ? [node("p", {}, "No longer on the list: " +
    gone.map((one) => `${one.title} (was ${one.before})`).join("; "))] : []));
  $("says").textContent = isChanged() ? answer.says : "Switch an event off, and see what moves.";
}

function bar(label, score, most) {
  const fill = node("div", { className: score < 0 ? "fill against" : "fill" });
  fill.style.width = `${100 * Math.abs(score) / most}%`;
  return node("div", { className: "bar" }, node("span", {}, label),
    node("div", { className: "track" }, fill), node("span", { className: "number" },
      signed(score)));
}

function drawWhy(why) {
  $("sentence").textContent = why ? why.sentence : "There is no event to explain.";
  const alone = why ? why.events.filter((event) => !event.in_block) : [];
  const rows = alone.map((event) => [`${event.title} · ${event.behavior}`, event.score]);
  if (why && why.together !== null) {
    const count = why.events.length - alone.length;
    rows.push([`${count} other events together`, why.together]);
  }
  rows.sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
  const most = Math.max(1e-9, ...rows.map((row) => Math.abs(row[1])));
  $("bars").replaceChildren(...rows.map(([label, score]) => bar(label, score, most)));
  $("sure").replaceChildren(...(why ? why.how_sure.map((words) => node("li", {}, words)) : []));
}

function offerStrongest(why) {
  $("hint").replaceChildren();
  if (!why) return;
  const skipped = original.length - why.events.length;
  const alone = why.events.map((event, n) => [event, n + skipped]).filter(([e]) => !e.in_block);
  if (!alone.length) return;
  const [event, place] = alone.reduce((a, b) => (Math.abs(b[0].score) > Math.abs(a[0].score) ? b :
    a));
  $("hint").append(node("button", { type: "button", id: "strongest", onclick: () => {
    $("hint").replaceChildren();
    setEdit(place, { off: true });
  } }, `Switch off the strongest event: ${event.title}`));
}

// --- search -----------------------------------------------------------------------------------

function searchable(input, list) {
  let timer = null;
  const found = new Map();
  $(input).addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const text = $(input).value;
      if (!text || found.has(text)) return;
      try {
        const items = await ask(`/items?limit=20&search=${encodeURIComponent(text)}`);
        for (const one of items) found.set(one.title, one);
        $(list).replaceChildren(...items.map((one) => node("option", { value: one.title })));
      } catch (error) {
        trouble(error);
      }
    }, 120);
  });
  return async () => {
    const text = $(input).value;
    if (!found.has(text)) {
      for (const one of await ask(`/items?limit=20&search=${encodeURIComponent(text)}`)) {
        found.set(one.title, one);
        if (!found.has(text)) found.set(text, one);
      }
    }
    return found.get(text);
  };
}

const toAdd = searchable("search", "found");
const toCompare = searchable("other", "others");

$("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const item = await toAdd();
    if (!item) throw new Error(`No item is called “${$("search").value}”.`);
    const last = original.length ? original[original.length - 1].timestamp : 0;
    const timestamp = Math.max(last, ...state.adds.map((one) => one.timestamp)) + 60;
    const value = about.reads_values && original.some((one) => one.value !== null) ?
      original.findLast((one) => one.value !== null).value : null;
    const added = { item: item.item, title: item.title, behavior: $("add-behavior").value, timestamp, value };
    $("search").value = "";
    change({ adds: [...state.adds, added] });
  } catch (error) {
    trouble(error);
  }
});

$("contrast").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const other = await toCompare();
    if (!other || !latest) throw new Error(`No item is called “${$("other").value}”.`);
    const first = latest.after[0].item;
    const answer = await ask("/explain", asked({ item: first, over: other.item }));
    $("contrast-sentence").textContent = answer.sentence;
  } catch (error) {
    trouble(error);
  }
});

// --- fewest events ----------------------------------------------------------------------------

function fewest(button, path, says) {
  $(button).addEventListener("click", async () => {
    if (!latest) return;
    $(says).textContent = "Working…";
    try {
      const answer = await ask(path, asked());
      const named = answer.events.map((event) => event.title).join("; ");
      $(says).textContent = named ? `${answer.says} (${named})` : answer.says;
    } catch (error) {
      $(says).textContent = "";
      trouble(error);
    }
  });
}
fewest("change", "/fewest-to-change", "change-says");
fewest("keep", "/fewest-to-keep", "keep-says");

// --- controls ---------------------------------------------------------------------------------

$("who").addEventListener("submit", (event) => {
  event.preventDefault();
  open({ user: $("user").value, edits: {}, adds: [], now: null }, false);
});
$("user").addEventListener("input", async () => {
  try {
    const users = await ask(`/users?search=${encodeURIComponent($("user").value)}`);
    $("users").replaceChildren(...users.map((one) => node("option", { value: one.user },
      `${one.events} events`)));
  } catch (error) {
    trouble(error);
  }
});
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value;
  sessionStorage.setItem("token", token);
  $("key").hidden = true;
  start();
});
$("now").addEventListener("change", (event) => {
  change({ now: event.target.value ? fromInput(event.target.value) : null });
});
$("undo").addEventListener("click", () => {
  if (!past.length) return;
  state = JSON.parse(past.pop());
  refresh();
});
$("reset").addEventListener("click", () => change({ edits: {}, adds: [], now: null }));
$("share").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    $("status").textContent = "The address is copied.";
  } catch {
    $("status").textContent = "Copy the address from the address bar.";
  }
});
addEventListener("hashchange", () => {
  const read = fromAddress();
  if (read) open(read, true);
});

async function start() {
  try {
    about = await ask("/about");
    $("add-behavior").replaceChildren(...options(about.behaviors[0]));
    const read = fromAddress();
    if (read && read.user) return await open(read, true);
    const users = await ask("/users?limit=1");
    if (users.length) return await open({ user: users[0].user, edits: {}, adds: [], now: null });
    throw new Error("The server has no log. Start it with --log.");
  } catch (error) {
    trouble(error);
  }
}
start();
