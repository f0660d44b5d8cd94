// Shows the default format of the address in the form of a new hook, by the rules of the service.

const form = document.querySelector(".hook-form form");
const address = form.elements["field.target"];
// The value of a choice is JSON.
const labelOf = (format) => form.querySelector(`[name="field.format"][value='"${format}"'] + bdi`);
const byAddress = labelOf("");
const { textContent: title } = byAddress;

function formatOf(text) {
  if (/^mailto:|^[^/:@]+@[^/:@]+$/i.test(text)) return "mail";
  if (!URL.canParse(text)) return null;
  const { hostname, pathname } = new URL(text);
  if (hostname === "hooks.slack.com" || pathname.endsWith("/slack")) return "slack";
  return hostname === "ntfy.sh" ? "ntfy" : "standard";
}

function show() {
  const format = formatOf(address.value.trim());
  const label = format && labelOf(format);
  byAddress.textContent = label ? `${title}: ${label.textContent}` : title;
}

address.addEventListener("input", show);
show();
