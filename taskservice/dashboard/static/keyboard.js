// Keyboard shortcuts. The key ? lists the shortcuts of the page.

const ROWS = "#rows th > a:first-child, #agents th > a, #inbox h3 a";
// The key in sessionStorage for the task or agent that was opened from a list.
const OPENED = "opened";
// The longest time between g and the letter of a page.
const GO_MS = 1_500;
let goesUntil = -Infinity;
const help = document.getElementById("shortcuts");
const button = document.getElementById("help");

function move(step) {
  const links = [...document.querySelectorAll(ROWS)];
  const row = document.activeElement.closest("#rows tr, #agents tr, #inbox .row");
  let current = links.findIndex((link) => row?.contains(link));
  if (current < 0)
    current = links.findIndex((link) => link.href === sessionStorage.getItem(OPENED));
  links[current < 0 ? 0 : current + step]?.focus();
}

function search() {
  const field = document.querySelector("main input[type=search]:not([hidden])");
  const fold = field?.closest("details");
  if (fold) fold.open = true;
  field?.focus();
  field?.select();
}

// Opens a page by the key after g, which is the first letter of its name.
function go(key) {
  goesUntil = -Infinity;
  const links = [...document.querySelectorAll("header nav a")];
  links.find((link) => link.textContent.trim()[0].toLowerCase() === key)?.click();
}

// The action of a key, if the help of this page lists the key.
function actionOf(key) {
  if (performance.now() < goesUntil) return () => go(key);
  const isListed = [...help.querySelectorAll("kbd")].some((shown) => shown.textContent === key);
  return isListed && Object.hasOwn(ACTIONS, key) ? ACTIONS[key] : null;
}

function toList() {
  location.href = document.querySelector("link[rel=up], header .title").href;
}

const ACTIONS = {
  j: () => move(1),
  k: () => move(-1),
  r: () => document.querySelector(".actions a[href*='/rerun']")?.click(),
  p: () => document.getElementById("previous-run")?.click(),
  n: () => document.getElementById("next-run")?.click(),
  u: toList,
  g: () => (goesUntil = performance.now() + GO_MS),
  "/": search,
  "?": () => help.showModal(),
};

addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, select, textarea, [contenteditable]");
  const isOther = event.ctrlKey || event.metaKey || event.altKey || event.isComposing;
  const action = isTyping || isOther || help.open ? null : actionOf(event.key);
  if (!action) return;
  event.preventDefault();
  action();
});

addEventListener("click", (event) => {
  const link = event.target.closest?.(ROWS);
  if (link) sessionStorage.setItem(OPENED, link.href);
});

button.hidden = false;
button.addEventListener("click", () => help.showModal());
