// The script of all pages: local times, copying, menus, forms and refreshing.

const DAY = 86_400_000;
const REFRESH_MS = 1_000;
// The interval for a page in the background, whose title still shows the state of the task.
const HIDDEN_MS = 10_000;
// The longest time that a browser needs to load the next page after a click.
const LEAVING_MS = 10_000;
// The longest press of a button, and the longest time from its end to the click event.
const PRESS_MS = 10_000;
const CLICK_MS = 400;

// The only policy that turns text into HTML. It is used for pages of this service, in which the
// server has escaped all values.
const htmlPolicy = globalThis.trustedTypes
  ? trustedTypes.createPolicy("own-page", { createHTML: (text) => text })
  : { createHTML: (text) => text };

// --- times -----------------------------------------------------------------------------

// The 24-hour clock, as for the times of log lines.
const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium", hourCycle: "h23" });
const full = new Intl.DateTimeFormat(undefined, {
  dateStyle: "medium",
  timeStyle: "medium",
  hourCycle: "h23",
});

const minutes = new Intl.DateTimeFormat(undefined, {
  dateStyle: "medium",
  timeStyle: "short",
  hourCycle: "h23",
});
const date = new Intl.DateTimeFormat(undefined, {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  hourCycle: "h23",
});
const timeOfDay = new Intl.DateTimeFormat(undefined, { timeStyle: "short", hourCycle: "h23" });

function durationText(seconds) {
  const parts = [
    [Math.floor(seconds / 86_400), "d"],
    [Math.floor(seconds / 3_600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [Math.floor(seconds) % 60, "s"],
  ];
  while (parts.length > 1 && parts[0][0] === 0) parts.shift();
  return parts
    .slice(0, 2)
    .filter(([count, unit]) => count || unit === "s")
    .map(([count, unit]) => `${count} ${unit}`)
    .join(" ");
}

// After two days, shows the date: all tasks of a day would have the same age, and a phone does not
// show the title with the exact time.
function age(time) {
  return Date.now() - time > 2 * DAY ? date.format(time) : relative(time);
}

function relative(time) {
  const seconds = (Date.now() - time) / 1000;
  if (Math.abs(seconds) < 5) return "now";
  return seconds < 0 ? `in ${largestUnit(nearest(-seconds))}` : `${largestUnit(seconds)} ago`;
}

const largestUnit = (seconds) => durationText(seconds).replace(/^(\d+ (?:d|h|min)) .*/, "$1");

// Rounds to the largest unit, so that a new key for 90 days expires in 90 d, not in 89 d.
function nearest(seconds) {
  const unit = [86_400, 3_600, 60].find((each) => each <= seconds) ?? 1;
  return Math.round(seconds / unit) * unit;
}

// The number of days since a time: 0 is today, 1 yesterday, -1 tomorrow.
function daysAgo(time) {
  const [today, other] = [new Date(), new Date(time)].map((date) => date.setHours(0, 0, 0, 0));
  return Math.round((today - other) / DAY);
}

function both(time) {
  const whole = daysAgo(time) === 0 ? clock : full;
  return `${whole.format(time)} (${relative(time)})`;
}

// The time of day; on other days with the date.
function at(time) {
  const days = daysAgo(time);
  const word = { 1: "yesterday ", 0: "", [-1]: "tomorrow " }[days];
  if (word !== undefined) return word + timeOfDay.format(time);
  return (Math.abs(days) < 300 ? date : minutes).format(time);
}

// The remaining time until an expected end.
function left(time) {
  const seconds = Math.round((time - Date.now()) / 1000);
  return seconds > 0 ? `about ${durationText(seconds)} left` : "taking longer than expected";
}

function ago(time) {
  return relative(time).replace(/^now$/, "just now");
}

const FORMATS = {
  age,
  ago,
  both,
  left,
  at,
  due: (time) => (time < Date.now() ? "now" : age(time)),
};

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function showTimes() {
  for (const element of document.querySelectorAll("time[data-show]")) {
    const time = new Date(element.dateTime);
    if (!element.title) element.title = full.format(time);
    set(element, FORMATS[element.dataset.show](time));
  }
  for (const element of document.querySelectorAll("title[data-time]")) {
    const time = new Date(element.dataset.time);
    set(element, `${full.format(time)}: ${element.dataset.count}`);
  }
  // After the task is deleted, its duration no longer grows.
  for (const element of isGone ? [] : document.querySelectorAll("[data-since]")) {
    set(element, durationText(Math.max(0, (Date.now() - new Date(element.dataset.since)) / 1000)));
  }
}

// --- copying -----------------------------------------------------------------------------

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS, browsers have no clipboard API, but they can copy the selection.
    const before = document.activeElement;
    const field = document.createElement("textarea");
    field.className = "visually-hidden";
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    before?.focus();
  }
}

// Copies the text of an element.
async function copy(button) {
  await copyText(document.querySelector(button.dataset.copy).textContent);
  const label = button.firstChild;
  label.data = "Copied";
  setTimeout(() => (label.data = "Copy"), 1_500);
}

