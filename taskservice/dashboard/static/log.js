// The log of a task: only the lines that can be seen are in the page, however long it grows.

import { painted } from "./ansi.js";
import { refresh } from "./page.js";

// As the style has it, in pixels.
const LINE = 20;
const BLOCK = 200;
const KEPT_BLOCKS = 40;
// Rows above and below what is seen, so that scrolling finds them there.
const BEYOND = 15;
// Browsers draw nothing much taller; a longer log moves by more than its height.
const TALLEST = 8_000_000;
// As the server cuts them; the download has them whole.
const LONGEST = 5_000;
const PATIENCE_MS = 500;
const LONGEST_PATIENCE_MS = 5_000;

const box = document.getElementById("log");
const room = document.getElementById("log-room");
const list = document.getElementById("log-lines");
const counter = document.getElementById("log-count");
const status = document.getElementById("log-state");
const followButton = document.getElementById("log-follow");
const here = location.pathname;

let first = Number(box.dataset.first);
let count = Number(box.dataset.count);
let running = box.dataset.status === "running";
let following = running;
let marked = null;
let lastTop = 0;

// --- lines that are here -----------------------------------------------------------------

// Number of a block -> its lines; those that are not here yet are holes.
const blocks = new Map();

function blockOf(number) {
  return Math.floor((number - 1) / BLOCK);
}

function line(number) {
  return blocks.get(blockOf(number))?.[(number - 1) % BLOCK];
}

function keep(number, text) {
  const index = blockOf(number);
  let block = blocks.get(index);
  if (!block) blocks.set(index, (block = new Array(BLOCK)));
  block[(number - 1) % BLOCK] = text.length > LONGEST ? `${text.slice(0, LONGEST)} … cut here` : text;
}

function forgetFar() {
  if (blocks.size <= KEPT_BLOCKS) return;
  const middle = blockOf(Math.round(seen().start + first));
  const far = [...blocks.keys()].sort((a, b) => Math.abs(b - middle) - Math.abs(a - middle));
  for (const index of far.slice(0, blocks.size - KEPT_BLOCKS)) blocks.delete(index);
}

let fetching = false;

// The first line that should be seen and is not here.
function missing() {
  const { start, end } = seen();
  for (let number = first + start; number < first + end; number++) {
    if (line(number) === undefined) return number;
  }
  return null;
}

async function fetchMissing() {
  if (fetching) return;
  fetching = true;
  for (let number = missing(); number !== null; number = missing()) {
    // Whoever scrolls up wants what is above it, too.
    let from = number;
    while (from > first && from > number - BLOCK && line(from - 1) === undefined) from--;
    const lines = await ask(from - 1, number - from + BLOCK);
    if (!lines) break;
    lines.forEach((text, place) => keep(from + place, text));
    if (from + lines.length <= number) {
      // As long lines leave no room for that one; or it has been dropped.
      const more = await ask(number - 1, BLOCK);
      if (!more) break;
      more.forEach((text, place) => keep(number + place, text));
      if (!more.length) keep(number, "");
    }
    forgetFar();
    draw();
  }
  fetching = false;
}

async function ask(after, limit) {
  try {
    const response = await fetch(`${here}/lines?after=${after}&limit=${limit}`, {
      redirect: "manual",
    });
    if (response.ok) return await response.json();
  } catch {
    // The stream notices too, and says so.
  }
  setTimeout(draw, LONGEST_PATIENCE_MS / 2);
  return null;
}

// --- what is seen ------------------------------------------------------------------------

function total() {
  return count - first + 1;
}

function height() {
  return Math.min(total() * LINE, TALLEST);
}

function topLine() {
  const natural = total() * LINE;
  if (natural <= TALLEST) return box.scrollTop / LINE;
  const part = box.scrollTop / Math.max(1, height() - box.clientHeight);
  return Math.min(1, part) * (total() - box.clientHeight / LINE);
}

// Places of lines, counted from 0, and how far the rows are to be moved.
function seen() {
  const top = topLine();
  const start = Math.max(0, Math.floor(top) - BEYOND);
  const end = Math.min(total(), Math.ceil(top + box.clientHeight / LINE) + BEYOND);
  return { start, end, shift: box.scrollTop - (top - start) * LINE };
}

function scrollTo(place) {
  const natural = total() * LINE;
  const most = total() - box.clientHeight / LINE;
  const scale = natural <= TALLEST ? LINE : (height() - box.clientHeight) / Math.max(1, most);
  box.scrollTop = place * scale;
}

function isAtEnd() {
  return box.scrollTop + box.clientHeight >= height() - LINE / 2;
}

