// Searches and filters the whole log; the search of a browser finds only the lines in the page.

import { plain } from "./ansi.js";
import { levelReader } from "./levels.js";
import { fetchLines, MAX_LINES } from "./line_cache.js";

const DELAY_MS = 250;

const get = (id) => document.getElementById(id);
const field = get("log-find");
const found = get("log-found");
const boxes = [...document.querySelectorAll("[data-level]")];
const noLines = get("log-no-lines");
const steps = { [-1]: get("log-previous"), 1: get("log-next") };
const ends = { 1: get("log-first-error"), [-1]: get("log-last-error") };

// The current search: a text, and the levels to show.
let needle = "";
let levels = new Set();
// The numbers of the lines that contain the text, and of the lines with the levels.
let matches = [];
let shown = [];
let current = null;
let scannedTo = 0;
let isScanning = false;
let runNumber = 0;
let readLevel = levelReader();
// A step to a match that the scan has not reached.
let pending = null;
let timer = null;
// The functions of log.js.
let log = null;

function set(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// The index of the first of ascending numbers that is at least `number`.
export function lowerBound(numbers, number) {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < number) low = middle + 1;
    else high = middle;
  }
  return low;
}

// --- the scan ----------------------------------------------------------------------------

function restart() {
  clearTimeout(timer);
  runNumber++;
  [matches, shown, current, pending, isScanning] = [[], [], null, null, false];
  scannedTo = log.range().first - 1;
  readLevel = levelReader();
  noLines.hidden = true;
  if (!levels.size) log.filter(null);
  scan();
}

async function scan() {
  if (isScanning || !(needle || levels.size)) return showState();
  const mine = ++runNumber;
  isScanning = true;
  showState();
  while (scannedTo < log.range().count) {
    const lines = await fetchLines(scannedTo, MAX_LINES);
    if (mine !== runNumber) return;
    if (!lines?.length) break;
    for (const [index, line] of lines.entries()) note(scannedTo + index + 1, plain(line));
    scannedTo += lines.length;
    if (levels.size) log.filter(shown);
    takeStep();
    showState();
  }
  isScanning = false;
  if (levels.size) log.filter(shown);
  takeStep();
  showState();
  log.redraw();
}

function note(number, text) {
  const level = readLevel(text);
  if (levels.size && !levels.has(level)) return;
  if (levels.size) shown.push(number);
  if (needle && text.toLowerCase().includes(needle)) matches.push(number);
}

// Continues the scan when the log has new lines.
export function grow() {
  if (isScanning || timer || scannedTo >= log.range().count || !(needle || levels.size)) return;
  timer = setTimeout(() => {
    timer = null;
    scan();
  }, DELAY_MS);
}

function showState() {
  for (const button of Object.values(steps)) button.hidden = !needle;
  ends[1].hidden = needle !== "";
  noLines.hidden = !levels.size || shown.length > 0 || (isScanning && noLines.hidden);
  const [level] = levels;
  set(noLines.firstElementChild, levels.size === 1 ? `No ${level} lines` : "No such lines");
  set(found, stateText());
}

function stateText() {
  const total = matches.length.toLocaleString("en");
  if (!needle) return isScanning ? "Searching…" : "";
  if (current !== null && matches[current])
    return `${(current + 1).toLocaleString("en")} of ${total}`;
  if (isScanning) return "Searching…";
  return matches.length ? `${total} found` : "Not found";
}

// --- steps -------------------------------------------------------------------------------

function step(direction) {
  const marked = log.marked();
  pending = { direction, start: marked === null ? log.top() : marked + direction };
  if (read()) restartKeepingStep();
  else takeStep();
}

function restartKeepingStep() {
  const step = pending;
  restart();
  pending = step;
  takeStep();
}

// Whether the text in the field has changed.
function read() {
  const text = field.value.toLowerCase();
  const isNew = text !== needle;
  needle = text;
  return isNew;
}

