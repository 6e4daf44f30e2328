// Line and health: kept up to date in place, and what the engineer changes. Listeners sit on the document, so that parts
// of the page may be exchanged under them.
"use strict";

const POLL_MS = 15000;

async function ask(path, options) {
  const answer = await fetch(path, options);
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.detail || answer.statusText);
  return said;
}
const post = (path, content) => ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });

async function refresh() {
  const answer = await fetch(location).catch(() => null);
  if (!answer || !answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const now of document.querySelectorAll("main .live")) {
    const then = fresh.getElementById(now.id);
    if (then && then.innerHTML !== now.innerHTML && !now.contains(document.activeElement)) now.innerHTML = then.innerHTML;
  }
}
setInterval(() => { if (!document.hidden) refresh(); }, POLL_MS);

const per_cent = (share) => `${(100 * share).toPrecision(2)} %`;
const shown = { review: (value) => value.toPrecision(4), reject: (value) => value.toPrecision(4), promised_review: per_cent, promised_reject: per_cent };

const ACTIONS = {
  async budgets(form, path) {
    const values = Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, Number(value.replace(",", "."))]));
    await post(`${path}/thresholds`, values);
    location.reload();
  },
  async model(form, path) {
    form.querySelector("output").value = "Loading…";
    await post(`${path}/model`, { model: new FormData(form).get("model") });
    location.reload();
  },
  async calibration(form, path) {
    const preview = form.querySelector(".preview");
    if (!preview.hidden) {
      await post(`${path}/calibration`, {});
      return location.reload();
    }
    const said = await ask(`${path}/calibration`);
    for (const cell of preview.querySelectorAll("[data-when]")) {
      const value = said[cell.dataset.when][cell.dataset.what];
      cell.textContent = value === undefined ? "none" : shown[cell.dataset.what](value);
    }
    preview.querySelector("caption").textContent = `With ${said.parts} confirmed good part${said.parts === 1 ? "" : "s"} more`;
    form.querySelector("button").textContent = "Let them count";
    preview.hidden = false;
  },
  async watch(form, path) {
    await post(`${path}/watch`, {});
    location.reload();
  },
};

document.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  try {
    await ACTIONS[form.dataset.action](form, `/v1/recipes/${encodeURIComponent(form.dataset.recipe)}`);
  } catch (error) {
    form.querySelector("output").value = error.message;
  }
});
