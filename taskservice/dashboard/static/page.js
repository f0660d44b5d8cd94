// What every page does: shows moments as a person reads them, copies, and keeps itself up to date.

const DAY = 86_400_000;
const LOOK_MS = 1_000;

// The one way from text to markup: a page of our own, as the server made and escaped it.
const pages = globalThis.trustedTypes
  ? trustedTypes.createPolicy("own-page", { createHTML: (text) => text })
  : { createHTML: (text) => text };

// --- moments -----------------------------------------------------------------------------

const clock = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function spoken(seconds) {
  const parts = [
    [Math.floor(seconds / 86_400), "d"],
    [Math.floor(seconds / 3_600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [Math.floor(seconds) % 60, "s"],
  ];
  while (parts.length > 1 && parts[0][0] === 0) parts.shift();
  return parts.slice(0, 2).filter(([count, unit]) => count || unit === "s")
    .map(([count, unit]) => `${count} ${unit}`).join(" ");
}

function age(moment) {
  const seconds = (Date.now() - moment) / 1000;
  if (Math.abs(seconds) < 5) return "now";
  const text = spoken(Math.abs(seconds)).replace(/^(\d+ (?:d|h|min)) .*/, "$1");
  return seconds < 0 ? `in ${text}` : `${text} ago`;
}

function both(moment) {
  const whole = Math.abs(Date.now() - moment) < DAY / 2 ? clock : full;
  return `${whole.format(moment)} (${age(moment)})`;
}

const SHOWN = { age, both, due: (moment) => (moment < Date.now() ? "now" : age(moment)) };

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function tell() {
  for (const element of document.querySelectorAll("time[data-show]")) {
    const moment = new Date(element.dateTime);
    if (!element.title) element.title = full.format(moment);
    set(element, SHOWN[element.dataset.show](moment));
  }
  // Of what this page can't see any more it can't say that it goes on.
  for (const element of document.querySelectorAll("title[data-moment]")) {
    const moment = new Date(element.dataset.moment);
    set(element, `${full.format(moment)}: ${element.dataset.words}`);
  }
  for (const element of gone ? [] : document.querySelectorAll("[data-since]")) {
    set(element, spoken(Math.max(0, (Date.now() - new Date(element.dataset.since)) / 1000)));
  }
}

// --- copying -----------------------------------------------------------------------------

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS a browser has no clipboard for us; but it copies what is selected.
    const before = document.activeElement;
    const field = document.createElement("textarea");
    field.className = "unseen";
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    before?.focus();
  }
}

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

// --- the menu ----------------------------------------------------------------------------

const menu = document.getElementById("menu");

addEventListener("click", ({ target }) => {
  if (!menu?.contains(target)) menu?.removeAttribute("open");
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !menu?.open) return;
  menu.open = false;
  menu.firstElementChild.focus();
});

// --- forms -------------------------------------------------------------------------------

// Whoever clicks twice wants it once.
const sent = new Set();

addEventListener("submit", (event) => {
  if (sent.has(event.target)) event.preventDefault();
  else if (event.target.method === "post") sent.add(event.target);
});
addEventListener("pageshow", () => sent.clear());

// Filters apply at once, and leave the focus where it is.
const search = document.getElementById("search");

search?.addEventListener("change", () => {
  const wishes = [...new FormData(search)].filter(([, text]) => text);
  const query = new URLSearchParams(wishes).toString();
  history.pushState(null, "", query ? `?${query}` : location.pathname);
  shown = location.search;
  etag = null;
  refresh();
});
let shown = location.search;
addEventListener("popstate", () => {
  // A link to a part of the page is one, too.
  if (search && location.search !== shown) location.reload();
});

// What was shown once is not asked for again, and to come back here sends no form.
if (document.querySelector("[data-once]")) history.replaceState(null, "", location.href);

// --- up to date --------------------------------------------------------------------------

let gone = false;
let etag = null;
// Part -> its markup as the server gave it, which the page has changed since.
const given = new WeakMap();

function remember() {
  for (const part of document.querySelectorAll("[data-live], [data-live=rows] > *")) {
    given.set(part, part.outerHTML);
  }
}

function replace(part, fresh) {
  if (given.get(part) === fresh.outerHTML) return part;
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const node = document.importNode(fresh, true);
  given.set(node, fresh.outerHTML);
  const open = [...part.querySelectorAll("details[open]")].map(({ id }) => id);
  part.replaceWith(node);
  for (const fold of node.querySelectorAll("details")) fold.open ||= open.includes(fold.id);
  if (focused) again(node, focused)?.focus();
  return node;
}

// The same link or button in the new markup.
function again(node, focused) {
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
    let old = document.getElementById(row.id);
    if (!old) {
      old = document.importNode(row, true);
      given.set(old, row.outerHTML);
    }
    const place = before ? before.nextElementSibling : part.firstElementChild;
    if (place !== old) part.insertBefore(old, place);
    before = replace(old, row);
  }
}

export function notice(text, link) {
  const place = document.getElementById("notice");
  if (place.dataset.says === text) return;
  place.dataset.says = text;
  const line = document.createElement("p");
  line.append(text);
  if (link) {
    const anchor = document.createElement("a");
    [anchor.href, anchor.textContent] = [link.href, link.textContent];
    line.append(" ", anchor);
  }
  place.replaceChildren(...(text ? [line] : []));
}

function end(text, path) {
  gone = true;
  document.body.classList.add("gone");
  document.dispatchEvent(new CustomEvent("gone", { detail: text }));
  const home = document.querySelector("header .title").href;
  const here = location.pathname + location.search;
  const link = document.createElement("a");
  link.href = path === "sign-in" ? here : home;
  link.textContent = path === "sign-in" ? "Sign in again" : "To the tasks";
  notice(text, link);
  return "gone";
}

// Looks at this page again; returns "same", "changed", "away" or "gone".
export async function refresh() {
  if (gone) return "gone";
  const headers = etag ? { "If-None-Match": etag } : {};
  const address = location.href;
  let response;
  try {
    response = await fetch(address, { headers, redirect: "manual", cache: "no-store" });
  } catch {
    notice("The service is out of reach. Trying again…");
    return "away";
  }
  if (response.type === "opaqueredirect") return end("You are signed out.", "sign-in");
  if (response.headers.has("Task-Gone")) return end("This task was deleted.");
  if (response.status === 304 || response.ok) {
    if (document.getElementById("notice").dataset.says) notice("");
  }
  if (response.status === 304) return "same";
  if (!response.ok) {
    notice("The service can’t answer now. Trying again…");
    return "away";
  }
  const text = pages.createHTML(await response.text());
  // Meanwhile somebody may have wished for something else.
  if (address !== location.href) return "same";
  etag = response.headers.get("ETag");
  const fresh = new DOMParser().parseFromString(text, "text/html");
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(part.id);
    if (!other && part.dataset.live === "page") location.reload();
    if (!other) continue;
    if (part.dataset.live === "rows") replaceRows(part, other);
    else replace(part, other);
  }
  showCopyButtons();
  tell();
  document.dispatchEvent(new CustomEvent("refreshed", { detail: fresh }));
  return "changed";
}

async function keepUp() {
  const looks = document.querySelector("[data-live]") && !document.hidden;
  const state = looks ? await refresh() : "same";
  if (state !== "gone") setTimeout(keepUp, state === "away" ? 2 * LOOK_MS : LOOK_MS);
}

remember();
showCopyButtons();
tell();
setInterval(tell, 1_000);
setTimeout(keepUp, LOOK_MS);
