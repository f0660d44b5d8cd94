// Turns a line of a log into nodes: colours become classes, and other escape sequences are removed.

import { addressesIn, linked } from "./links.js";

const SEQUENCE = new RegExp(
  [
    "\\x1b\\[([0-9;:]*)m", // colours and styles
    "\\x1b\\[[0-?]*[ -/]*[@-~]?", // other control sequences
    "\\x1b\\][^\\x07\\x1b]*(?:\\x07|\\x1b\\\\)?", // titles, links
    "\\x1b[PX^_][^\\x1b]*(?:\\x1b\\\\)?", // strings to a device
    "\\x1b[ -/]*[0-~]?",
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]",
  ].join("|"),
  "g",
);

const PALETTE = [
  [0, 0, 0],
  [205, 0, 0],
  [0, 205, 0],
  [205, 205, 0],
  [0, 0, 238],
  [205, 0, 205],
  [0, 205, 205],
  [229, 229, 229],
  [127, 127, 127],
  [255, 0, 0],
  [0, 255, 0],
  [255, 255, 0],
  [92, 92, 255],
  [255, 0, 255],
  [0, 255, 255],
  [255, 255, 255],
];
const STYLES = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "strike" };
const STYLE_ENDS = {
  22: ["bold", "dim"],
  23: ["italic"],
  24: ["underline"],
  27: ["inverse"],
  29: ["strike"],
};

function nearest(red, green, blue) {
  const distances = PALETTE.map(([r, g, b]) => (r - red) ** 2 + (g - green) ** 2 + (b - blue) ** 2);
  return distances.indexOf(Math.min(...distances));
}

// The nearest of the 16 colours that are readable in both themes.
function from256(number) {
  if (number < 16) return number;
  if (number > 231) {
    const grey = 8 + 10 * (number - 232);
    return nearest(grey, grey, grey);
  }
  const level = (step) => (step ? 55 + 40 * step : 0);
  const cube = number - 16;
  return nearest(level(Math.floor(cube / 36)), level(Math.floor(cube / 6) % 6), level(cube % 6));
}

// The colour in 38;5;n or 38;2;r;g;b; removes the codes after the 38 from `codes`.
function takeExtended(codes) {
  const kind = codes.shift();
  if (kind === 5) return from256(codes.shift() & 255);
  if (kind === 2) return nearest(...codes.splice(0, 3).map((value) => value & 255));
  return null;
}

function applyCodes(state, text) {
  const codes = text.split(/[;:]/).map(Number);
  while (codes.length) {
    const code = codes.shift();
    if (code === 0) {
      state.styles.clear();
      state.foreground = state.background = null;
    } else if (STYLES[code]) state.styles.add(STYLES[code]);
    else if (STYLE_ENDS[code]) for (const style of STYLE_ENDS[code]) state.styles.delete(style);
    else if (code >= 30 && code <= 37) state.foreground = code - 30;
    else if (code >= 90 && code <= 97) state.foreground = code - 82;
    else if (code >= 40 && code <= 47) state.background = code - 40;
    else if (code >= 100 && code <= 107) state.background = code - 92;
    else if (code === 38) state.foreground = takeExtended(codes);
    else if (code === 48) state.background = takeExtended(codes);
    else if (code === 39) state.foreground = null;
    else if (code === 49) state.background = null;
  }
}

// The classes of a state. On a coloured background, text has the usual colour, which is readable.
function classes({ styles, foreground, background }) {
  const names = new Set(styles);
  if (names.has("inverse") && (foreground !== null || background !== null)) {
    names.delete("inverse");
    [foreground, background] = [background, foreground];
  }
  if (background !== null) {
    names.delete("dim");
    names.add(`bg-${background}`);
  } else if (foreground !== null) names.add(`fg-${foreground}`);
  return [...names].join(" ");
}

function textNodes(nodes, state) {
  const names = classes(state);
  if (!names) return nodes;
  const span = document.createElement("span");
  span.className = names;
  span.append(...nodes);
  return [span];
}

// A line such as a progress bar overwrites itself: show the last version, as a terminal does.
function lastOverwrite(line) {
  const shown = line.replace(/\r+$/, "");
  return shown.slice(shown.lastIndexOf("\r") + 1);
}

// A line as plain text, for searching and copying.
export function plain(line) {
  return lastOverwrite(line).replace(SEQUENCE, "");
}

export function painted(line) {
  const last = lastOverwrite(line);
  const state = { styles: new Set(), foreground: null, background: null };
  // Addresses are found in the plain text, since the parts of an address can have several styles.
  const addresses = addressesIn(plain(line));
  const nodes = [];
  let start = 0,
    offset = 0;
  const add = (end) => {
    if (end === start) return;
    nodes.push(...textNodes(linked(last.slice(start, end), addresses, offset), state));
    offset += end - start;
  };
  for (const found of last.matchAll(SEQUENCE)) {
    add(found.index);
    if (found[1] !== undefined) applyCodes(state, found[1]);
    start = found.index + found[0].length;
  }
  add(last.length);
  return nodes;
}
