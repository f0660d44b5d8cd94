// The log of a task: only the lines that can be seen are in the page, however long it grows.

import { painted, plain } from "./ansi.js";
import { find } from "./find.js";
import { LINE, forgetHeights, lineAt, noteHeight, topOf } from "./heights.js";
import { MOST, ask, bring, forgetFar, hasNeighbours, keep, line } from "./lines.js";
import { copyText, refresh } from "./page.js";

// Rows above and below what is seen, so that scrolling finds them there.
const BEYOND = 15;
// So far away from what is seen, the rows of a selection stay all the same.
const SELECTED_BEYOND = 1_000;
// Browsers draw nothing much taller; a longer log moves by more than its height.
const TALLEST = 8_000_000;
const MOST_COPIED = 20_000;
const PATIENCE_MS = 500;
const LONGEST_PATIENCE_MS = 2_000;
// When all places are taken there is no hurry: the page looks every second anyway.
const CROWDED_PATIENCE_MS = 5_000;
const LONGEST_CROWDED_MS = 30_000;
// A window that somebody works beside of gives its place to others.
const AWAY_MS = 10_000;

const get = (id) => document.getElementById(id);
const card = get("log-card");
const box = get("log");
const room = get("log-room");
const list = get("log-lines");
const state = get("log-state");
const nothing = get("log-none");
const buttons = Object.fromEntries(
  ["follow", "start", "end", "wrap", "copy", "new"].map((name) => [name, get(`log-${name}`)]),
);

let first = Number(box.dataset.first);
let count = Number(box.dataset.count);
let running = box.dataset.status === "running";
let following = running;
// How many lines there were when the reader stopped following.
let known = count;
// The lines that the address names.
let marked = null;
let wrapped = false;
let lastTop = 0;
let widest = 0;

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// --- what is seen ------------------------------------------------------------------------

function whole() {
  return topOf(count + 1, first);
}

function height() {
  return Math.min(whole(), TALLEST);
}

// Of the whole log, as if nothing were too tall, the first pixel that is seen.
function topPixel() {
  if (whole() <= TALLEST) return box.scrollTop;
  const part = box.scrollTop / Math.max(1, TALLEST - box.clientHeight);
  return Math.min(1, part) * (whole() - box.clientHeight);
}

function scrollTo(pixel) {
  const scale = (TALLEST - box.clientHeight) / Math.max(1, whole() - box.clientHeight);
  box.scrollTop = whole() <= TALLEST ? pixel : pixel * scale;
  lastTop = box.scrollTop;
}

function scrollToEnd() {
  box.scrollTop = height();
  lastTop = box.scrollTop;
}

function isAtEnd() {
  return box.scrollTop + box.clientHeight >= height() - LINE / 2;
}

// The first and the last line that are drawn, and the first that is seen.
function seen() {
  const pixel = topPixel();
  const top = Math.min(count, lineAt(pixel, first));
  let from = Math.max(first, top - BEYOND);
  let to = Math.min(count, lineAt(pixel + box.clientHeight, first) + BEYOND);
  const held = selected();
  if (held) {
    from = Math.max(first, Math.min(from, Math.max(held.from, from - SELECTED_BEYOND)));
    to = Math.min(count, Math.max(to, Math.min(held.to, to + SELECTED_BEYOND)));
  }
  return { from, to, top };
}

// The lines that are selected, also in part.
function selected() {
  const selection = getSelection();
  if (selection.isCollapsed || !selection.rangeCount) return null;
  const range = selection.getRangeAt(0);
  if (!list.contains(range.commonAncestorContainer)) return null;
  const from = numberOf(range.startContainer, range.startOffset);
  return { from, to: numberOf(range.endContainer, range.endOffset) };
}

function numberOf(node, offset) {
  const inner = node === list ? list.children[Math.min(offset, list.children.length - 1)] : node;
  const element = inner.nodeType === Node.ELEMENT_NODE ? inner : inner.parentElement;
  return element.closest(".line").number;
}

function isMarked(number) {
  return marked !== null && number >= marked.from && number <= marked.to;
}

// --- drawing -----------------------------------------------------------------------------

// Number of a line -> its row.
let rows = new Map();

