// The lines of a log that are here; all others are fetched when somebody looks at them.

export const BLOCK = 200;
// As many as the server gives at once.
export const MOST = 1_000;
const KEPT_BLOCKS = 40;
// As the server cuts them; the download has them whole.
const LONGEST = 5_000;

const here = location.pathname;
// Number of a block -> its lines; those that are not here yet are holes.
const blocks = new Map();

export function blockOf(number) {
  return Math.floor((number - 1) / BLOCK);
}

export function line(number) {
  return blocks.get(blockOf(number))?.[(number - 1) % BLOCK];
}

export function hasNeighbours(number) {
  return blocks.has(blockOf(number));
}

export function keep(number, text) {
  const index = blockOf(number);
  let block = blocks.get(index);
  if (!block) blocks.set(index, (block = new Array(BLOCK)));
  block[(number - 1) % BLOCK] = text.length > LONGEST ? `${text.slice(0, LONGEST)} … cut here` : text;
}

export function forgetFar(number) {
  if (blocks.size <= KEPT_BLOCKS) return;
  const middle = blockOf(number);
  const far = [...blocks.keys()].sort((a, b) => Math.abs(b - middle) - Math.abs(a - middle));
  for (const index of far.slice(0, blocks.size - KEPT_BLOCKS)) blocks.delete(index);
}

// Lines after a number, as many as fit of `limit`; null when the service can't be reached.
export async function ask(after, limit) {
  try {
    const response = await fetch(`${here}/lines?after=${after}&limit=${limit}`, {
      redirect: "manual",
    });
    return response.ok ? await response.json() : null;
  } catch {
    // The stream notices too, and says so.
    return null;
  }
}

// Brings a line and its neighbours; whether that went well.
export async function bring(number, first) {
  // Whoever scrolls up wants what is above it, too.
  let from = number;
  while (from > first && from > number - BLOCK && line(from - 1) === undefined) from--;
  const lines = await ask(from - 1, number - from + BLOCK);
  if (!lines) return false;
  lines.forEach((text, place) => keep(from + place, text));
  if (from + lines.length > number) return true;
  // As long lines leave no room for that one; or it has been dropped.
  const more = await ask(number - 1, BLOCK);
  if (!more) return false;
  more.forEach((text, place) => keep(number + place, text));
  if (!more.length) keep(number, "");
  return true;
}
