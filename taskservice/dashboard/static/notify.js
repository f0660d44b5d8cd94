// A notification of the browser when the task of this page ends, for a reader who asked for it.

const button = document.getElementById("watch");
const RUNNING = ["running", "waiting"];

function show(isWatched, text) {
  button.setAttribute("aria-pressed", isWatched);
  button.textContent = text;
}

async function toggle() {
  if (button.getAttribute("aria-pressed") === "true") {
    show(false, "Notify me");
  } else if ((await Notification.requestPermission()) === "granted") {
    show(true, "Notifies at the end");
  } else {
    show(false, "Blocked by the browser");
  }
}

document.addEventListener("refreshed", ({ detail: page }) => {
  const state = page.getElementById("icon").dataset.state;
  if (!button || button.hidden || RUNNING.includes(state)) return;
  if (button.getAttribute("aria-pressed") === "true") {
    const name = page.querySelector("h1").textContent;
    const notification = new Notification(`${state}: ${name}`, { tag: location.pathname });
    notification.addEventListener("click", () => window.focus());
  }
  button.hidden = true;
});

// Browsers have no notifications without TLS, but on localhost.
if (button && globalThis.Notification && isSecureContext) {
  button.hidden = false;
  button.addEventListener("click", toggle);
}
