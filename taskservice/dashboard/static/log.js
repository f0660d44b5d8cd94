// The log of a task. The page contains only the lines in view, since a log can be very long.

import { painted, plain } from "./ansi.js";
import { levelOf } from "./levels.js";
import {
  dropDistant,
  fetchLines,
  isBlockLoaded,
  line,
  loadAround,
  MAX_LINES,
  store,
  timeOf,
} from "./line_cache.js";
import { forgetHeights, LINE, lineAt, noteHeight, topOf } from "./line_heights.js";
import { pauseBetween, pauseText, timeText } from "./line_times.js";
import { grow, highlight, init as initSearch, lowerBound, showAllLevels } from "./log_search.js";
import { copyText, refresh, released } from "./page.js";

// The number of rows that are drawn above and below the visible rows, for smooth scrolling.
const OVERSCAN = 15;
// Selected rows remain in the page up to this number of lines from the visible rows.
const SELECTED_OVERSCAN = 1_000;
// Browsers limit the height of an element. For a higher log, scrolling is scaled.
const MAX_HEIGHT = 8_000_000;
const MAX_COPIED = 20_000;
const RECONNECT_MS = 500;
const MAX_RECONNECT_MS = 2_000;
// The delay before another attempt after a 503, which means that all streams are in use. Until then
// the page updates every second.
const REFUSED_MS = 5_000;
const MAX_REFUSED_MS = 30_000;
// A window without focus closes its stream after this time, so that other windows can open one.
const BLUR_MS = 10_000;

const get = (id) => document.getElementById(id);
const card = get("log-card");
const box = get("log");
const content = get("log-content");
const list = get("log-lines");
const state = get("log-state");
const emptyNote = get("log-none");
const buttons = Object.fromEntries(
  ["follow", "start", "end", "copy", "new"].map((name) => [name, get(`log-${name}`)]),
);

let first = Number(box.dataset.first);
let count = Number(box.dataset.count);
let running = box.dataset.status === "running";
let following = running;
// The number of lines when the reader stopped following.
let countAtPause = count;
// The range of lines in the hash of the URL.
let marked = null;
let wrapped = false;
let lastTop = 0;
let widest = 0;
// The numbers of the lines that the filter shows, ascending; null without a filter.
let filtered = null;

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// --- the visible part ------------------------------------------------------------------------

// The place of a line is its position among the lines that the filter shows.
const firstPlace = () => (filtered ? 1 : first);
const lastPlace = () => (filtered ? filtered.length : count);
const numberAt = (place) => (filtered ? filtered[place - 1] : place);
const placeOf = (number) => (filtered ? lowerBound(filtered, number) + 1 : number);

function topOfPlace(place) {
  return topOf(place, firstPlace());
}

function placeAt(pixel) {
  return Math.min(lastPlace(), lineAt(pixel, firstPlace()));
}

function fullHeight() {
  return topOfPlace(lastPlace() + 1);
}

function height() {
  return Math.min(fullHeight(), MAX_HEIGHT);
}

// The first visible pixel of the log, without scaling.
function topPixel() {
  if (fullHeight() <= MAX_HEIGHT) return box.scrollTop;
  const part = box.scrollTop / Math.max(1, MAX_HEIGHT - box.clientHeight);
  return Math.min(1, part) * (fullHeight() - box.clientHeight);
}

function scrollTo(pixel) {
  const scale = (MAX_HEIGHT - box.clientHeight) / Math.max(1, fullHeight() - box.clientHeight);
  box.scrollTop = fullHeight() <= MAX_HEIGHT ? pixel : pixel * scale;
  lastTop = box.scrollTop;
}

function scrollToEnd() {
  box.scrollTop = height();
  lastTop = box.scrollTop;
}

function isAtEnd() {
  return box.scrollTop + box.clientHeight >= height() - LINE / 2;
}

// The places of the first and last row to draw, and of the first visible row.
function visible() {
  const pixel = topPixel();
  const top = placeAt(pixel);
  let from = Math.max(firstPlace(), top - OVERSCAN);
  let to = Math.min(lastPlace(), placeAt(pixel + box.clientHeight) + OVERSCAN);
  const selection = selected();
  if (selection) {
    from = Math.max(
      firstPlace(),
      Math.min(from, Math.max(selection.from, from - SELECTED_OVERSCAN)),
    );
    to = Math.min(lastPlace(), Math.max(to, Math.min(selection.to, to + SELECTED_OVERSCAN)));
  }
  return { from, to, top };
}

