// What the engineer changes: thresholds, and the watch for drift.
"use strict";

async function ask(path, options) {
  const answer = await fetch(path, options);
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.detail || answer.statusText);
  return said;
}
const post = (path, content) => ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });

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
const told = (thresholds) => `above ${thresholds.review.toPrecision(4)} (at most ${(100 * thresholds.promised_review).toPrecision(2)} % of good parts)`;
for (const form of document.querySelectorAll(".calibration")) {
  const path = `/v1/recipes/${encodeURIComponent(form.dataset.recipe)}/calibration`;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      const { parts, before, after } = await ask(path);
      if (!confirm(`${parts} confirmed good parts would count. Set aside: now ${told(before)}, then ${told(after)}.`)) return;
      await post(path, {});
      location.reload();
    } catch (error) {
      form.querySelector("output").value = error.message;
    }
  });
}