function row(number) {
  const text = line(number);
  const old = rows.get(number);
  if (old && (old.isWhole || text === undefined)) return old;
  const element = document.createElement("div");
  element.className = "line";
  element.number = number;
  element.isWhole = text !== undefined;
  element.setAttribute("role", "listitem");
  element.setAttribute("aria-posinset", number);
  const link = document.createElement("a");
  link.href = `#L${number}`;
  link.textContent = number;
  // The log as a whole has the focus: nobody wants to press Tab for each line.
  link.tabIndex = -1;
  const content = document.createElement("span");
  if (text !== undefined) content.append(...painted(text));
  element.append(link, content);
  return element;
}

let waiting = false;

function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    drawNow();
  });
}

function drawNow() {
  room.style.height = `${height()}px`;
  list.style.setProperty("--digits", String(count).length);
  if (following) scrollToEnd();
  const { from, to } = seen();
  drawRows(from, to);
  if (wrapped) settle();
  else keepWidth();
  list.style.transform = `translateY(${box.scrollTop - topPixel() + topOf(from, first)}px)`;
  tell();
  fetchMissing();
}

function drawRows(from, to) {
  const fresh = new Map();
  for (let number = from; number <= to; number++) fresh.set(number, row(number));
  const isFocused = list.contains(document.activeElement);
  for (const [number, element] of rows) if (fresh.get(number) !== element) element.remove();
  if (isFocused && !list.contains(document.activeElement)) box.focus({ preventScroll: true });
  let before = null;
  for (const [number, element] of fresh) {
    const place = before ? before.nextSibling : list.firstChild;
    if (place !== element) list.insertBefore(element, place);
    element.classList.toggle("marked", isMarked(number));
    before = element;
  }
  rows = fresh;
}

// Notes how high the rows have become, and leaves what is read where it is.
function settle() {
  const wasAtEnd = isAtEnd();
  const { number, above } = anchor();
  let isNews = false;
  for (const [each, element] of rows) isNews = noteHeight(each, element.offsetHeight) || isNews;
  if (!isNews) return;
  room.style.height = `${height()}px`;
  if (wasAtEnd) scrollToEnd();
  else scrollTo(topOf(number, first) - above);
  draw();
}

// A line that is seen, if possible one that is marked, and how far below the top it begins.
function anchor() {
  const pixel = topPixel();
  const top = lineAt(pixel, first);
  const wanted = marked?.from ?? top;
  const isSeen = wanted > top && topOf(wanted, first) < pixel + box.clientHeight;
  const number = isSeen ? wanted : top;
  return { number, above: topOf(number, first) - pixel };
}

// What can be scrolled to the side never becomes less under the reader's hands.
function keepWidth() {
  widest = Math.max(widest, list.offsetWidth);
  list.style.minWidth = `${widest}px`;
}

function tell() {
  set(get("log-count"), `${count.toLocaleString("en")} ${count === 1 ? "line" : "lines"}`);
  set(buttons.follow, following ? "Pause" : "Follow");
  card.classList.toggle("empty", count < first);
  buttons.start.hidden = buttons.end.hidden = whole() <= box.clientHeight;
  const fresh = running && !following ? count - known : 0;
  buttons.new.hidden = fresh <= 0;
  set(buttons.new, `${fresh.toLocaleString("en")} new ${fresh === 1 ? "line" : "lines"}`);
  buttons.copy.hidden = !marked;
  if (marked) set(buttons.copy, `Copy ${words(marked)}`);
}

function words({ from, to }) {
  return from === to ? `line ${from}` : `lines ${from}–${to}`;
}

let fetching = false;

// The first line that is drawn and is not here.
function missing() {
  for (const [number, element] of rows) if (!element.isWhole) return number;
  return null;
}

async function fetchMissing() {
  if (fetching) return;
  fetching = true;
  for (let number = missing(); number !== null; number = missing()) {
    if (!(await bring(number, first))) {
      setTimeout(draw, LONGEST_PATIENCE_MS);
      break;
    }
    forgetFar(seen().top);
    drawAgain();
  }
  fetching = false;
}