// The places of the first and last line that the selection contains, even if only in part.
function selected() {
  const selection = getSelection();
  if (selection.isCollapsed || !selection.rangeCount) return null;
  const range = selection.getRangeAt(0);
  if (!list.contains(range.commonAncestorContainer)) return null;
  const from = placeOfNode(range.startContainer, range.startOffset);
  return { from, to: placeOfNode(range.endContainer, range.endOffset) };
}

function placeOfNode(node, offset) {
  const inner = node === list ? list.children[Math.min(offset, list.children.length - 1)] : node;
  const element = inner.nodeType === Node.ELEMENT_NODE ? inner : inner.parentElement;
  return element.closest(".line").place;
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
  // The Tab key moves the focus to the log as a whole, not to each line.
  link.tabIndex = -1;
  const time = document.createElement("time");
  const content = document.createElement("span");
  if (text !== undefined) {
    content.append(...painted(text));
    // Lines with escape sequences get no colour for their level: their program chose the colours.
    if (!text.includes("\x1b")) content.className = `level-${levelOf(plain(text))}`;
  }
  element.append(link, time, content);
  return element;
}

// Called at each drawing, since the previous line can be loaded later than this line.
function showTime(element) {
  set(element.children[1], timeText(times.value, element.number, start));
  const pause = pauseText(element.number);
  const { dataset } = element.lastElementChild;
  if ((dataset.pause ?? "") !== pause) dataset.pause = pause;
}

let isDrawQueued = false;

function draw() {
  if (isDrawQueued) return;
  isDrawQueued = true;
  requestAnimationFrame(async () => {
    await released;
    isDrawQueued = false;
    drawNow();
  });
}

function drawNow() {
  content.style.height = `${height()}px`;
  list.style.setProperty("--digits", String(count).length);
  if (following) scrollToEnd();
  const { from, to } = visible();
  drawRows(from, to);
  if (wrapped) measureRows();
  else keepWidth();
  list.style.transform = `translateY(${box.scrollTop - topPixel() + topOfPlace(from)}px)`;
  updateControls();
  showSilence();
  fetchMissing();
}

function drawRows(from, to) {
  const fresh = new Map();
  for (let place = from; place <= to; place++) {
    const number = numberAt(place);
    fresh.set(number, row(number));
    fresh.get(number).place = place;
  }
  const isFocused = list.contains(document.activeElement);
  for (const [number, element] of rows) if (fresh.get(number) !== element) element.remove();
  if (isFocused && !list.contains(document.activeElement)) box.focus({ preventScroll: true });
  let before = null;
  for (const [number, element] of fresh) {
    const place = before ? before.nextSibling : list.firstChild;
    if (place !== element) list.insertBefore(element, place);
    element.classList.toggle("marked", isMarked(number));
    showTime(element);
    before = element;
  }
  rows = fresh;
  highlight(rows.values());
}

// Measures the heights of the drawn rows, and preserves the reading position.
function measureRows() {
  const wasAtEnd = isAtEnd();
  const { place, above } = anchor();
  let hasChanged = false;
  for (const row of rows.values())
    hasChanged = noteHeight(row.place, row.offsetHeight) || hasChanged;
  if (!hasChanged) return;
  content.style.height = `${height()}px`;
  if (wasAtEnd) scrollToEnd();
  else scrollTo(topOfPlace(place) - above);
  draw();
}

// The place of a visible line, preferably the marked line, and its distance from the top.
function anchor() {
  const pixel = topPixel();
  const top = placeAt(pixel);
  const wanted = marked ? placeOf(marked.from) : top;
  const isVisible = wanted > top && topOfPlace(wanted) < pixel + box.clientHeight;
  const place = isVisible ? wanted : top;
  return { place, above: topOfPlace(place) - pixel };
}

// Prevents the width from shrinking while the reader scrolls.
function keepWidth() {
  widest = Math.max(widest, list.offsetWidth);
  list.style.minWidth = `${widest}px`;
}

