// Finds the level of a log line by the words in it.

export const LEVELS = ["error", "warning", "info", "debug"];

// Only this number of characters of a line is read.
const MAX_LENGTH = 500;
const WORDS = {
  error: "error|err|fatal|critical|crit|panic|severe|emerg(?:ency)?|alert",
  warning: "warning|warn",
  info: "info|notice",
  debug: "debug|trace|verbose",
};
// What can precede the level at the start of a line: a time, brackets and the name of a program.
const PREFIX = "^[\\s\\d\\-:.,/+TZ\\[\\](){}<>|*#=]*(?:[\\w.\\-/]{1,40}[:\\]]\\s*)?";
const PATTERNS = LEVELS.map((level) => {
  const word = WORDS[level];
  const atStart = `${PREFIX}[\\[(<]?(?:${word})\\b(?!\\s*[=(]|\\w|['’.-]\\w)`;
  const named = `\\b(?:level|lvl|severity|levelname)"?\\s*[=:]\\s*"?(?:${word})\\b`;
  return [
    level,
    new RegExp(`${atStart}|${named}`, "i"),
    new RegExp(`\\b(?:${word.toUpperCase()})\\b`),
  ];
});
const TRACEBACK = /^\s*Traceback \(most recent call last\)/;
const FAULT = new RegExp(
  [
    "^\\s*(?:[\\w$]+[.:]{1,2})*[A-Z][\\w$]*(?:Error|Exception|Failure|Panic|Fault)\\b(?::|$| )",
    "^(?:panic|fatal|goroutine \\d+ \\[running\\])[:\\s]",
    "^thread '.*' (?:\\(\\d+\\) )?panicked",
    "^Exception in thread",
    "^(?:Uncaught|Unhandled)\\b",
    "^Caused by:",
    "\\bnpm ERR!",
    "\\berror(?:\\[[A-Z]?\\d+\\])?: ",
    "^Segmentation fault",
    "\\bcore dumped\\b",
  ].join("|"),
);
// Words of error messages that contain no level.
const REASON = new RegExp(
  [
    "\\b(?:timed[ -]out|refused|denied|aborted|aborting|fatal (?:error|exception|signal))\\b",
    "\\b(?:no such file or directory|command not found|no space left on device)\\b",
    "(?:^|[:\\])>] *)(?:cannot|can['’]t|could not|couldn['’]t|unable to|failed to|abort)\\b",
    "\\b(?:non-?zero )?exit(?:ed|s)?\\b[^:=\\n]{0,20}?\\b(?:status|code)\\b[ :=]*-?[1-9]\\d*\\b",
  ]
    .map((words) => `${words}(?!\\s*[=:]\\s*(?:0|no|none|false)\\b)`)
    .join("|"),
  "gi",
);
// Words before an error that negate the error, as in "0 requests timed out".
const NEGATION = /\b(?:0|zero|no|not|non|never|nothing|none|without)[\s-]+(?:\w+\s+)?$/i;

function hasReason(text) {
  return [...text.matchAll(REASON)].some(({ index }) => !NEGATION.test(text.slice(0, index)));
}

// The level of a line without escape sequences: one of LEVELS, or null.
export function levelOf(line) {
  const text = line.slice(0, MAX_LENGTH);
  if (TRACEBACK.test(text)) return "error";
  for (const [level, anyCase, upperCase] of PATTERNS) {
    if (upperCase.test(text) || anyCase.test(text)) return level;
  }
  return FAULT.test(text) || hasReason(text) ? "error" : null;
}

// Makes a function that reads lines in order and returns their levels. All lines of a traceback are
// errors.
export function levelReader() {
  let inTraceback = false;
  return (line) => {
    const level = levelOf(line);
    if (TRACEBACK.test(line)) {
      inTraceback = true;
      return level;
    }
    if (!inTraceback) return level;
    // The first line that is not indented is the exception, with which the traceback ends.
    inTraceback = /^\s/.test(line) || line === "";
    return line === "" ? level : "error";
  };
}