function drawAgain() {
  const { from, to } = seen();
  drawRows(from, to);
  draw();
}

// --- moving about ------------------------------------------------------------------------

function follow(whether) {
  if (following && !whether) known = count;
  following = whether;
  draw();
}

function show(from, to) {
  follow(false);
  const clamp = (number) => Math.min(Math.max(number, first), count);
  marked = { from: clamp(from), to: clamp(to) };
  if (isInSight(marked.from) || isInSight(marked.to)) return;
  // Once more, when it is known how high the rows above it are.
  for (let turn = 0; turn < 2; turn++) {
    drawNow();
    scrollTo(topOf(marked.from, first) - box.clientHeight / 3);
  }
}

function isInSight(number) {
  if (!rows.has(number)) return false;
  const outer = box.getBoundingClientRect();
  const inner = rows.get(number).getBoundingClientRect();
  return inner.top >= outer.top && inner.bottom <= outer.bottom;
}

function showHash() {
  const found = location.hash.match(/^#L(\d{1,12})(?:-L(\d{1,12}))?$/);
  if (!found) return;
  const numbers = [found[1], found[2] ?? found[1]].map(Number);
  show(Math.min(...numbers), Math.max(...numbers));
}

function toStart() {
  follow(false);
  scrollTo(0);
}

function toEnd() {
  follow(running);
  scrollToEnd();
}

box.addEventListener("scroll", () => {
  // What the script itself has scrolled to says nothing about the reader.
  if (box.scrollTop > lastTop && isAtEnd() && running) following = true;
  else if (box.scrollTop < lastTop && following && !isAtEnd()) follow(false);
  lastTop = box.scrollTop;
  draw();
});
box.addEventListener("keydown", (event) => {
  const deed = { Home: toStart, End: toEnd }[event.key];
  if (!deed || event.ctrlKey || event.altKey || event.metaKey) return;
  deed();
  event.preventDefault();
});
buttons.follow.addEventListener("click", () => follow(!following));
buttons.new.addEventListener("click", () => {
  follow(true);
  box.focus({ preventScroll: true });
});
buttons.start.addEventListener("click", toStart);
buttons.end.addEventListener("click", toEnd);
addEventListener("hashchange", showHash);
document.addEventListener("selectionchange", () => {
  if (following && selected()) follow(false);
});

// --- several lines -----------------------------------------------------------------------

list.addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || !event.shiftKey || !marked) return;
  event.preventDefault();
  const number = link.parentElement.number;
  const [from, to] = [Math.min(marked.from, number), Math.max(marked.to, number)];
  location.hash = from === to ? `L${from}` : `L${from}-L${to}`;
});

buttons.copy.addEventListener("click", async () => {
  const { from, to } = marked;
  const lines = [];
  while (lines.length <= Math.min(to - from, MOST_COPIED - 1)) {
    const after = from + lines.length - 1;
    const more = await ask(after, Math.min(MOST, to - after));
    if (!more?.length) break;
    lines.push(...more);
  }
  await copyText(lines.map(plain).join("\n"));
  set(buttons.copy, `Copied ${words({ from, to: from + lines.length - 1 })}`);
});

// --- searching ---------------------------------------------------------------------------

const field = get("log-find");
let search = 0;

async function look(step) {
  const text = field.value;
  const mine = ++search;
  if (!text) return;
  const start = marked ? marked.from + step : seen().top;
  set(get("log-found"), "Looking…");
  const number = await find(text, step, start, first, count, () => mine === search);
  if (mine !== search) return;
  set(get("log-found"), number === null ? "Not found" : `In line ${number.toLocaleString("en")}`);
  if (number === null) return;
  history.replaceState(null, "", `#L${number}`);
  show(number, number);
}

field.addEventListener("keydown", (event) => {
  if (event.key === "Enter") look(event.shiftKey ? -1 : 1);
  else if (event.key === "Escape") search++;
});
field.addEventListener("input", () => {
  search++;
  set(get("log-found"), "");
});

// --- long lines --------------------------------------------------------------------------

