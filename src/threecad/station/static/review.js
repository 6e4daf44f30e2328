// The review queue: one part at a time, answered with one key.
"use strict";

const $ = (id) => document.getElementById(id);
const POLL_MS = 4000;
let parts = [];
let current = null;
let answered = []; // parts answered on this page, the last one at the end
const view = { zoom: 1, x: 0, y: 0 };

function query() {
  const form = new FormData($("filters"));
  const asked = new URLSearchParams({ limit: "200" });
  if (form.get("show") === "queue") asked.set("queue", "true");
  else if (form.get("show")) asked.set("answer", form.get("show"));
  for (const name of ["verdict", "lot", "defect"]) if (form.get(name)) asked.set(name, form.get(name));
  if (form.get("hours")) asked.set("since", new Date(Date.now() - 3600e3 * Number(form.get("hours"))).toISOString());
  return asked;
}

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail || answer.statusText);
  return answer.json();
}

async function refresh() {
  try {
    parts = await ask(`/v1/parts?${query()}`);
  } catch (error) {
    return tell(`The station does not answer: ${error.message}`);
  }
  if (!parts.some((part) => part.id === current)) await show(parts.length ? parts[0].id : null);
  draw();
}

function draw() {
  const known = new Map([...$("list").children].map((row) => [Number(row.dataset.id), row]));
  $("list").replaceChildren(...parts.map((part) => known.get(part.id) || rowOf(part)));
  for (const row of $("list").children) {
    const button = row.firstChild;
    if (Number(row.dataset.id) === current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  $("count").value = `${parts.length === 200 ? "200 or more" : parts.length} ${parts.length === 1 ? "part" : "parts"}`;
  $("nothing").hidden = parts.length > 0;
  $("desk").hidden = current === null;
}

function rowOf(part) {
  const row = document.createElement("li"), button = document.createElement("button"), word = document.createElement("span");
  row.dataset.id = part.id;
  word.className = `verdict ${part.verdict}`;
  word.textContent = part.verdict;
  button.type = "button";
  button.append(word, part.part || `part ${part.id}`);
  button.addEventListener("click", () => show(part.id).then(draw));
  row.append(button);
  return row;
}

async function show(id) {
  current = id;
  if (id === null) return;
  const part = await ask(`/v1/parts/${id}`);
  if (current !== id) return; // another one was chosen meanwhile
  $("verdict").className = `verdict ${part.verdict}`;
  $("verdict").textContent = part.verdict;
  $("reason").textContent = part.reason;
  const facts = [part.partId || `part ${id}`, part.jobId && `lot ${part.jobId}`, part.creationTime.slice(0, 19).replace("T", " ") + " UTC"];
  if (part.score !== null) facts.push(`score ${part.score.toPrecision(4)}`);
  if (part.good_share !== null) facts.push(`good share ${(100 * part.good_share).toPrecision(2)} %`);
  if (part.answer) facts.push(`answered ${part.answer} ${part.defect}`);
  $("facts").textContent = facts.filter(Boolean).join(" · ");
  $("image-caption").textContent = "This part";
  setPicture($("image"), part.links.image);
  setPicture($("map"), part.links.map);
  setPicture($("golden"), part.links.golden);
  $("golden-caption").textContent = part.links.golden ? "The most similar part that passed" : "No part has passed yet";
  const [height, width] = part.size.length ? part.size : [1, 1];
  for (const moved of document.querySelectorAll(".moved")) moved.style.setProperty("--shape", width / height);
  $("regions").setAttribute("viewBox", `0 0 ${width} ${height}`);
  $("regions").replaceChildren(...part.regions.map(({ box }) => {
    const rectangle = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    ["x", "y", "width", "height"].forEach((name, index) => rectangle.setAttribute(name, box[index]));
    return rectangle;
  }));
  move(1, 0, 0);
}

function setPicture(image, link) {
  image.hidden = !link;
  if (link) image.src = link;
}
for (const name of ["image", "map", "golden"]) {
  $(name).addEventListener("error", () => {
    $(name).hidden = true;
    $(`${name === "golden" ? name : "image"}-caption`).textContent = "Its picture is no longer kept";
  });
}

async function answer(word) {
  if (current === null) return;
  const id = current, type = word === "defect" ? $("type").value.trim() : "";
  try {
    await ask(`/v1/parts/${id}/answer`, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ answer: word, defect: type }),
    });
  } catch (error) {
    return tell(`Not kept: ${error.message}`);
  }
  answered.push(id);
  tell(`Part ${id}: ${word}${type ? `, ${type}` : ""}. U takes it back.`);
  const place = parts.findIndex((part) => part.id === id);
  const next = parts[place + 1] || parts[place - 1];
  if ($("filters").elements.show.value === "queue") parts.splice(place, 1);
  await show(next ? next.id : null);
  draw();
}

