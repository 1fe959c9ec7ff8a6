// One clock: a change is noted, and when the figure that is being drawn is there, those of the newest state are asked for.
// The samples of a run may take long: they are given up.
"use strict";

const at = (id) => document.getElementById(id);
const form = at("form"), panel = at("panel"), figures = at("figures");
const page = Math.random().toString(36).slice(2);
let turn = 0, running = false, wanted = null, timer = null, giving = new AbortController();

// The options of the form; those inside a choice whose class has changed are left out.
function options(changed) {
  const query = new URLSearchParams();
  for (const [name, text] of new FormData(form)) {
    if (changed && name.startsWith(changed + ".")) continue;
    query.append(name, text);
  }
  return query;
}

function ask(query, panelToo) {
  document.body.dataset.busy = "";
  wanted = { query, panelToo: panelToo || (wanted && wanted.panelToo) };
  clearTimeout(timer);
  timer = setTimeout(next, 80);
}

function next() {
  if (running && document.body.dataset.view !== "exact") giving.abort();
  run();
}

async function run() {
  if (running || !wanted) return;
  running = true;
  const { query, panelToo } = wanted;
  wanted = null;
  try {
    await show(query, panelToo);
  } catch (error) {
    if (error.name !== "AbortError") fail("the explorer does not answer: is openedm explore still running?");
  }
  running = false;
  if (wanted) return run();
  delete document.body.dataset.busy;
}

function fail(reason) {
  at("error").textContent = reason;
  at("error").hidden = false;
  figures.classList.add("stale");
  at("status").textContent = "";
  document.body.dataset.shown = ++turn;
}

async function show(query, panelToo) {
  giving = new AbortController();
  const answer = await fetch("state?" + query);
  if (!answer.ok) return fail(await answer.text());
  const state = await answer.json();
  at("error").hidden = true;
  figures.classList.remove("stale");
  const url = new URL(state.query ? "?" + state.query : "?view=" + state.view, location.href);
  history.replaceState(null, "", url);
  document.body.dataset.view = state.view;
  at("url").textContent = url;
  for (const name of ["command", "sample", "python"]) at(name).textContent = state[name];
  at("sample").parentElement.hidden = !state.sample;
  if (panelToo) renew(state.panel);
  arrange(state.figures);
  at("status").textContent = "computing …";
  const began = performance.now(), number = ++turn;
  const ticking = setInterval(() => {
    at("status").textContent = `computing … ${Math.round((performance.now() - began) / 1000)} s`;
  }, 1000);
  try {
    for (const [name, , key] of state.figures) {
      if (wanted) break;
      const box = figures.querySelector(`[data-name="${name}"]`);
      if (box.dataset.key !== key) await draw(box, key, state.query || "view=" + state.view, number);
    }
  } finally {
    clearInterval(ticking);
  }
  at("status").textContent = "";
  document.body.dataset.shown = turn;
}

function renew(html) {
  const focused = document.activeElement && document.activeElement.name;
  panel.innerHTML = html;
  const again = focused && panel.querySelector(`[name="${CSS.escape(focused)}"]`);
  if (again) again.focus();
}

function arrange(titles) {
  const names = titles.map(([name]) => name);
  if (names.join() === [...figures.children].map((box) => box.dataset.name).join()) return;
  figures.replaceChildren(...titles.map(([name, title]) => {
    const box = document.createElement("figure");
    box.dataset.name = name;
    box.innerHTML = "<figcaption></figcaption><img><p class=reason hidden></p>";
    box.firstChild.textContent = title;
    box.querySelector("img").alt = title;
    return box;
  }));
}

async function draw(box, key, query, number) {
  delete box.dataset.key;
  box.classList.add("waiting");
  const address = `figure/${box.dataset.name}.png?${query}&_page=${page}&_turn=${number}`;
  const answer = await fetch(address, { signal: giving.signal });
  const picture = box.querySelector("img"), reason = box.querySelector(".reason");
  box.classList.remove("waiting");
  if (answer.status === 409) return;
  reason.hidden = answer.ok;
  picture.hidden = !answer.ok;
  if (!answer.ok) {
    if (answer.status === 422) box.dataset.key = key;
    reason.textContent = answer.status === 422 ? await answer.text() : "an error of the program; the terminal shows it";
    return;
  }
  if (picture.src.startsWith("blob:")) URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(await answer.blob());
  await picture.decode().catch(() => {});
  box.dataset.key = key;
}

form.addEventListener("input", (event) => {
  const slid = event.target.dataset.for;
  if (slid) form.elements[slid].value = event.target.value;
  else if (event.target.name) {
    const slider = panel.querySelector(`[data-for="${CSS.escape(event.target.name)}"]`);
    if (slider) slider.value = event.target.value;
  }
  const chosen = event.target.tagName === "SELECT";
  ask(options(chosen ? event.target.name : null), chosen);
});
form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("click", (event) => {
  const id = event.target.dataset.copy;
  if (id) navigator.clipboard.writeText(at(id).textContent).then(() => {
    event.target.textContent = "copied";
    setTimeout(() => { event.target.textContent = "copy"; }, 1500);
  });
});
at("url").textContent = location.href;
if (at("error").hidden) ask(new URLSearchParams(document.body.dataset.query), false);
else document.body.dataset.shown = ++turn;
