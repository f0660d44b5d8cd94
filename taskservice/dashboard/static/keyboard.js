// Keys instead of the mouse: j and k move between rows, / searches, ? shows this help.

const ROWS = "#rows th > a:first-child, .agents h2 a";
const help = document.getElementById("shortcuts");
const button = document.getElementById("help");

function move(step) {
  const links = [...document.querySelectorAll(ROWS)];
  const row = document.activeElement.closest("#rows tr, .agents section");
  const current = links.findIndex((link) => row?.contains(link));
  links[current < 0 ? 0 : current + step]?.focus();
}

function search() {
  const field = document.querySelector("main input[type=search]:not([hidden])");
  const fold = field?.closest("details");
  if (fold) fold.open = true;
  field?.focus();
  field?.select();
}

const ACTIONS = {
  j: () => move(1),
  k: () => move(-1),
  "/": search,
  "?": () => help.showModal(),
};

addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, select, textarea, [contenteditable]");
  const isOther = event.ctrlKey || event.metaKey || event.altKey || event.isComposing;
  if (isTyping || isOther || help.open || !Object.hasOwn(ACTIONS, event.key)) return;
  event.preventDefault();
  ACTIONS[event.key]();
});

button.hidden = false;
button.addEventListener("click", () => help.showModal());
