// The position of each line in pixels. A line has the height of one row unless a larger height was
// measured.

import { BLOCK, blockOf } from "./line_cache.js";

// The line height in dashboard.css.
export const LINE = 20;

// Number of a block -> { sum, extra }; `extra` maps the number of a line to its height above a row.
const tallBlocks = new Map();

export function forgetHeights() {
  tallBlocks.clear();
}

// Stores the height of a line; returns whether it has changed.
export function noteHeight(number, height) {
  const index = blockOf(number);
  const known = tallBlocks.get(index)?.extra.get(number) ?? 0;
  const more = height - LINE;
  if (more === known) return false;
  if (!tallBlocks.has(index)) tallBlocks.set(index, { sum: 0, extra: new Map() });
  const block = tallBlocks.get(index);
  block.sum += more - known;
  block.extra.set(number, more);
  return true;
}

// The first pixel of a line; line `first` begins at 0.
export function topOf(number, first) {
  let top = (number - first) * LINE;
  for (const [index, { sum, extra }] of tallBlocks) {
    if (index < blockOf(number)) top += sum;
    else if (index === blockOf(number)) {
      for (const [other, more] of extra) if (other < number) top += more;
    }
  }
  return top;
}

// The line at a pixel.
export function lineAt(pixel, first) {
  let skipped = 0;
  for (const index of [...tallBlocks.keys()].sort((a, b) => a - b)) {
    const { sum, extra } = tallBlocks.get(index);
    const start = Math.max(first, index * BLOCK + 1);
    const end = (index + 1) * BLOCK;
    if (pixel < (start - first) * LINE + skipped) break;
    if (pixel >= (end + 1 - first) * LINE + skipped + sum) skipped += sum;
    else return lineInBlock(pixel - skipped, first, start, extra);
  }
  return first + Math.floor((pixel - skipped) / LINE);
}

function lineInBlock(pixel, first, start, extra) {
  let number = start;
  const height = () => LINE + (extra.get(number) ?? 0);
  let bottom = (start - first) * LINE + height();
  while (bottom <= pixel) {
    number++;
    bottom += height();
  }
  return number;
}
