// Looks through the whole log, which the browser's own search does not see.

import { plain } from "./ansi.js";
import { MOST, ask } from "./lines.js";

// The number of the next line with `text`, from `start` on and then from the other end; or null.
// `step` is 1 or -1, `isWanted` says whether anybody still waits for it.
export async function find(text, step, start, first, count, isWanted) {
  const wanted = text.toLowerCase();
  const parts = step > 0
    ? [[start, count], [first, start - 1]]
    : [[first, start], [start + 1, count]];
  for (const [from, to] of parts) {
    const found = await within(wanted, step, from, to, isWanted);
    if (found !== null) return found;
  }
  return null;
}

async function within(wanted, step, from, to, isWanted) {
  while (from <= to && isWanted()) {
    const begin = step > 0 ? from : Math.max(from, to - MOST + 1);
    const lines = await ask(begin - 1, Math.min(MOST, to - begin + 1));
    if (!lines?.length) return null;
    const has = (line) => plain(line).toLowerCase().includes(wanted);
    const place = step > 0 ? lines.findIndex(has) : lines.findLastIndex(has);
    if (place >= 0) return begin + place;
    if (step > 0) from += lines.length;
    else to = begin - 1;
  }
  return null;
}
