// Shows the output of a task to people: as text, Markdown, sortable tables and folded parts. Values
// from the JSON in the page are only inserted as text nodes.

import { linked, shown } from "./links.js";
import { isMarkdown, markdown } from "./markdown.js";

// How much of a text, list or table is drawn at first; a button draws as much again.
const TEXT_PART = 20_000;
const CELL_PART = 300;
const ROWS = 50;
const ITEMS = 50;
const MAX_COLUMNS = 30;
// Values at this depth and deeper are folded.
const OPEN_DEPTH = 2;
// The number of first characters that determine how a text is shown.
const SAMPLE = 20_000;
const SEARCH_MS = 250;
// In a long text, a search shows AROUND characters on both sides of the first MAX_PASSAGES matches.
const AROUND = 200;
const MAX_PASSAGES = 100;
const MAX_HIGHLIGHTS = 1_000;

// Without SVG, which is a document with its own links and styles. An output has at most 1 MiB.
const IMAGE = /^data:image\/(?:png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}$/;

const numbers = new Intl.NumberFormat("en");
const collator = new Intl.Collator(undefined, { numeric: true });

// The text of a number that JavaScript would round.
class Exact {
  constructor(text) {
    this.text = text;
  }

  toString() {
    return this.text;
  }
}

function parse(text) {
  return JSON.parse(text, (_key, value, context) =>
    typeof value === "number" && context?.source !== undefined && context.source !== String(value)
      ? new Exact(context.source)
      : value,
  );
}

const isArray = Array.isArray;
const isObject = (value) =>
  typeof value === "object" && value !== null && !isArray(value) && !(value instanceof Exact);
const isNumber = (value) => typeof value === "number" || value instanceof Exact;
const isNested = (value) => isArray(value) || isObject(value);

function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function button(text, action) {
  const made = element("button", "quiet", text);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}

function plural(count, noun) {
  return `${numbers.format(count)} ${noun}${count === 1 ? "" : "s"}`;
}

// --- values ------------------------------------------------------------------------------

function view(value, depth) {
  if (typeof value === "string") return stringView(value, TEXT_PART);
  if (!isNested(value)) return element("span", "scalar", String(value));
  const size = isArray(value) ? value.length : Object.keys(value).length;
  if (!size) return element("span", "faint", isArray(value) ? "empty list" : "empty");
  if (depth >= OPEN_DEPTH) return fold(summary(value, size), () => nested(value, depth + 1));
  return nested(value, depth + 1);
}

function stringView(text, size) {
  if (!IMAGE.test(text)) return textView(text, size);
  const image = element("img");
  image.addEventListener("error", () => image.replaceWith(textView(text, size)));
  image.alt = "Image in the output";
  image.src = text;
  return image;
}

function summary(value, size) {
  return plural(size, isArray(value) ? "item" : "field");
}

function nested(value, depth) {
  if (isObject(value)) return fields(value, depth);
  return value.every(isObject) ? table(value, depth) : items(value, depth);
}

// A part that is drawn when it is opened.
function fold(text, make) {
  const made = element("details", "fold", element("summary", "", text));
  const open = () => {
    if (made.open && made.childElementCount === 1) made.append(make());
  };
  made.addEventListener("toggle", open);
  made.open = isSearching();
  open();
  return made;
}

// Appends the first values, drawn by `render`, and a button that draws the next values.
function growing(box, count, size, noun, render) {
  const more = button("", () => next());
  const line = element("p", "more-line", more);
  let done = 0;
  const next = () => {
    const end = Math.min(count, done + size);
    render(done, end);
    done = end;
    if (done >= count) line.remove();
    more.textContent = `Show ${numbers.format(Math.min(size, count - done))} more of ${plural(count, noun)}`;
  };
  box.append(line);
  next();
  return box;
}

function fields(value, depth) {
  const list = element("dl", "fields");
  const entries = Object.entries(value);
  return growing(element("div", "", list), entries.length, ITEMS, "field", (from, to) => {
    for (const [key, part] of entries.slice(from, to)) {
      const name = element("dt", "", shown(key));
      list.append(
        element("div", isShort(part) ? "short" : "", name, element("dd", "", view(part, depth))),
      );
    }
  });
}

// Whether a value fits next to its name.
function isShort(value) {
  return typeof value === "string" ? value.length < 80 && !value.includes("\n") : !isNested(value);
}

function items(value, depth) {
  const list = element("ul", "items");
  return growing(element("div", "", list), value.length, ITEMS, "item", (from, to) => {
    list.append(...value.slice(from, to).map((part) => element("li", "", view(part, depth))));
  });
}

// --- text --------------------------------------------------------------------------------

