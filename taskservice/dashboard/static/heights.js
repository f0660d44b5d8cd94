// Where each line begins, in pixels: all are one row high, but for those that were found higher.

import { BLOCK, blockOf } from "./lines.js";

// As the style has it.
export const LINE = 20;

// Number of a block -> { sum, of: number of a line -> by how much it is higher than a row }.
const higher = new Map();

export function forgetHeights() {
  higher.clear();
}

// Whether that is news.
export function noteHeight(number, height) {
  const index = blockOf(number);
  const known = higher.get(index)?.of.get(number) ?? 0;
  const more = height - LINE;
  if (more === known) return false;
  if (!higher.has(index)) higher.set(index, { sum: 0, of: new Map() });
  const block = higher.get(index);
  block.sum += more - known;
  block.of.set(number, more);
  return true;
}

// The first pixel of a line, where line `first` begins at 0.
export function topOf(number, first) {
  let top = (number - first) * LINE;
  for (const [index, { sum, of }] of higher) {
    if (index < blockOf(number)) top += sum;
    else if (index === blockOf(number)) {
      for (const [other, more] of of) if (other < number) top += more;
    }
  }
  return top;
}

// The line that has a pixel.
export function lineAt(pixel, first) {
  let gained = 0;
  for (const index of [...higher.keys()].sort((a, b) => a - b)) {
    const { sum, of } = higher.get(index);
    const start = Math.max(first, index * BLOCK + 1);
    const end = (index + 1) * BLOCK;
    if (pixel < (start - first) * LINE + gained) break;
    if (pixel >= (end + 1 - first) * LINE + gained + sum) gained += sum;
    else return within(pixel - gained, first, start, of);
  }
  return first + Math.floor((pixel - gained) / LINE);
}

function within(pixel, first, start, of) {
  let number = start;
  let bottom = (start - first) * LINE;
  while ((bottom += LINE + (of.get(number) ?? 0)) <= pixel) number++;
  return number;
}
