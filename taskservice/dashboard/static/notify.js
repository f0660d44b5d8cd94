// If the reader turned on notifications, shows one when the task of this page asks a question and
// when it ends.

const button = document.getElementById("watch");
let shown = document.getElementById("icon").dataset.state;

function show(isWatched, text) {
  button.setAttribute("aria-pressed", isWatched);
  button.textContent = text;
}

async function toggle() {
  if (button.getAttribute("aria-pressed") === "true") {
    show(false, "Notify me");
  } else if ((await Notification.requestPermission()) === "granted") {
    show(true, "Notifications on");
  } else {
    show(false, "Blocked by the browser");
  }
}

document.addEventListener("refreshed", ({ detail: page }) => {
  const state = page.getElementById("icon").dataset.state;
  const isNew = state !== shown;
  shown = state;
  if (!button || button.hidden || !isNew || ["running", "waiting"].includes(state)) return;
  if (button.getAttribute("aria-pressed") === "true") notify(state, page);
  button.hidden = state !== "asking";
});

function notify(state, page) {
  const name = page.querySelector("h1").textContent;
  const text = state === "asking" ? `${name} asks` : `${state}: ${name}`;
  const body = page.querySelector("#questions .message")?.textContent;
  const notification = new Notification(text, { tag: location.pathname, body });
  notification.addEventListener("click", () => window.focus());
}

// Browsers allow notifications only with TLS or on localhost.
if (button && globalThis.Notification && isSecureContext) {
  button.hidden = false;
  button.addEventListener("click", toggle);
}
