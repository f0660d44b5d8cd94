// The loaded lines of a log. Other lines are loaded when they become visible.

export const BLOCK = 200;
// The server's maximum number of lines in one response.
export const MAX_LINES = 1_000;
const MAX_BLOCKS = 40;
// The server truncates longer lines; the download contains all of them.
const MAX_LENGTH = 5_000;

const here = location.pathname;
// Number of a block -> its lines with their times; lines that are not loaded are holes.
const blocks = new Map();
// The number of lines that have been stored, including lines that were dropped later.
export let storedCount = 0;

export function blockOf(number) {
  return Math.floor((number - 1) / BLOCK);
}

export function line(number) {
  return entry(number)?.text;
}

// When the agent printed a line, in milliseconds; null if the line has no time, undefined if the
// line is not loaded.
export function timeOf(number) {
  return entry(number)?.at;
}

function entry(number) {
  return blocks.get(blockOf(number))?.[(number - 1) % BLOCK];
}

export function isBlockLoaded(number) {
  return blocks.has(blockOf(number));
}

// Stores a line. `time` is a string or null, as in the server's response.
export function store(number, text, time) {
  const index = blockOf(number);
  let block = blocks.get(index);
  if (!block) {
    block = new Array(BLOCK);
    blocks.set(index, block);
  }
  const shown = text.length > MAX_LENGTH ? `${text.slice(0, MAX_LENGTH)} … truncated` : text;
  storedCount++;
  block[(number - 1) % BLOCK] = { text: shown, at: time ? Date.parse(time) : null };
}

// The times between the loaded lines, in milliseconds.
export function pauses() {
  const known = [];
  for (const block of blocks.values()) {
    for (let place = 1; place < BLOCK; place++) {
      const [before, at] = [block[place - 1]?.at, block[place]?.at];
      if (typeof before === "number" && typeof at === "number") known.push(at - before);
    }
  }
  return known;
}

export function dropDistant(number) {
  if (blocks.size <= MAX_BLOCKS) return;
  const middle = blockOf(number);
  const byDistance = [...blocks.keys()].sort((a, b) => Math.abs(b - middle) - Math.abs(a - middle));
  for (const index of byDistance.slice(0, blocks.size - MAX_BLOCKS)) blocks.delete(index);
}

// At most `limit` lines after a number; null or undefined if the service can't be reached.
export async function fetchLines(after, limit) {
  return (await fetchTimed(after, limit))?.lines;
}

async function fetchTimed(after, limit) {
  try {
    const response = await fetch(`${here}/lines?after=${after}&limit=${limit}`, {
      redirect: "manual",
    });
    return response.ok ? await response.json() : null;
  } catch {
    // The event stream reports the error.
    return null;
  }
}

// Loads a line and the lines around it; returns whether this succeeded.
export async function loadAround(number, first) {
  // A reader who scrolls up needs the lines above too.
  let from = number;
  while (from > first && from > number - BLOCK && line(from - 1) === undefined) from--;
  const found = await fetchTimed(from - 1, number - from + BLOCK);
  if (!found) return false;
  storeAll(from, found);
  if (from + found.lines.length > number) return true;
  // The line is missing: longer lines before it filled the response, or it was deleted.
  const more = await fetchTimed(number - 1, BLOCK);
  if (!more) return false;
  storeAll(number, more);
  if (!more.lines.length) store(number, "", null);
  return true;
}

function storeAll(first, { lines, times }) {
  lines.forEach((text, index) => {
    store(first + index, text, times[index]);
  });
}