addEventListener("click", (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (button) copy(button);
});

function showCopyButtons() {
  for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;
}

// --- menus ----------------------------------------------------------------------------

const openMenus = () => document.querySelectorAll(".menu[open]");

addEventListener("click", ({ target }) => {
  for (const menu of openMenus()) if (!menu.contains(target)) menu.open = false;
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  for (const menu of openMenus()) {
    menu.open = false;
    menu.firstElementChild.focus();
  }
});

// --- forms -------------------------------------------------------------------------------

// Forms that were sent: a double click must send a form only once.
const sentForms = new Set();

addEventListener("submit", (event) => {
  if (sentForms.has(event.target)) event.preventDefault();
  else if (event.target.method === "post") sentForms.add(event.target);
});
addEventListener("pageshow", () => sentForms.clear());

// The default of a field for a time zone is the browser's time zone.
for (const field of document.querySelectorAll("[data-zone]")) {
  field.value ||= Intl.DateTimeFormat().resolvedOptions().timeZone;
}

// A new key is shown once: a reload or a return to the page must not send the form again.
if (document.querySelector("[data-once]")) history.replaceState(null, "", location.href);

// --- refresh --------------------------------------------------------------------------

let isGone = false;
// The ETag and the address of the last response.
let etag = null;
let shownAddress = location.href;
// Part -> its HTML as the server sent it, before the page changed it.
const original = new WeakMap();

function rememberOriginals() {
  for (const part of document.querySelectorAll(
    "[data-live], :is([data-live=rows], [data-live=questions]) > *",
  )) {
    original.set(part, part.outerHTML);
  }
}

// Whether the reader is filling in a form in this part. The part must then not be replaced.
const isInUse = (part) =>
  part.querySelector("form.answer:is([data-typed], :focus-within)") !== null;

function replace(part, fresh) {
  if (original.get(part) === fresh.outerHTML || isInUse(part)) return part;
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const node = document.importNode(fresh, true);
  original.set(node, fresh.outerHTML);
  const open = [...part.querySelectorAll("details[open]")].map(({ id }) => id);
  const selected = [...part.querySelectorAll("[form=selected]:checked")].map(({ value }) => value);
  part.replaceWith(node);
  for (const box of node.querySelectorAll("[form=selected]"))
    box.checked = selected.includes(box.value);
  for (const fold of node.querySelectorAll("details")) fold.open ||= open.includes(fold.id);
  if (focused) counterpart(node, focused)?.focus({ preventScroll: true });
  return node;
}

// The link or button in the new HTML that corresponds to the one with the focus.
function counterpart(node, focused) {
  const same = (other) => other.textContent === focused.textContent && other.href === focused.href;
  return focused.id
    ? document.getElementById(focused.id)
    : [...node.querySelectorAll(focused.localName)].find(same);
}

function replaceRows(part, fresh) {
  const ids = new Set(Array.from(fresh.children, (row) => row.id));
  for (const row of [...part.children]) if (!ids.has(row.id)) row.remove();
  let before = null;
  for (const row of fresh.children) {
    const old = document.getElementById(row.id) ?? imported(row);
    const place = before ? before.nextElementSibling : part.firstElementChild;
    // Existing rows stay in their place, since an element that is moved loses the focus.
    if (place !== old) part.insertBefore(old, place);
    before = replace(old, row);
  }
}

// No question moves, since a press could then answer another question: a question that has ended
// stays until the page is read again, and new questions are appended.
function replaceQuestions(part, fresh) {
  for (const row of fresh.children) {
    const old = document.getElementById(row.id);
    if (old) replace(old, row);
    else part.append(imported(row));
  }
}

function imported(row) {
  const node = document.importNode(row, true);
  original.set(node, row.outerHTML);
  return node;
}

export function showNotice(text, link) {
  const box = document.getElementById("notice");
  if (box.dataset.message === text) return;
  box.dataset.message = text;
  const line = document.createElement("p");
  line.append(text);
  if (link) {
    const anchor = document.createElement("a");
    [anchor.href, anchor.textContent] = [link.href, link.textContent];
    line.append(" ", anchor);
  }
  box.replaceChildren(...(text ? [line] : []));
}

function endPage(text, path) {
  isGone = true;
  document.body.classList.add("gone");
  document.dispatchEvent(new CustomEvent("gone", { detail: text }));
  const home = document.querySelector("header .title").href;
  const here = location.pathname + location.search;
  const link = document.createElement("a");
  link.href = path === "sign-in" ? here : home;
  link.textContent = path === "sign-in" ? "Sign in again" : "Show all tasks";
  showNotice(text, link);
  return "gone";
}

// While the browser loads the page of a link, the page must not reload: that would cancel the link.
let leftAt = -Infinity;
addEventListener("beforeunload", () => {
  leftAt = performance.now();
});
const isLeaving = () => performance.now() - leftAt < LEAVING_MS;

