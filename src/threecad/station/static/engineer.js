// What the engineer changes: thresholds, and the watch for drift.
"use strict";

async function post(path, content) {
  const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail || answer.statusText);
}

for (const form of document.querySelectorAll(".budgets")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const values = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, Number(value.replace(",", "."))]));
    try {
      await post(`/v1/recipes/${encodeURIComponent(form.dataset.recipe)}/thresholds`, values);
      location.reload();
    } catch (error) {
      form.querySelector("output").value = error.message;
    }
  });
}
for (const button of document.querySelectorAll(".restart")) {
  button.addEventListener("click", async () => {
    await post(`/v1/recipes/${encodeURIComponent(button.dataset.recipe)}/watch`, {});
    location.reload();
  });
}
