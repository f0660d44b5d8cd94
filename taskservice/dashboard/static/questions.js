// Forms with answers: typed text is preserved, and the form shows a message when its question is no
// longer open.

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
    question.classList.toggle("closed", !isOpen);
    const status = question.querySelector(".ended");
    // There is no form with an agent key.
    if (!status) continue;
    if (status.textContent !== text) status.textContent = text;
    for (const button of question.querySelectorAll("button")) button.disabled = !isOpen;
  }
});

// The text on how a question ended, from the task page; other pages do not contain the outcome.
function endText(ended) {
  if (!ended) return "This question is no longer open.";
  const answers = [...ended.querySelectorAll("dd")].map(({ textContent }) => textContent);
  const state = ended.querySelector(".state").textContent;
  return `This question is no longer open: ${[state, ...answers].join(", ")}.`;
}