async function undo() {
  const id = answered.pop();
  if (id === undefined) return tell("Nothing to take back on this page.");
  try {
    await ask(`/v1/parts/${id}/undo`, { method: "POST" });
  } catch (error) {
    answered.push(id);
    return tell(`Not taken back: ${error.message}`);
  }
  tell(`Part ${id} waits again.`);
  current = id;
  await refresh();
  await show(id);
  draw();
}

function step(by) {
  const place = parts.findIndex((part) => part.id === current) + by;
  if (place >= 0 && place < parts.length) show(parts[place].id).then(draw);
}

function tell(line) { $("told").textContent = line; }

function move(zoom, x, y) {
  Object.assign(view, { zoom, x, y });
  for (const moved of document.querySelectorAll(".moved")) moved.style.transform = `translate(${x}px, ${y}px) scale(${zoom})`;
}

function zoomAt(factor, x, y) {
  const zoom = Math.min(20, Math.max(1, view.zoom * factor)), ratio = zoom / view.zoom;
  if (zoom === 1) return move(1, 0, 0);
  move(zoom, x - (x - view.x) * ratio, y - (y - view.y) * ratio);
}

for (const frame of document.querySelectorAll(".frame")) {
  const moved = frame.firstElementChild;
  frame.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = frame.getBoundingClientRect(), left = moved.offsetLeft - frame.offsetLeft, top = moved.offsetTop - frame.offsetTop;
    zoomAt(event.deltaY < 0 ? 1.2 : 1 / 1.2, event.clientX - box.left - left, event.clientY - box.top - top);
  }, { passive: false });
  frame.addEventListener("pointerdown", (event) => frame.setPointerCapture(event.pointerId));
  frame.addEventListener("pointermove", (event) => {
    if (event.buttons && view.zoom > 1) move(view.zoom, view.x + event.movementX, view.y + event.movementY);
  });
}

function zoomMiddle(factor) {
  const moved = document.querySelector(".moved");
  zoomAt(factor, moved.offsetWidth / 2, moved.offsetHeight / 2);
}

const setOpacity = () => { $("map").style.opacity = $("opacity").value / 100; };
let before = 60;
function toggleMap() {
  if (Number($("opacity").value)) { before = $("opacity").value; $("opacity").value = 0; } else $("opacity").value = before;
  setOpacity();
}

const KEYS = {
  g: () => answer("good"), d: () => answer("defect"), s: () => answer("skip"), u: undo, m: toggleMap,
  t: () => $("type").focus(), ArrowRight: () => step(1), ArrowDown: () => step(1), ArrowLeft: () => step(-1), ArrowUp: () => step(-1),
  "+": () => zoomMiddle(1.4), "=": () => zoomMiddle(1.4), "-": () => zoomMiddle(1 / 1.4), 0: () => move(1, 0, 0),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.target === $("type")) {
    if (event.key === "Enter") { $("type").blur(); answer("defect"); }
    if (event.key === "Escape") $("type").blur();
    return;
  }
  if (event.target.matches("select, input")) return;
  const does = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (does) { event.preventDefault(); does(); }
});
for (const word of ["good", "defect", "skip"]) $(word).addEventListener("click", () => answer(word));
$("undo").addEventListener("click", undo);
$("opacity").addEventListener("input", setOpacity);
$("filters").addEventListener("change", () => { current = null; refresh(); });
setOpacity();
refresh();
setInterval(() => { if (!document.hidden) refresh(); }, POLL_MS);
