// A line of a log as nodes: its colours as classes, all other escape sequences dropped.

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

// What turns the direction of writing, so that a line reads as another.
const TURNS = /[\u202a-\u202e\u2066-\u2069]/g;

const PALETTE = [
  [0, 0, 0], [205, 0, 0], [0, 205, 0], [205, 205, 0],
  [0, 0, 238], [205, 0, 205], [0, 205, 205], [229, 229, 229],
  [127, 127, 127], [255, 0, 0], [0, 255, 0], [255, 255, 0],
  [92, 92, 255], [255, 0, 255], [0, 255, 255], [255, 255, 255],
];
const STYLES = { 1: "bold", 2: "dim", 3: "italic", 4: "underline", 7: "inverse", 9: "strike" };
const ENDS = { 22: ["bold", "dim"], 23: ["italic"], 24: ["underline"], 27: ["inverse"], 29: ["strike"] };

function nearest(red, green, blue) {
  const far = PALETTE.map(([r, g, b]) => (r - red) ** 2 + (g - green) ** 2 + (b - blue) ** 2);
  return far.indexOf(Math.min(...far));
}

// One of 256 colours as one of 16, which both themes can show so that it is read.
function of256(number) {
  if (number < 16) return number;
  if (number > 231) {
    const grey = 8 + 10 * (number - 232);
    return nearest(grey, grey, grey);
  }
  const level = (step) => (step ? 55 + 40 * step : 0);
  const cube = number - 16;
  return nearest(level(Math.floor(cube / 36)), level(Math.floor(cube / 6) % 6), level(cube % 6));
}

// 38;5;n or 38;2;r;g;b, of which `codes` has what follows the 38; takes it from there.
function extended(codes) {
  const kind = codes.shift();
  if (kind === 5) return of256(codes.shift() & 255);
  if (kind === 2) return nearest(...codes.splice(0, 3).map((value) => value & 255));
  return null;
}

function apply(state, text) {
  const codes = text.split(/[;:]/).map(Number);
  while (codes.length) {
    const code = codes.shift();
    if (code === 0) {
      state.styles.clear();
      state.ink = state.ground = null;
    } else if (STYLES[code]) state.styles.add(STYLES[code]);
    else if (ENDS[code]) ENDS[code].forEach((style) => state.styles.delete(style));
    else if (code >= 30 && code <= 37) state.ink = code - 30;
    else if (code >= 90 && code <= 97) state.ink = code - 82;
    else if (code >= 40 && code <= 47) state.ground = code - 40;
    else if (code >= 100 && code <= 107) state.ground = code - 92;
    else if (code === 38) state.ink = extended(codes);
    else if (code === 48) state.ground = extended(codes);
    else if (code === 39) state.ink = null;
    else if (code === 49) state.ground = null;
  }
}

// The classes of a state. Who asks for a ground gets an ink that can be read on it.
function classes({ styles, ink, ground }) {
  const names = new Set(styles);
  if (names.has("inverse") && (ink !== null || ground !== null)) {
    names.delete("inverse");
    [ink, ground] = [ground, ink];
  }
  if (ground !== null) names.delete("dim"), names.add(`ground-${ground}`);
  else if (ink !== null) names.add(`ink-${ink}`);
  return [...names].join(" ");
}

function piece(text, state) {
  const shown = text.replace(TURNS, (sign) => `\\u${sign.codePointAt(0).toString(16)}`);
  const names = classes(state);
  if (!names) return document.createTextNode(shown);
  const span = document.createElement("span");
  span.className = names;
  span.textContent = shown;
  return span;
}

// A progress bar writes over itself; what it wrote last is what a terminal shows.
function lastWritten(line) {
  const shown = line.replace(/\r+$/, "");
  return shown.slice(shown.lastIndexOf("\r") + 1);
}

// A line as text, as somebody wants to have it who copies it.
export function plain(line) {
  return lastWritten(line).replace(SEQUENCE, "");
}

export function painted(line) {
  const last = lastWritten(line);
  const state = { styles: new Set(), ink: null, ground: null };
  const nodes = [];
  let start = 0;
  for (const found of last.matchAll(SEQUENCE)) {
    if (found.index > start) nodes.push(piece(last.slice(start, found.index), state));
    if (found[1] !== undefined) apply(state, found[1]);
    start = found.index + found[0].length;
  }
  if (start < last.length) nodes.push(piece(last.slice(start), state));
  return nodes;
}