function updateControls() {
  set(get("log-count"), countText());
  grow();
  set(buttons.follow, following ? "Pause" : "Follow");
  card.classList.toggle("empty", count < first);
  buttons.start.hidden = buttons.end.hidden = fullHeight() <= box.clientHeight;
  const unseen = running && !following ? count - countAtPause : 0;
  buttons.new.hidden = unseen <= 0;
  set(buttons.new, `${unseen.toLocaleString("en")} new ${unseen === 1 ? "line" : "lines"}`);
  buttons.copy.hidden = !marked || !isShown(marked);
  if (marked) set(buttons.copy, marked.copied ?? `Copy ${rangeText(marked)}`);
}

function countText() {
  const all = `${count.toLocaleString("en")} ${count === 1 ? "line" : "lines"}`;
  return filtered ? `${filtered.length.toLocaleString("en")} of ${all}` : all;
}

// Whether the filter shows any of these lines.
function isShown({ from, to }) {
  return !filtered || lowerBound(filtered, from) < lowerBound(filtered, to + 1);
}

function rangeText({ from, to }) {
  return from === to ? `line ${from}` : `lines ${from}–${to}`;
}

let fetching = false;

// The first drawn line whose text is not loaded.
function firstMissing() {
  for (const [number, element] of rows) if (!element.isWhole) return number;
  return null;
}

async function fetchMissing() {
  if (fetching) return;
  fetching = true;
  for (let number = firstMissing(); number !== null; number = firstMissing()) {
    if (!(await loadAround(number, first))) {
      setTimeout(draw, MAX_RECONNECT_MS);
      break;
    }
    dropDistant(numberAt(visible().top) ?? first);
    drawAgain();
  }
  fetching = false;
}

function drawAgain() {
  const { from, to } = visible();
  drawRows(from, to);
  draw();
}

// --- navigation ------------------------------------------------------------------------

function follow(enabled) {
  if (following && !enabled) countAtPause = count;
  following = enabled;
  draw();
}

function show(from, to) {
  follow(false);
  const clamp = (number) => Math.min(Math.max(number, first), count);
  marked = { from: clamp(from), to: clamp(to) };
  if (filtered && numberAt(placeOf(marked.from)) !== marked.from) showAllLevels();
  // Show the button that copies the lines first, since it can move the log.
  updateControls();
  if (isInView(marked.from) || isInView(marked.to)) return;
  card.scrollIntoView({ block: "nearest" });
  // In the second pass, the heights of the rows above are known.
  for (let pass = 0; pass < 2; pass++) {
    drawNow();
    scrollTo(topOfPlace(placeOf(marked.from)) - box.clientHeight / 3);
  }
}

function isInView(number) {
  if (!rows.has(number)) return false;
  const outer = box.getBoundingClientRect();
  const inner = rows.get(number).getBoundingClientRect();
  return inner.top >= Math.max(outer.top, 0) && inner.bottom <= Math.min(outer.bottom, innerHeight);
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
  // Scrolling by the reader starts or stops following the log.
  if (box.scrollTop > lastTop && isAtEnd() && running) following = true;
  else if (box.scrollTop < lastTop && following && !isAtEnd()) follow(false);
  lastTop = box.scrollTop;
  draw();
});
box.addEventListener("keydown", (event) => {
  const action = { Home: toStart, End: toEnd }[event.key];
  if (!action || event.ctrlKey || event.altKey || event.metaKey) return;
  action();
  event.preventDefault();
});
buttons.follow.addEventListener("click", () => follow(!following));
buttons.new.addEventListener("click", () => {
  follow(true);
  box.focus({ preventScroll: true });
});
for (const [name, go] of Object.entries({ start: toStart, end: toEnd })) {
  buttons[name].addEventListener("click", go);
}
// These buttons in the menu move to another position in the log.
for (const button of [buttons.start, buttons.end, get("log-last-error")]) {
  button.addEventListener("click", () => {
    get("log-menu").open = false;
    box.focus({ preventScroll: true });
  });
}
addEventListener("hashchange", showHash);
document.addEventListener("selectionchange", () => {
  if (following && selected()) follow(false);
});

// --- several lines -----------------------------------------------------------------------

