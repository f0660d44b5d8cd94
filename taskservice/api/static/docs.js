// Adds copy buttons to the examples, and folds the table of contents on a narrow page.

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS, browsers have no clipboard API, but they can copy the selection.
    const field = document.createElement("textarea");
    field.className = "visually-hidden";
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

function addButton(figure) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet";
  button.textContent = "Copy";
  button.setAttribute("aria-label", `Copy: ${figure.dataset.name}`);
  button.addEventListener("click", async () => {
    await copyText(figure.querySelector("pre").textContent);
    button.textContent = "Copied";
    button.focus();
    setTimeout(() => (button.textContent = "Copy"), 1_500);
  });
  figure.append(button);
}

for (const figure of document.querySelectorAll("figure")) addButton(figure);

const contents = document.getElementById("contents");

contents.addEventListener("click", ({ target }) => {
  if (target.closest("a")) contents.open = false;
});