function textView(text, size) {
  if (!text) return element("span", "faint", "empty");
  const sample = text.slice(0, SAMPLE);
  const isRead = size === TEXT_PART && isMarkdown(sample);
  const box = element(
    "div",
    isRead ? "markdown" : isPreformatted(sample) ? "text aligned" : "text",
  );
  let done = 0;
  const more = button("", () => next());
  const next = () => {
    const end = endOfPart(text, done, size);
    const part = text.slice(done, end);
    more.before(...(isRead ? markdown(part) : linked(part)));
    done = end;
    if (done >= text.length) more.remove();
    more.textContent = `Show more of ${plural(text.length, "character")}`;
    size = TEXT_PART;
  };
  box.append(more);
  next();
  return box;
}

// Columns that are aligned by spaces need a monospace font.
function isPreformatted(text) {
  return /\n/.test(text) && /^\t|^ {4}|\S {3,}\S/m.test(text);
}

// The end of a part: if possible, between paragraphs, lines or words.
function endOfPart(text, start, size) {
  if (text.length - start <= size * 1.2) return text.length;
  for (const gap of ["\n\n", "\n", " "]) {
    const at = text.lastIndexOf(gap, start + size);
    if (at > start + size / 2) return at + gap.length;
  }
  // A surrogate pair is never split.
  return start + size + (/[\ud800-\udbff]/.test(text[start + size - 1]) ? 1 : 0);
}

// --- tables ------------------------------------------------------------------------------

function table(rows, depth) {
  const columns = [...new Set(rows.slice(0, 1_000).flatMap(Object.keys))];
  const left = columns.splice(MAX_COLUMNS).length;
  const body = element("tbody");
  const numeric = new Set(columns.filter((column) => isNumeric(rows, column)));
  const heads = columns.map((column) => head(column, numeric));
  const made = element("table", "", element("thead", "", element("tr", "", ...heads)), body);
  const box = element("div", "table-box", made);
  box.tabIndex = 0;
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", `Table of ${plural(rows.length, "row")}`);
  const outer = element("div", "");
  const fill = (order) => {
    body.replaceChildren();
    outer.replaceChildren(box);
    growing(outer, order.length, ROWS, "row", (from, to) => {
      body.append(...order.slice(from, to).map((row) => tableRow(row, columns, numeric, depth)));
    });
    if (left)
      outer.append(element("p", "faint", `${plural(left, "more column")} in the raw output`));
  };
  for (const [index, cell] of heads.entries()) {
    cell.firstChild.addEventListener("click", () =>
      fill(sortBy(rows, columns[index], heads, cell)),
    );
  }
  fill(rows);
  return outer;
}

// Whether a column contains only numbers in the first rows.
function isNumeric(rows, column) {
  const values = rows
    .slice(0, 1_000)
    .map((row) => row[column] ?? null)
    .filter((value) => value !== null);
  return values.length > 0 && values.every(isNumber);
}

function head(column, numeric) {
  const cell = element("th", numeric.has(column) ? "end" : "", button(shown(column)));
  cell.scope = "col";
  return cell;
}

// The rows sorted by a column; the second click reverses the order.
function sortBy(rows, column, heads, cell) {
  const isDescending = cell.getAttribute("aria-sort") === "ascending";
  for (const other of heads) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
  const known = rows.filter((row) => (row[column] ?? null) !== null);
  known.sort((one, other) => compare(one[column], other[column]) * (isDescending ? -1 : 1));
  // Rows without a value are last.
  return [...known, ...rows.filter((row) => (row[column] ?? null) === null)];
}

function compare(one, other) {
  const [a, b] = [one, other].map((value) => (value instanceof Exact ? Number(value.text) : value));
  if (typeof a === "number" && typeof b === "number") return a - b;
  return collator.compare(
    isNested(a) ? JSON.stringify(a) : String(a),
    isNested(b) ? JSON.stringify(b) : String(b),
  );
}

function tableRow(row, columns, numeric, depth) {
  return element(
    "tr",
    "",
    ...columns.map((column) => tableCell(row, column, numeric.has(column), depth)),
  );
}

function tableCell(row, column, isEnd, depth) {
  if (!Object.hasOwn(row, column)) return element("td");
  const value = row[column];
  if (typeof value === "string") return element("td", "", stringView(value, CELL_PART));
  const className = isNumber(value) || (isEnd && value === null) ? "end" : "";
  return element("td", className, view(value, Math.max(depth, OPEN_DEPTH)));
}

// --- search ------------------------------------------------------------------------------

let needle = "";

function isSearching() {
  return needle !== "";
}

function countIn(text) {
  const lower = text.toLowerCase();
  let count = 0;
  for (let at = lower.indexOf(needle); at >= 0; at = lower.indexOf(needle, at + needle.length))
    count++;
  return count;
}

// The parts of a value that contain the text, and the number of matches; undefined without a match.
function matching(value) {
  if (typeof value === "string") return matchingText(value);
  if (isArray(value)) return matchingItems(value);
  if (isObject(value)) return matchingFields(value, false);
  const count = countIn(String(value));
  return count ? { part: value, count } : undefined;
}

function matchingText(text) {
  const count = countIn(text);
  if (!count) return undefined;
  return { part: text.length > 10 * AROUND ? passages(text) : text, count };
}

