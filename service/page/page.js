// The page: something asked about an image, the exact answer beside a reduced one, and which tokens
// became one.

import { curl } from "./curl.js";
import { $, element, fail, fetchJson, percent } from "./elements.js";
import { drawImage, drawText } from "./overlay.js";
import * as search from "./search.js";
import { TASKS } from "./tasks.js";

const SEARCH = "search"; // the tab that is no task
const MIN_WAIT = 120; // ms between two moves of the slider before anything is sent
const TYPING = 500; // ms after the last key

let listed = null; // of /v1/models
let task = ""; // a key of TASKS, or SEARCH
const images = []; // {blob, bitmap, name}: one, or left and right
let asked = 0; // of the answers only the last one counts
let timer = 0;

const models = () => listed.models.filter((one) => one.tasks.some(({ name }) => name === task));
const model = () => listed.models.find((one) => one.name === $("model").value);

async function start() {
  listed = await fetchJson("/v1/models");
  for (const side of ["exact", "reduced"]) $(side).append($("side").content.cloneNode(true));
  const served = Object.keys(TASKS).filter((one) => one in listed.default);
  const tabs = served.map((one) => [one, TASKS[one].title]);
  if ("embed" in listed.default) tabs.push([SEARCH, "Search"]);
  $("tasks").replaceChildren(
    ...tabs.map(([name, title]) => {
      const button = element("button", title, { type: "button" });
      button.dataset.task = name;
      button.onclick = () => (location.hash = name);
      return button;
    }),
  );
  // The address tells the tab, so that it can be gone back to, and sent to somebody.
  const show = () => {
    const wanted = location.hash.slice(1);
    showTab(tabs.some(([name]) => name === wanted) ? wanted : tabs[0][0]);
  };
  addEventListener("hashchange", show);
  show();
}

function showTab(name) {
  for (const button of $("tasks").children) button.ariaPressed = button.dataset.task === name;
  fail("");
  $("asked").hidden = name === SEARCH;
  $("search").hidden = $("found").hidden = name !== SEARCH;
  if (name !== SEARCH) return showTask(name);
  task = name;
  $("sides").hidden = $("copy").hidden = true;
  asked++;
  clearTimeout(timer);
  search.open(listed).catch((error) => fail(error.message));
}

function showTask(name) {
  const before = TASKS[task];
  const now = TASKS[(task = name)];
  $("model").replaceChildren(...models().map((one) => element("option", one.name)));
  $("model").value = listed.default[task];
  $("drop2").hidden = now.images !== 2;
  $("asking").hidden = !now.field;
  if (now.field) {
    $("kind").textContent = now.kind;
    $("text").rows = now.several ? 3 : 1;
    if (!$("text").value || $("text").value === before?.example) $("text").value = now.example;
  }
  $("sides").hidden = $("copy").hidden = true;
  asked++;
  showModel();
}

function showModel() {
  $("levels").replaceChildren(
    ...model().levels.map((level) => element("option", "", { value: level.reduction })),
  );
  $("names").replaceChildren(
    ...model().levels.map((level) => {
      const button = element("button", level.name, { type: "button" });
      button.dataset.reduction = level.reduction;
      button.onclick = () => choose(level.reduction);
      return button;
    }),
  );
  choose(model().levels.find((level) => level.name === model().default_level).reduction);
}

function choose(reduction) {
  $("reduction").value = reduction;
  const wanted = Number($("reduction").value);
  const level = model().levels.find((one) => Math.abs(one.reduction - wanted) < 1e-6);
  $("wanted").textContent = percent(wanted);
  for (const button of $("names").children) {
    button.ariaPressed = Math.abs(button.dataset.reduction - wanted) < 1e-6;
  }
  $("says").textContent = level ? describe(level) : "Between the levels: the closest plan is taken.";
  askIn(MIN_WAIT);
}

function describe(level) {
  const parts = [
    `${level.tokens_out} of ${level.tokens_in} tokens left`,
    `about ${level.expected_ms.toFixed(1)} ms here`,
  ];
  const quality = level.quality[task];
  if (quality) {
    const exact = model().levels[0].quality[task] ?? quality;
    const change = (quality.value - exact.value) * 100;
    const kind = quality.metric === "agreement" ? "as the exact network" : "right";
    parts.push(`${percent(quality.value, 1)} ${kind} (${change.toFixed(1)} points)`);
  }
  return parts.join(" · ");
}

function askIn(wait) {
  clearTimeout(timer);
  timer = setTimeout(ask, wait);
}

// The fields of a form, in order.
function fields(reduction) {
  const { field: name, several } = TASKS[task];
  const text = $("text").value;
  const texts = several ? text.split("\n").filter((line) => line.trim()) : [text];
  return [
    ...(name ? texts.map((one) => [name, one]) : []),
    ["model", model().name],
    ["reduction", reduction],
  ];
}