function wrap(whether) {
  const { number, above } = anchor();
  const wasAtEnd = isAtEnd();
  wrapped = whether;
  card.classList.toggle("wrapped", wrapped);
  buttons.wrap.setAttribute("aria-pressed", wrapped);
  forgetHeights();
  list.style.minWidth = "";
  widest = 0;
  room.style.height = `${height()}px`;
  if (wasAtEnd) scrollToEnd();
  else scrollTo(topOf(number, first) - above);
  draw();
}

// What a reader chose holds for all logs; on a narrow screen nothing else can be read.
function wishesToWrap() {
  try {
    const wish = localStorage.getItem("wrap");
    if (wish) return wish === "yes";
  } catch {
    // A browser that keeps nothing.
  }
  return matchMedia("(max-width: 48rem)").matches;
}

buttons.wrap.addEventListener("click", () => {
  wrap(!wrapped);
  try {
    localStorage.setItem("wrap", wrapped ? "yes" : "no");
  } catch {
    // Then it holds for this one.
  }
});

let width = box.clientWidth;

new ResizeObserver(() => {
  if (box.clientWidth !== width) {
    width = box.clientWidth;
    wrap(wrapped);
  }
  draw();
}).observe(box);

// --- live --------------------------------------------------------------------------------

let stream = null;
let patience = PATIENCE_MS;
let crowded = CROWDED_PATIENCE_MS;
let isAway = false;
let leaving = null;

function say(text) {
  set(state, text);
  state.dataset.says = text;
}

function connect() {
  if (stream || !running || isAway || document.hidden) return;
  stream = new EventSource(`${location.pathname}/events?after=${count}`);
  let hasOpened = false;
  stream.addEventListener("open", () => {
    hasOpened = true;
    patience = PATIENCE_MS;
    crowded = CROWDED_PATIENCE_MS;
    say("live");
  });
  stream.addEventListener("log", (event) => take(Number(event.lastEventId), event.data));
  stream.addEventListener("task", (event) => {
    if (JSON.parse(event.data).status !== "running") finish();
    refresh();
  });
  stream.addEventListener("error", () => again(hasOpened));
}

function take(number, data) {
  if (number <= count) return;
  count = number;
  // What nobody looks at is not kept: it is fetched when it is.
  if (following || hasNeighbours(number)) keep(number, JSON.parse(data));
  if (following) forgetFar(number);
  draw();
}

function disconnect() {
  stream?.close();
  stream = null;
}

function finish() {
  running = false;
  disconnect();
  say("ended");
  buttons.follow.hidden = true;
  if (nothing) set(nothing, "It logged nothing.");
  draw();
}

// Whatever broke the stream, the page itself tells: it is there, deleted, or out of reach.
async function again(hasOpened) {
  disconnect();
  const found = await refresh();
  if (!running) return;
  if (found === "away" || hasOpened) {
    say("reconnecting…");
    patience = Math.min(2 * patience, LONGEST_PATIENCE_MS);
    setTimeout(connect, patience);
  } else {
    // All places are taken.
    say("every second");
    setTimeout(connect, crowded);
    crowded = Math.min(2 * crowded, LONGEST_CROWDED_MS);
  }
}

function leaveSoon() {
  leaving ??= setTimeout(() => {
    isAway = true;
    disconnect();
    if (running) say("every second");
  }, AWAY_MS);
}

function comeBack() {
  clearTimeout(leaving);
  leaving = null;
  isAway = false;
  connect();
}

addEventListener("blur", leaveSoon);
addEventListener("focus", comeBack);
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
document.addEventListener("gone", ({ detail: text }) => {
  finish();
  say(text);
});
document.addEventListener("refreshed", ({ detail: page }) => {
  const now = page.getElementById("log").dataset;
  first = Math.max(first, Number(now.first));
  count = Math.max(count, Number(now.count));
  if (now.status !== "running" && running) finish();
  draw();
});

for (const name of ["follow", "wrap"]) buttons[name].hidden = false;
field.hidden = false;
if (!running) finish();
if (wishesToWrap()) wrap(true);
// Of what failed, the last lines tell why.
if (box.dataset.status === "error") scrollToEnd();
drawNow();
if (box.dataset.status === "error") scrollToEnd();
showHash();
if (!document.hasFocus()) leaveSoon();
connect();
