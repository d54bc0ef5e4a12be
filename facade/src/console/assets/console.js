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
const live = document.querySelector("[data-live]");
if (live) {
  // What happens is told by the server; what it means for this page, the server writes.
  const events = new EventSource("/console/events");
  let shown = live, due = false, asking = false;
  const ask = async () => {
    due = true;
    if (asking) return;
    asking = true;
    while (due) {
      due = false;
      const answer = await fetch(live.dataset.live);
      if (!answer.ok) break;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-live]");
      if (!fresh) break;
      if (fresh.dataset.state !== shown.dataset.state && !document.querySelector("details[open]")) location.reload();
      shown.replaceWith(document.adoptNode(fresh));
      shown = fresh;
    }
    asking = false;
  };
  for (const kind of ["open", "rollout", "rollout-device", "progress"]) events.addEventListener(kind, ask);
}