async function ask() {
  const turn = ++asked;
  const wanted = TASKS[task].images ?? 1;
  const shown = images.slice(0, wanted);
  const complete = shown.length === wanted && !shown.includes(undefined);
  if (!complete || (TASKS[task].field && !$("text").value.trim())) {
    $("sides").classList.remove("waiting");
    return fail("");
  }
  $("sides").classList.add("waiting");
  try {
    const reduction = $("reduction").value;
    const answers = await Promise.all([send(shown, 0), send(shown, reduction)]);
    if (turn !== asked) return;
    fail("");
    for (const [at, side] of ["exact", "reduced"].entries()) show($(side), shown, answers[at]);
    $("sides").hidden = $("copy").hidden = false;
    const files = shown.map(({ name }) => ({ name: "image", file: name }));
    $("curl").textContent = curl(`/v1/${task}`, files, fields(reduction));
  } catch (error) {
    if (turn === asked) fail(error.message);
  } finally {
    if (turn === asked) $("sides").classList.remove("waiting");
  }
}

async function send(shown, reduction) {
  const form = new FormData();
  for (const { blob, name } of shown) form.append("image", blob, name);
  for (const [name, value] of fields(reduction)) form.append(name, value);
  form.append("include", "slots");
  const body = await fetchJson(`/v1/${task}`, { method: "POST", body: form });
  const problem = body.results[0].problem;
  if (problem) throw new Error(problem.detail);
  const texts = fields(reduction).filter(([name]) => name === TASKS[task].field);
  return { ...body, asked: texts.map(([, text]) => text), result: body.results[0] };
}

function show(side, shown, answer) {
  const { result } = answer;
  const { bars, views, pieces } = TASKS[task];
  const seen = views(result, answer);
  side.querySelector(".views").replaceChildren(
    ...seen.map((view, at) => drawImage(shown[at].bitmap, model(), view)),
  );
  side.querySelector(".pieces").replaceChildren(
    ...drawText(pieces(result, answer), seen[0].textSlots),
  );
  side.querySelector(".predictions").replaceChildren(
    ...bars(result, answer).map((found) => {
      const row = element("li", "");
      const bar = element("i", "");
      bar.style.width = `${found.score * 100}%`;
      row.append(bar, element("span", found.label), element("span", percent(found.score, 1)));
      return row;
    }),
  );
  const { reduction, timings_ms: times } = result;
  const facts = {
    Level: reduction.level,
    "FLOPs left": percent(reduction.flops_ratio, 1),
    Tokens: `${reduction.tokens_in} → ${reduction.tokens_out}`,
    Batch: result.batch_size,
    ...(result.text?.cut ? { Text: "cut: it was too long" } : {}),
  };
  side.querySelector(".facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
  const waterfall = side.querySelector(".waterfall");
  const said = Object.entries(times).map(([stage, ms]) => `${stage} ${ms.toFixed(1)} ms`);
  waterfall.ariaLabel = waterfall.title = said.join(", ");
  waterfall.replaceChildren(
    ...Object.entries(times).map(([stage, ms]) => {
      const bar = element("span", `${stage} ${ms.toFixed(1)} ms`);
      bar.style.flex = `${Math.max(ms, 0.01)} 1 0`;
      bar.style.background = `var(--${stage})`;
      return bar;
    }),
  );
}

async function take(at, blob, name) {
  if (task === SEARCH) return search.take(blob, name);
  try {
    // Upright and in its full size, whatever its EXIF says.
    images[at] = { blob, name: name || "image", bitmap: await createImageBitmap(blob) };
  } catch {
    return fail("The browser cannot show this file as an image.");
  }
  $(at ? "chosen2" : "chosen").textContent = images[at].name;
  ask();
}

for (const [at, id] of ["file", "file2"].entries()) {
  $(id).onchange = ({ target }) => target.files[0] && take(at, target.files[0], target.files[0].name);
}
$("model").onchange = showModel;
$("reduction").oninput = ({ target: { value } }) => {
  // Whole percents, and the levels between them.
  const near = model().levels.find((level) => Math.abs(level.reduction - value) < 0.005);
  choose(near?.reduction ?? Math.round(value * 100) / 100);
};
$("text").oninput = () => askIn(TYPING);
$("copier").onclick = async () => {
  await navigator.clipboard.writeText($("curl").textContent);
  $("copier").textContent = "Copied";
};
addEventListener("paste", ({ clipboardData }) => {
  const [file] = clipboardData.files;
  // Where two are asked for, the second paste is the right one.
  if (file) take(TASKS[task].images === 2 && images[0] && !images[1] ? 1 : 0, file, file.name);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    const right = $("drop2").contains(event.target);
    $("drop").classList.toggle("over", kind === "dragover" && !right);
    $("drop2").classList.toggle("over", kind === "dragover" && right);
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file) take(right ? 1 : 0, file, file.name);
  });
}

start().catch((error) => fail(error.message));
