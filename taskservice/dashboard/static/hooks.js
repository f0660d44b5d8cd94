// The form of a new hook says which format follows from the address, as the service decides it.

const form = document.querySelector(".hook-form form");
const address = form.elements["field.target"];
// By its value, which is JSON, as of the other fields.
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