list.addEventListener("click", (event) => {
  const link = event.target.closest(".line > a");
  if (!link || !event.shiftKey || !marked) return;
  event.preventDefault();
  const number = link.parentElement.number;
  const [from, to] = [Math.min(marked.from, number), Math.max(marked.to, number)];
  location.hash = from === to ? `L${from}` : `L${from}-L${to}`;
});

buttons.copy.addEventListener("click", async () => {
  const range = marked;
  const { from, to } = range;
  const lines = [];
  while (lines.length <= Math.min(to - from, MAX_COPIED - 1)) {
    const after = from + lines.length - 1;
    const more = await fetchLines(after, Math.min(MAX_LINES, to - after));
    if (!more?.length) break;
    lines.push(...more);
  }
  await copyText(lines.map(plain).join("\n"));
  range.copied = `Copied ${rangeText({ from, to: from + lines.length - 1 })}`;
  updateControls();
});

// --- filter ------------------------------------------------------------------------------

// Shows only these lines, or all lines for null; the first visible line does not move.
function filter(numbers) {
  if (!numbers && !filtered) return;
  const top = numberAt(visible().top) ?? first;
  const isSame = numbers && filtered === numbers;
  filtered = numbers;
  if (!isSame) {
    forgetHeights();
    widest = 0;
    list.style.minWidth = "";
    content.style.height = `${height()}px`;
    scrollTo(topOfPlace(placeOf(top)));
  }
  draw();
}

// --- times -------------------------------------------------------------------------------

const times = get("log-times");
const start = Date.parse(box.dataset.start);

function showTimes() {
  card.classList.toggle("timed", times.value !== "");
  forgetHeights();
  draw();
}

// By default, the log of a failed task has times, since the reader wants to know when it failed.
// On a phone, times would take a third of the width.
const hasSpace = matchMedia("(min-width: 500px)").matches;
times.value = stored("times") ?? (box.dataset.status === "error" && hasSpace ? "clock" : "");
times.addEventListener("change", () => {
  keep("times", times.value);
  showTimes();
});

// --- silence -----------------------------------------------------------------------------

const silence = get("log-silence");
const ENDS = {
  failed: "failed",
  timeout: "timed out",
  cancelled: "cancelled",
  complete: "complete",
};

// Shows the time without output after the last line, if that line is loaded.
function showSilence() {
  const text = count < first ? "" : silenceText(timeOf(count));
  if (silence.textContent === text) return;
  const wasAtEnd = isAtEnd();
  silence.textContent = text;
  silence.hidden = !text;
  if (wasAtEnd) scrollToEnd();
}

function silenceText(last) {
  const { end, outcome } = box.dataset;
  const pause = pauseBetween(last, end ? Date.parse(end) : Date.now());
  if (!pause || !(end || running)) return "";
  return end ? `no output for ${pause}, then ${ENDS[outcome]}` : `no output for ${pause}`;
}

setInterval(showSilence, 1_000);

// --- choices -----------------------------------------------------------------------------

function stored(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    // Storage is disabled.
    return null;
  }
}

function keep(name, choice) {
  try {
    localStorage.setItem(name, choice);
  } catch {
    // Storage is disabled: the choice applies to this page only.
  }
}

// --- long lines --------------------------------------------------------------------------

const wrapBox = get("log-wrap");

function wrap(enabled) {
  const { place, above } = anchor();
  const wasAtEnd = isAtEnd();
  wrapped = enabled;
  card.classList.toggle("wrapped", wrapped);
  wrapBox.checked = wrapped;
  forgetHeights();
  list.style.minWidth = "";
  widest = 0;
  content.style.height = `${height()}px`;
  if (wasAtEnd) scrollToEnd();
  else scrollTo(topOfPlace(place) - above);
  draw();
}

// The reader's choice applies to all logs. By default, long lines wrap on narrow screens only.
function prefersWrap() {
  const choice = stored("wrap");
  if (choice) return choice === "yes";
  return matchMedia("(max-width: 48rem)").matches;
}

wrapBox.addEventListener("change", () => {
  wrap(wrapBox.checked);
  keep("wrap", wrapped ? "yes" : "no");
});