function takeStep() {
  if (!pending) return;
  const index = pending.direction > 0 ? next(pending.start) : previous(pending.start);
  if (index === null) {
    if (!isScanning) pending = null;
    return showState();
  }
  pending = null;
  current = index;
  log.show(matches[index]);
  showState();
}

function next(start) {
  const index = lowerBound(matches, start);
  if (index < matches.length) return index;
  return isScanning || !matches.length ? null : 0;
}

function previous(start) {
  if (isScanning && scannedTo < start) return null;
  const index = lowerBound(matches, start + 1) - 1;
  if (index >= 0) return index;
  return isScanning || !matches.length ? null : matches.length - 1;
}

// --- errors ------------------------------------------------------------------------------

// Goes to the first or last line that looks like an error.
async function showError(direction) {
  const { first, count } = log.range();
  const mine = ++runNumber;
  isScanning = false;
  set(found, "Searching…");
  for (let done = first - 1; done < count; done += MAX_LINES) {
    const after =
      direction > 0 ? done : Math.max(first - 1, count - (done - first + 1) - MAX_LINES);
    const number = await errorIn(after, Math.min(MAX_LINES, count - done), direction);
    if (mine !== runNumber) return;
    if (number !== null) {
      log.show(number);
      set(found, `Line ${number.toLocaleString("en")}`);
      return;
    }
  }
  set(found, "No error found");
}

async function errorIn(after, count, direction) {
  const isError = levelReader();
  const numbers = [];
  while (count > 0) {
    const lines = await fetchLines(after, count);
    if (!lines?.length) break;
    lines.forEach((line, index) => {
      if (isError(plain(line)) === "error") numbers.push(after + index + 1);
    });
    if (direction > 0 && numbers.length) break;
    after += lines.length;
    count -= lines.length;
  }
  return numbers.at(direction > 0 ? 0 : -1) ?? null;
}

// --- highlights --------------------------------------------------------------------------

// Highlights the matches in the rows; a match can contain several colours.
export function highlight(rows) {
  if (!globalThis.CSS?.highlights) return;
  const ranges = needle ? [...rows].flatMap((row) => rangesIn(row.lastElementChild)) : [];
  if (ranges.length) CSS.highlights.set("found", new Highlight(...ranges));
  else CSS.highlights.delete("found");
}

function rangesIn(element) {
  const text = element.textContent.toLowerCase();
  const ranges = [];
  // A few letters are longer in lower case, so that positions after them would be wrong.
  if (text.length !== element.textContent.length) return ranges;
  for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + needle.length)) {
    const range = new Range();
    range.setStart(...position(element, at));
    range.setEnd(...position(element, at + needle.length));
    ranges.push(range);
  }
  return ranges;
}

// The text node at an offset in an element, and the offset in it.
function position(element, offset) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  let node = walker.nextNode();
  while (offset > node.length) {
    offset -= node.length;
    node = walker.nextNode();
  }
  return [node, offset];
}

// --- the controls ------------------------------------------------------------------------

function chooseLevels() {
  levels = new Set(boxes.filter((box) => box.checked).map((box) => box.dataset.level));
  restart();
}

// Shows all lines again.
export function showAllLevels() {
  if (!levels.size) return;
  for (const box of boxes) box.checked = false;
  chooseLevels();
}

export function init(functions) {
  log = functions;
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
    else if (event.key === "Escape" && field.value) {
      field.value = "";
      if (read()) restart();
      log.redraw();
    }
  });
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = null;
      if (read()) restart();
      log.redraw();
    }, DELAY_MS);
  });
  for (const direction of [-1, 1]) {
    steps[direction].addEventListener("click", () => step(direction));
    ends[direction].addEventListener("click", () => showError(direction));
  }
  for (const box of boxes) {
    // After a reload, a browser may restore the state of the boxes.
    box.checked = false;
    box.addEventListener("change", chooseLevels);
  }
  get("log-all-lines").addEventListener("click", () => {
    showAllLevels();
    get("log").focus({ preventScroll: true });
  });
  for (const part of ["log-finder", "log-bar", "log-first-error"]) get(part).hidden = false;
}
