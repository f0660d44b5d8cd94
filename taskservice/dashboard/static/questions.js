// Answer forms: typed text remains, and a question that is no longer open shows a message in its
// form.

addEventListener("input", ({ target }) => {
  const form = target.closest?.("form.answer");
  if (form) form.dataset.typed = "";
});

document.addEventListener("refreshed", ({ detail: page }) => {
  for (const question of document.querySelectorAll(".question")) {
    const isOpen = page.getElementById(question.id) !== null;
    const text = isOpen
      ? ""
      : endText(page.getElementById(question.id.replace("question", "ended")));
    const status = question.querySelector(".ended");
    // An agent key has no form.
    if (!status) continue;
    if (status.textContent !== text) status.textContent = text;
    for (const button of question.querySelectorAll("button")) button.disabled = !isOpen;
  }
});

// How the question ended, from the task page; the list of tasks does not contain it.
function endText(ended) {
  if (!ended) return "This question is no longer open.";
  const answers = [...ended.querySelectorAll("dd")].map(({ textContent }) => textContent);
  const state = ended.querySelector(".state").textContent;
  return `This question is no longer open: ${[state, ...answers].join(", ")}.`;
}
