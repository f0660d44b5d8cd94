// Searches the whole log: the browser's own search sees only the lines in the page.

import { plain } from "./ansi.js";
import { MAX_LINES, fetchLines } from "./line_cache.js";

// The number of the next line with `text`, from `start` to the end and then from the other end,
// or null. `step` is 1 or -1; the search stops when `isWanted()` becomes false.
export async function findLine(text, step, start, first, count, isWanted) {
  const wanted = text.toLowerCase();
  const parts = step > 0
    ? [[start, count], [first, start - 1]]
    : [[first, start], [start + 1, count]];
  for (const [from, to] of parts) {
    const found = await searchRange(wanted, step, from, to, isWanted);
    if (found !== null) return found;
  }
  return null;
}

async function searchRange(wanted, step, from, to, isWanted) {
  while (from <= to && isWanted()) {
    const begin = step > 0 ? from : Math.max(from, to - MAX_LINES + 1);
    const lines = await fetchLines(begin - 1, Math.min(MAX_LINES, to - begin + 1));
    if (!lines?.length) return null;
    const has = (line) => plain(line).toLowerCase().includes(wanted);
    const index = step > 0 ? lines.findIndex(has) : lines.findLastIndex(has);
    if (index >= 0) return begin + index;
    if (step > 0) from += lines.length;
    else to = begin - 1;
  }
  return null;
}
