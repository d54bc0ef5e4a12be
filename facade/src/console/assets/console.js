// What is nicer with a script: copying. Everything else works without.
"use strict";
for (const code of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) break;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet copy";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  (code.closest("pre") ?? code).after(button);
}
for (const form of document.querySelectorAll("form[method=post]")) {
  // One click is one change, however long a registry takes to answer.
  form.addEventListener("submit", (event) => {
    for (const button of form.querySelectorAll("button")) button.setAttribute("aria-busy", "true");
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
  });
}