// While a clickable element is pressed, the page does not change: if the element were replaced or
// moved, the click would be lost.
export let released = Promise.resolve();
let release = null;
let releasing = null;

function releaseIn(pause) {
  clearTimeout(releasing);
  releasing = setTimeout(() => {
    release?.();
    release = null;
  }, pause);
}

addEventListener("pointerdown", ({ button, target }) => {
  if (button > 1 || !target.closest?.("a, button, summary, label, [type=checkbox]")) return;
  // While the list of a select is open, a browser may send no pointer events.
  if (target.closest("select")) return;
  if (!release) released = new Promise((resolve) => (release = resolve));
  releaseIn(PRESS_MS);
});
// On a touch screen, the click follows some time after this event.
addEventListener("pointerup", () => releaseIn(CLICK_MS));
for (const type of ["click", "auxclick", "pointercancel", "dragstart", "contextmenu"]) {
  addEventListener(type, () => releaseIn(0));
}

// Fetches this page again; returns "same", "changed", "unreachable" or "gone".
export async function refresh() {
  if (isGone) return "gone";
  const address = location.href;
  const headers = etag && address === shownAddress ? { "If-None-Match": etag } : {};
  let response, body;
  try {
    response = await fetch(address, { headers, redirect: "manual", cache: "no-store" });
    body = await response.text();
  } catch {
    response = null;
  }
  await released;
  if (isLeaving()) return "same";
  if (!response) {
    showNotice("The service can’t be reached. Trying again…");
    return "unreachable";
  }
  if (
    response.type === "opaqueredirect" &&
    document.getElementById("search") &&
    new URLSearchParams(location.search).has("q")
  ) {
    // The text in the search box is the ID of a task, or a label, and leads to another page.
    location.reload();
    return "gone";
  }
  if (response.type === "opaqueredirect") return endPage("You are signed out.", "sign-in");
  if (response.headers.has("Task-Gone")) return endPage("This task was deleted.");
  // Only the page of a link has no header: the link is no longer valid.
  if (response.status === 404 && !document.querySelector("header")) location.reload();
  if (response.status === 304 || response.ok) {
    if (document.getElementById("notice").dataset.message) showNotice("");
  }
  if (response.status === 304) return "same";
  if (!response.ok) {
    showNotice("The service is not available. Trying again…");
    return "unreachable";
  }
  // The reader has changed the filters during the request.
  if (address !== location.href) return "same";
  [etag, shownAddress] = [response.headers.get("ETag"), address];
  const fresh = new DOMParser().parseFromString(htmlPolicy.createHTML(body), "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    if (!other && part.dataset.live === "page") location.reload();
    if (!other) continue;
    if (part.dataset.live === "rows") replaceRows(part, other);
    else if (part.dataset.live === "questions") replaceQuestions(part, other);
    else replace(part, other);
  }
  showState(fresh);
  loadParts();
  showCopyButtons();
  showTimes();
  document.dispatchEvent(new CustomEvent("refreshed", { detail: fresh }));
  return "changed";
}

// Loads the slow parts of a page. Instead of such a part, the page contains a link to it.
function loadParts() {
  for (const part of document.querySelectorAll("[data-load]")) {
    part.removeAttribute("data-load");
    load(part, part.querySelector("a").href);
  }
}

async function load(part, address) {
  const answer = fetch(address, { redirect: "manual" }).then((response) => response.text());
  const text = htmlPolicy.createHTML(await answer.catch(() => ""));
  const fresh = new DOMParser().parseFromString(text, "text/html").getElementById(part.id);
  await released;
  // If the response does not contain the part, the link remains.
  if (!fresh) return;
  for (const link of fresh.querySelectorAll("a[href*='#']")) link.setAttribute("href", link.hash);
  part.replaceChildren(...fresh.childNodes);
}

addEventListener("click", (event) => {
  const link = event.target.closest?.("[data-again]");
  if (!link) return;
  event.preventDefault();
  load(document.getElementById(link.dataset.again), link.href);
});

// Updates the title and the icon of the tab.
function showState(fresh) {
  if (document.title !== fresh.title) document.title = fresh.title;
  const [icon, other] = [document, fresh].map((page) => page.getElementById("icon"));
  if (icon.dataset.state === other.dataset.state) return;
  icon.dataset.state = other.dataset.state;
  icon.href = other.href;
}

let nextRefresh = null;

async function keepFresh() {
  // A page whose only live part is the number of items that need attention is not requested.
  const state = document.querySelector("main [data-live]") ? await refresh() : "same";
  const pause = document.hidden ? HIDDEN_MS : REFRESH_MS;
  clearTimeout(nextRefresh);
  if (state !== "gone")
    nextRefresh = setTimeout(keepFresh, state === "unreachable" ? 2 * pause : pause);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  clearTimeout(nextRefresh);
  keepFresh();
});

rememberOriginals();
loadParts();
showCopyButtons();
showTimes();
setInterval(showTimes, 1_000);
nextRefresh = setTimeout(keepFresh, REFRESH_MS);