// Limits the height of the log to the window, unless the task is complete: then its output is above
// the log. If new lines of a failure are below the log, it leaves space for their heading.
function fit() {
  const above = box.getBoundingClientRect().top + scrollY;
  const isFirst = box.dataset.status !== "complete";
  const below = get("new") ? 80 : 12;
  box.style.maxHeight = isFirst ? `max(12rem, calc(100vh - ${above + below}px))` : "";
}

addEventListener("resize", fit);

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
let reconnectDelay = RECONNECT_MS;
let refusedDelay = REFUSED_MS;
let isBlurred = false;
let blurTimer = null;

function showState(text) {
  set(state, text);
  state.dataset.state = text;
}

function connect() {
  if (stream || !running || isBlurred || document.hidden) return;
  stream = new EventSource(`${box.dataset.events ?? `${location.pathname}/events`}?after=${count}`);
  let hasOpened = false;
  stream.addEventListener("open", () => {
    hasOpened = true;
    reconnectDelay = RECONNECT_MS;
    refusedDelay = REFUSED_MS;
    showState("live");
  });
  stream.addEventListener("log", (event) => {
    addLine(Number(event.lastEventId), JSON.parse(event.data));
  });
  stream.addEventListener("task", (event) => {
    if (JSON.parse(event.data).status !== "running") finish();
    refresh();
  });
  stream.addEventListener("error", () => reconnect(hasOpened));
}

function addLine(number, { line: text, at }) {
  if (number <= count) return;
  count = number;
  // Lines that are not in view are not stored here, but loaded when they become visible.
  if (following || isBlockLoaded(number)) store(number, text, at);
  if (following) dropDistant(number);
  draw();
}

function disconnect() {
  stream?.close();
  stream = null;
}

function finish() {
  running = false;
  disconnect();
  showState("ended");
  buttons.follow.hidden = true;
  if (emptyNote) set(emptyNote, "The log is empty.");
  draw();
}

// A stream gives no reason for its end. Reading the page shows if the task was deleted, or if the
// service can't be reached.
async function reconnect(hasOpened) {
  disconnect();
  const found = await refresh();
  if (!running) return;
  if (found === "unreachable" || hasOpened) {
    showState("reconnecting…");
    reconnectDelay = Math.min(2 * reconnectDelay, MAX_RECONNECT_MS);
    setTimeout(connect, reconnectDelay);
  } else {
    // All streams are in use.
    showState("updates every second");
    setTimeout(connect, refusedDelay);
    refusedDelay = Math.min(2 * refusedDelay, MAX_REFUSED_MS);
  }
}

function disconnectSoon() {
  blurTimer ??= setTimeout(() => {
    isBlurred = true;
    disconnect();
    if (running) showState("updates every second");
  }, BLUR_MS);
}

function stayConnected() {
  clearTimeout(blurTimer);
  blurTimer = null;
  isBlurred = false;
  connect();
}

addEventListener("blur", disconnectSoon);
addEventListener("focus", stayConnected);
document.addEventListener("visibilitychange", () => (document.hidden ? disconnect() : connect()));
document.addEventListener("gone", ({ detail: text }) => {
  finish();
  showState(text);
});
document.addEventListener("refreshed", ({ detail: page }) => {
  const now = page.getElementById("log").dataset;
  first = Math.max(first, Number(now.first));
  count = Math.max(count, Number(now.count));
  if (now.status !== "running" && running) finish();
  Object.assign(box.dataset, { status: now.status, outcome: now.outcome, end: now.end });
  fit();
  draw();
});

buttons.follow.hidden = false;
initSearch({
  range: () => ({ first, count }),
  top: () => numberAt(visible().top) ?? first,
  marked: () => marked?.from ?? null,
  show: (number) => {
    history.replaceState(null, "", `#L${number}`);
    show(number, number);
    draw();
  },
  filter,
  redraw: draw,
});
if (!running) finish();
fit();
wrapBox.checked = prefersWrap();
if (wrapBox.checked) wrap(true);
// The last lines of a failed task show why it failed.
if (box.dataset.status === "error") scrollToEnd();
showTimes();
drawNow();
if (box.dataset.status === "error") scrollToEnd();
showHash();
if (!document.hasFocus()) disconnectSoon();
connect();