// Number of a line -> its row.
let rows = new Map();

function row(number) {
  const text = line(number);
  const old = rows.get(number);
  if (old && (old.isWhole || text === undefined)) return old;
  const element = document.createElement("div");
  element.className = "line";
  element.setAttribute("role", "listitem");
  element.setAttribute("aria-posinset", number);
  const link = document.createElement("a");
  link.href = `#L${number}`;
  link.textContent = number;
  const content = document.createElement("span");
  if (text !== undefined) content.append(...painted(text));
  element.append(link, content);
  element.isWhole = text !== undefined;
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
  if (following) box.scrollTop = height();
  lastTop = box.scrollTop;
  const { start, end, shift } = seen();
  const fresh = new Map();
  for (let number = first + start; number < first + end; number++) fresh.set(number, row(number));
  for (const [number, element] of rows) if (fresh.get(number) !== element) element.remove();
  let before = null;
  for (const [number, element] of fresh) {
    const place = before ? before.nextSibling : list.firstChild;
    if (place !== element) list.insertBefore(element, place);
    element.classList.toggle("marked", number === marked);
    before = element;
  }
  rows = fresh;
  list.style.transform = `translateY(${shift}px)`;
  const words = `${count.toLocaleString("en")} ${count === 1 ? "line" : "lines"}`;
  if (counter.textContent !== words) counter.textContent = words;
  const deed = following ? "Pause" : "Follow";
  if (followButton.textContent !== deed) followButton.textContent = deed;
  if (missing() !== null) fetchMissing();
}

// --- moving about ------------------------------------------------------------------------

function follow(whether) {
  following = whether;
  draw();
}

function jump(number) {
  follow(false);
  marked = Math.min(Math.max(number, first), count);
  drawNow();
  scrollTo(marked - first - box.clientHeight / LINE / 3);
  draw();
}

function jumpToHash() {
  const found = location.hash.match(/^#L(\d{1,12})$/);
  if (!found) return;
  const number = Number(found[1]);
  if (rows.has(number) && isInSight(rows.get(number))) {
    follow(false);
    marked = number;
  } else jump(number);
}

function isInSight(element) {
  const [outer, inner] = [box.getBoundingClientRect(), element.getBoundingClientRect()];
  return inner.top >= outer.top && inner.bottom <= outer.bottom;
}

box.addEventListener("scroll", () => {
  if (isAtEnd() && running) following = true;
  else if (box.scrollTop < lastTop) following = false;
  draw();
});
box.addEventListener("keydown", (event) => {
  if (event.target !== box) return;
  if (event.key === "Home") follow(false), scrollTo(0);
  else if (event.key === "End") scrollTo(total());
  else return;
  event.preventDefault();
});
followButton.addEventListener("click", () => follow(!following));
document.getElementById("log-start").addEventListener("click", () => {
  follow(false);
  box.scrollTop = 0;
});
document.getElementById("log-end").addEventListener("click", () => {
  box.scrollTop = height();
  draw();
});
addEventListener("hashchange", jumpToHash);
new ResizeObserver(draw).observe(box);

// --- live --------------------------------------------------------------------------------

let stream = null;
let patience = PATIENCE_MS;

function say(text) {
  if (status.textContent !== text) status.textContent = text;
  status.dataset.says = text;
}

function connect() {
  if (stream || !running || document.hidden) return;
  stream = new EventSource(`${here}/events?after=${count}`);
  stream.addEventListener("open", () => {
    patience = PATIENCE_MS;
    say("live");
  });
  stream.addEventListener("log", (event) => {
    const number = Number(event.lastEventId);
    if (number <= count) return;
    count = number;
    // What nobody looks at is not kept: it is fetched when it is.
    if (following || blocks.has(blockOf(number))) keep(number, JSON.parse(event.data));
    if (following) forgetFar();
    draw();
  });
  stream.addEventListener("task", (event) => {
    if (JSON.parse(event.data).status !== "running") finish();
    refresh();
  });
  stream.addEventListener("error", again);
}

function disconnect() {
  stream?.close();
  stream = null;
}

function finish() {
  running = false;
  disconnect();
  say("ended");
  followButton.hidden = true;
}

// Whatever broke the stream, the page itself tells: it is there, deleted, or out of reach.
async function again() {
  disconnect();
  await refresh();
  if (!running) return;
  say("reconnecting…");
  patience = Math.min(2 * patience, LONGEST_PATIENCE_MS);
  setTimeout(connect, patience);
}

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

for (const button of document.querySelectorAll(".tools [hidden]")) button.hidden = false;
if (!running) finish();
drawNow();
jumpToHash();
connect();