// The passages of a long text around its matches.
function passages(text) {
  const lower = text.toLowerCase();
  const found = [];
  let end = -1;
  for (let at = lower.indexOf(needle); at >= 0; at = lower.indexOf(needle, at + 1)) {
    if (at < end) continue;
    if (found.length === MAX_PASSAGES) break;
    end = at + needle.length + AROUND;
    found.push(`… ${text.slice(Math.max(0, at - AROUND), end)} …`);
  }
  return found.join("\n\n");
}

function matchingItems(value) {
  const found = value.map((item) => (isObject(item) ? matchingFields(item, true) : matching(item)));
  const kept = found.filter(Boolean);
  if (!kept.length) return undefined;
  return {
    part: kept.map(({ part }) => part),
    count: kept.reduce((sum, { count }) => sum + count, 0),
  };
}

// The fields that match. If one field of a row of a table matches, all fields of the row are shown.
function matchingFields(value, isRow) {
  const part = {};
  let count = 0;
  for (const [key, inner] of Object.entries(value)) {
    const found = matching(inner);
    const inKey = countIn(key);
    count += inKey + (found?.count ?? 0);
    if (found || inKey || isRow) {
      const kept = inKey || !found ? inner : found.part;
      Object.defineProperty(part, key, { value: kept, enumerable: true });
    }
  }
  return count ? { part, count } : undefined;
}

// The drawn matches, and the index of the current match.
let ranges = [];
let current = -1;

function findRanges(box) {
  [ranges, current] = [[], -1];
  const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
  for (
    let node = walker.nextNode();
    needle && node && ranges.length < MAX_HIGHLIGHTS;
    node = walker.nextNode()
  ) {
    const text = node.data.toLowerCase();
    if (text.length !== node.length) continue;
    for (let at = text.indexOf(needle); at >= 0; at = text.indexOf(needle, at + needle.length)) {
      const range = new Range();
      range.setStart(node, at);
      range.setEnd(node, at + needle.length);
      ranges.push(range);
    }
  }
  highlight();
}

function highlight() {
  if (!globalThis.CSS?.highlights) return;
  CSS.highlights.set("found-in-output", new Highlight(...ranges));
  const marked = new Highlight(...(current < 0 ? [] : [ranges[current]]));
  marked.priority = 1;
  CSS.highlights.set("current-in-output", marked);
}

// Goes to the next or previous match; after the last match comes the first.
function step(direction) {
  if (!ranges.length) return;
  const from = current < 0 && direction < 0 ? 0 : current;
  current = (from + direction + ranges.length) % ranges.length;
  highlight();
  const range = ranges[current];
  range.startContainer.parentElement.scrollIntoView({ block: "nearest", inline: "nearest" });
  // A long text is one element that scrolls: scroll to the match in it.
  const box = range.startContainer.parentElement.closest("pre");
  box?.scrollBy(
    0,
    range.getBoundingClientRect().top - box.getBoundingClientRect().top - box.clientHeight / 2,
  );
  const { top, bottom } = range.getBoundingClientRect();
  if (top < 0 || bottom > innerHeight) scrollBy(0, top - innerHeight / 2);
}

// --- the card ----------------------------------------------------------------------------

let isRaw = false;

function show() {
  const raw = document.getElementById("output-json");
  if (!raw || document.getElementById("output-view")) return;
  const value = parse(raw.textContent);
  const box = element("div", "");
  box.id = "output-view";
  raw.before(box);
  const [field, rawButton, found] = ["find", "raw", "found"].map((name) =>
    document.getElementById(`output-${name}`),
  );
  let count = 0;
  const draw = () => {
    const kept = isSearching() ? matching(value) : { part: value, count: 0 };
    box.replaceChildren(...(kept ? [nested(kept.part, 0)] : []));
    count = isSearching() && isRaw ? countIn(raw.textContent) : (kept?.count ?? 0);
    findRanges(isRaw ? raw : box);
    showFound();
  };
  const showFound = () => {
    const total = numbers.format(count);
    const all = !count ? "Not found" : isRaw ? `${total} found` : `${total} found, the rest hidden`;
    const text = current < 0 ? all : `${numbers.format(current + 1)} of ${total}`;
    found.textContent = isSearching() ? text : "";
  };
  const update = () => {
    raw.hidden = !isRaw;
    box.hidden = isRaw;
    rawButton.setAttribute("aria-pressed", isRaw);
  };
  rawButton.addEventListener("click", () => {
    isRaw = !isRaw;
    update();
    if (isSearching()) draw();
  });
  let timer = null;
  const read = () => {
    clearTimeout(timer);
    const text = field.value.toLowerCase();
    if (text === needle) return;
    needle = text;
    draw();
  };
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(read, SEARCH_MS);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    read();
    step(event.shiftKey ? -1 : 1);
    showFound();
  });
  field.value = needle;
  field.hidden = rawButton.hidden = false;
  update();
  draw();
}

show();
// The output may be new after a refresh.
document.addEventListener("refreshed", show);
