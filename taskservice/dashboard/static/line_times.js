// The times of lines in the chosen format, and marks for pauses.

import { pauses, storedCount, timeOf } from "./line_cache.js";

// The shortest pause that is marked in a log with few lines. In other logs, it is FACTOR times as
// long as the usual pause, which one of RARE loaded pauses exceeds, or MAX_LONG in a short log.
const PAUSE_MS = 30_000;
const FACTOR = 3;
const RARE = 20;
const MAX_LONG = 4;
const MINUTE = 60_000;

const clock = new Intl.DateTimeFormat("en-GB", {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  fractionalSecondDigits: 3,
  hourCycle: "h23",
});

function two(number) {
  return String(number).padStart(2, "0");
}

// 75,250 ms -> 1:15.250
function span(milliseconds) {
  const sign = milliseconds < 0 ? "−" : "";
  const rest = Math.abs(milliseconds);
  const hours = Math.floor(rest / (60 * MINUTE));
  const minutes = Math.floor(rest / MINUTE) % 60;
  const seconds = `${two(Math.floor(rest / 1_000) % 60)}.${String(rest % 1_000).padStart(3, "0")}`;
  return sign + (hours ? `${hours}:${two(minutes)}:${seconds}` : `${minutes}:${seconds}`);
}

// 75,250 ms -> 1 min 15 s
function spanText(milliseconds) {
  const seconds = Math.floor(milliseconds / 1_000);
  const [hours, minutes] = [Math.floor(seconds / 3_600), Math.floor(seconds / 60) % 60];
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
}

// The formats of times: functions from the number and the time of a line to a text.
const FORMATS = {
  clock: (_number, at) => clock.format(at),
  start: (_number, at, start) => span(at - start),
  before: (number, at) => {
    const before = timeOf(number - 1);
    return typeof before === "number" ? `+${span(at - before)}` : "";
  },
};

// The text of a line's time; empty if the line has no time.
export function timeText(kind, number, start) {
  const at = timeOf(number);
  return typeof at === "number" && FORMATS[kind] ? FORMATS[kind](number, at, start) : "";
}

let shortest = PAUSE_MS;
let countedLines = 0;

function shortestMarked() {
  // The pauses are not sorted for each new line, since sorting is slow.
  if (storedCount <= countedLines * 1.1) return shortest;
  countedLines = storedCount;
  const known = pauses().sort((a, b) => b - a);
  const usual = known[Math.max(MAX_LONG, Math.floor(known.length / RARE))] ?? known.at(-1);
  shortest = known.length > 1 ? Math.max(PAUSE_MS, FACTOR * usual) : PAUSE_MS;
  return shortest;
}

// The text of a pause; empty if the pause is too short to be marked.
export function pauseBetween(before, at) {
  const isTimed = typeof at === "number" && typeof before === "number";
  return isTimed && at - before >= shortestMarked() ? spanText(at - before) : "";
}

// The text of the pause before a line.
export function pauseText(number) {
  return pauseBetween(timeOf(number - 1), timeOf(number));
}
