// Turns a subset of Markdown into nodes. HTML remains text, and images are not loaded.

import { link, linked } from "./links.js";

// Deeper lists and quotes are shown at this depth.
const MAX_DEPTH = 6;
// A longer line is always a paragraph.
const MAX_LINE = 2_000;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const FENCE = /^ {0,3}(`{3,}|~{3,})/;
const RULE = /^ {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?/;
const ROW = /^\s*\|(.*)\|\s*$/;
const DIVIDER = /^\s*\|(?:\s*:?-+:?\s*\|)+\s*$/;
const LOOKS = [
  /^ {0,3}#{1,6}\s\S/m,
  /^ {0,3}(?:`{3}|~{3})/m,
  /\*\*[^*\n]+\*\*/,
  /^[ \t]*\|(?:[ \t]*:?-+:?[ \t]*\|)+[ \t]*$/m,
  /\[[^[\]\n]{1,200}\]\(https?:/,
  /^[ \t]*[-*+] \S.*\n[ \t]*[-*+] \S/m,
];
const INLINE = new RegExp(
  [
    "`([^`\\n]{1,2000})`",
    "\\*\\*([^*\\n]{1,2000})\\*\\*",
    "(?<![\\w*])\\*([^*\\s][^*\\n]{0,2000})\\*(?![\\w*])",
    "(?<!\\w)_([^_\\s][^_\\n]{0,2000})_(?!\\w)",
    "!?\\[([^[\\]\\n]{1,500})\\]\\(([^\\s()]{1,2000})\\)",
  ].join("|"),
  "g",
);

// Whether a text was written as Markdown.
export function isMarkdown(text) {
  return LOOKS.some((pattern) => pattern.test(text));
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

export function markdown(text) {
  lastLevel = 2;
  return blocks(text.split(/\r?\n/), 0);
}

function blocks(lines, depth) {
  const nodes = [];
  let at = 0;
  while (at < lines.length) {
    const [node, end] = block(lines, at, depth);
    if (node) nodes.push(node);
    at = end;
  }
  return nodes;
}

// The block that begins at a line, and the index of the line after the block.
function block(lines, at, depth) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  if (line.length > MAX_LINE) return [element("p", ...inline(line)), at + 1];
  if (FENCE.test(line)) return fence(lines, at);
  const heading = line.match(HEADING);
  if (heading) return [headingOf(heading[1].length, heading[2]), at + 1];
  if (RULE.test(line)) return [element("hr"), at + 1];
  if (ROW.test(line) && DIVIDER.test(lines[at + 1] ?? "")) return table(lines, at);
  if (QUOTE.test(line) && depth < MAX_DEPTH) return quote(lines, at, depth);
  if (ITEM.test(line)) return list(lines, at);
  return paragraph(lines, at);
}

// The level of the previous heading; the page itself uses the levels 1 and 2.
let lastLevel = 2;

function headingOf(level, text) {
  // No level is skipped, for the users of screen readers.
  lastLevel = Math.min(level + 2, lastLevel + 1, 6);
  return element(`h${lastLevel}`, ...inline(text));
}

function fence(lines, at) {
  const mark = lines[at].match(FENCE)[1];
  let end = at + 1;
  while (end < lines.length && !lines[end].trimStart().startsWith(mark)) end++;
  const code = element("pre", element("code", lines.slice(at + 1, end).join("\n")));
  code.tabIndex = 0;
  return [code, end + 1];
}

function quote(lines, at, depth) {
  const end = endOf(lines, at, (line) => QUOTE.test(line));
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [element("blockquote", ...blocks(inner, depth + 1)), end];
}

function endOf(lines, at, belongs) {
  let end = at;
  while (end < lines.length && belongs(lines[end])) end++;
  return end;
}

// A list with nested lists, by the indents of the items.
function list(lines, at) {
  const end = endOf(lines, at, (line) => ITEM.test(line) || /^\s+\S/.test(line));
  const open = [];
  let top = null;
  for (const line of lines.slice(at, end)) {
    const found = line.match(ITEM);
    if (!found) {
      open.at(-1).list.lastElementChild.append(" ", ...inline(line.trim()));
      continue;
    }
    const indent = found[1].length;
    while (open.length > 1 && indent < open.at(-1).indent) open.pop();
    if (!open.length || (indent > open.at(-1).indent + 1 && open.length < MAX_DEPTH)) {
      const made = element(found[2] ? "ol" : "ul");
      if (found[2]) made.start = Number(found[2]);
      if (open.length) open.at(-1).list.lastElementChild.append(made);
      else top = made;
      open.push({ indent, list: made });
    }
    open.at(-1).list.append(element("li", ...inline(found[3])));
  }
  return [top, end];
}

function table(lines, at) {
  const end = endOf(lines, at, (line) => ROW.test(line));
  const cells = (line) =>
    line
      .match(ROW)[1]
      .split("|")
      .map((cell) => inline(cell.trim()));
  const head = element("tr", ...cells(lines[at]).map((nodes) => element("th", ...nodes)));
  const rows = lines
    .slice(at + 2, end)
    .map((line) => element("tr", ...cells(line).map((nodes) => element("td", ...nodes))));
  const box = element("div", element("table", element("thead", head), element("tbody", ...rows)));
  box.className = "table-box";
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Table");
  box.tabIndex = 0;
  return [box, end];
}

function startsBlock(line) {
  if (line.length > MAX_LINE) return true;
  return !line.trim() || [FENCE, HEADING, RULE, QUOTE, ITEM, ROW].some((each) => each.test(line));
}

function paragraph(lines, at) {
  const end = endOf(lines, at + 1, (line) => !startsBlock(line));
  return [element("p", ...inline(lines.slice(at, end).join("\n"))), end];
}

function inline(text) {
  const nodes = [];
  let start = 0;
  for (const found of text.matchAll(INLINE)) {
    nodes.push(...linked(text.slice(start, found.index)), styled(found));
    start = found.index + found[0].length;
  }
  nodes.push(...linked(text.slice(start)));
  return nodes;
}

function styled([whole, code, bold, star, underscore, label, address]) {
  if (code !== undefined) return element("code", ...linked(code));
  if (bold !== undefined) return element("strong", ...linked(bold));
  if (label === undefined) return element("em", ...linked(star ?? underscore));
  const anchor = link(address, element("span", ...linked(label).map((node) => node.textContent)));
  // If the address is not a valid link, the text is shown unchanged.
  return anchor.localName === "a" ? anchor : element("span", ...linked(whole));
}
