// The page: send a request, show the exact answer beside a reduced one, and draw the merged tokens.

import { curl } from "./curl.js";
import { $, element, fail, fetchJson, percent, signed } from "./elements.js";
import { drawImage, drawText } from "./overlay.js";
import * as search from "./search.js";
import { TASKS } from "./tasks.js";

const SEARCH = "search"; // a tab that is not a task
const SLIDING = 120; // ms after the last slider move before a request is sent
const MIN_LABELLED = 0.2; // share of the time from which a stage has room for its label
const COPIED = 2000; // ms for which the button says that the command was copied
const TYPING = 500; // ms after the last key press before a request is sent

let catalog = null; // body of /v1/models
let task = ""; // a key of TASKS, or SEARCH
const images = []; // {blob, bitmap, name}: one image, or left and right
let latestTurn = 0; // answers to older requests are ignored
let timer = 0;

const models = () => catalog.models.filter((entry) => entry.tasks.some(({ name }) => name === task));
const model = () => catalog.models.find((entry) => entry.name === $("model").value);

async function start() {
  catalog = await fetchJson("/v1/models");
  for (const side of ["exact", "reduced"]) $(side).append($("side").content.cloneNode(true));
  const served = Object.keys(TASKS).filter((name) => name in catalog.default);
  const tabs = served.map((name) => [name, TASKS[name].title]);
  if ("embed" in catalog.default) tabs.push([SEARCH, "Search"]);
  $("tasks").replaceChildren(
    ...tabs.map(([name, title]) => {
      const button = element("button", title, { type: "button" });
      button.dataset.task = name;
      button.onclick = () => (location.hash = name);
      return button;
    }),
  );
  // The URL names the tab, so that it can be bookmarked and shared.
  const show = () => {
    const tab = location.hash.slice(1);
    showTab(tabs.some(([name]) => name === tab) ? tab : tabs[0][0]);
  };
  addEventListener("hashchange", show);
  show();
}

function showTab(name) {
  for (const button of $("tasks").children) button.ariaPressed = button.dataset.task === name;
  fail("");
  $("request").hidden = name === SEARCH;
  $("search").hidden = $("results").hidden = name !== SEARCH;
  if (name !== SEARCH) return showTask(name);
  task = name;
  $("answers").hidden = $("command").hidden = true;
  latestTurn++;
  clearTimeout(timer);
  search.open(catalog).catch((error) => fail(error.message));
}

function showTask(name) {
  const before = TASKS[task];
  const now = TASKS[(task = name)];
  $("model").replaceChildren(...models().map((entry) => element("option", entry.name)));
  $("model").value = catalog.default[task];
  $("drop2").hidden = now.images !== 2;
  // The prompt is gone once an image is chosen.
  if ($("prompt")) $("prompt").textContent = `Choose ${now.images === 2 ? "the left" : "an"} image`;
  $("textfield").hidden = !now.field;
  if (now.field) {
    $("textlabel").textContent = now.kind;
    $("text").rows = now.several ? 3 : 1;
    if (!$("text").value || $("text").value === before?.example) $("text").value = now.example;
  }
  $("answers").hidden = $("command").hidden = true;
  latestTurn++;
  showModel();
}

function showModel() {
  $("levels").replaceChildren(
    ...model().levels.map((level) => element("option", "", { value: level.reduction })),
  );
  $("levelnames").replaceChildren(
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
  const target = Number($("reduction").value);
  const level = model().levels.find((candidate) => Math.abs(candidate.reduction - target) < 1e-6);
  $("amount").textContent = percent(target);
  for (const button of $("levelnames").children) {
    button.ariaPressed = Math.abs(button.dataset.reduction - target) < 1e-6;
  }
  $("levelinfo").textContent = level ? describe(level) : "Between two levels: the closest plan is used.";
  sendIn(SLIDING);
}

function describe(level) {
  const parts = [
    `${level.tokens_out} of ${level.tokens_in} tokens left`,
    `about ${level.expected_ms.toFixed(1)} ms on this server`,
  ];
  const quality = level.quality[task];
  if (quality) {
    const exact = model().levels[0].quality[task] ?? quality;
    const change = (quality.value - exact.value) * 100;
    const metric = quality.metric === "agreement" ? "agreement with exact" : "accuracy";
    parts.push(`${percent(quality.value, 1)} ${metric} (${signed(change)} points)`);
  }
  return parts.join(" · ");
}

function sendIn(wait) {
  clearTimeout(timer);
  timer = setTimeout(sendBoth, wait);
}

// The form fields, in order.
function fields(reduction) {
  const { field: name, several } = TASKS[task];
  const text = $("text").value;
  const texts = several ? text.split("\n").filter((line) => line.trim()) : [text];
  return [
    ...(name ? texts.map((line) => [name, line]) : []),
    ["model", model().name],
    ["reduction", reduction],
  ];
}

async function sendBoth() {
  const turn = ++latestTurn;
  const count = TASKS[task].images ?? 1;
  const shown = images.slice(0, count);
  const complete = shown.length === count && !shown.includes(undefined);
  if (!complete || (TASKS[task].field && !$("text").value.trim())) {
    $("answers").classList.remove("waiting");
    return fail("");
  }
  $("answers").classList.add("waiting");
  try {
    const reduction = $("reduction").value;
    const answers = await Promise.all([send(shown, 0), send(shown, reduction)]);
    if (turn !== latestTurn) return;
    fail("");
    for (const [at, side] of ["exact", "reduced"].entries()) show($(side), shown, answers[at]);
    $("answers").hidden = $("command").hidden = false;
    const files = shown.map(({ name }) => ({ name: "image", file: name }));
    $("curl").textContent = curl(`/v1/${task}`, files, fields(reduction));
  } catch (error) {
    if (turn === latestTurn) fail(error.message);
  } finally {
    if (turn === latestTurn) $("answers").classList.remove("waiting");
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
  return { ...body, texts_sent: texts.map(([, text]) => text), result: body.results[0] };
}

function show(side, shown, answer) {
  const { result } = answer;
  const { bars, views, pieces } = TASKS[task];
  const overlays = views(result, answer);
  side.querySelector(".views").replaceChildren(
    ...overlays.map((view, at) => drawImage(shown[at].bitmap, model(), view)),
  );
  side.querySelector(".pieces").replaceChildren(
    ...drawText(pieces(result, answer), overlays[0].textSlots),
  );
  side.querySelector(".predictions").replaceChildren(
    ...bars(result, answer).map((candidate) => {
      const row = element("li", "");
      const bar = element("i", "");
      bar.style.width = `${candidate.score * 100}%`;
      row.append(bar, element("span", candidate.label), element("span", percent(candidate.score, 1)));
      return row;
    }),
  );
  const { reduction, timings_ms: times } = result;
  const facts = {
    Level: reduction.level,
    "FLOPs left": percent(reduction.flops_ratio, 1),
    Tokens: `${reduction.tokens_in} → ${reduction.tokens_out}`,
    Batch: result.batch_size,
    ...(result.text?.cut ? { Text: "truncated" } : {}),
  };
  side.querySelector(".facts").replaceChildren(
    ...Object.entries(facts).flatMap(([name, value]) => [element("dt", name), element("dd", value)]),
  );
  const waterfall = side.querySelector(".waterfall");
  const total = Object.values(times).reduce((sum, ms) => sum + ms, 0);
  const labels = Object.entries(times).map(([stage, ms]) => `${stage} ${ms.toFixed(1)} ms`);
  waterfall.ariaLabel = waterfall.title = labels.join(", ");
  waterfall.replaceChildren(
    ...Object.entries(times).map(([stage, ms]) => {
      const label = `${stage} ${ms.toFixed(1)} ms`;
      const bar = element("span", ms > MIN_LABELLED * total ? label : "", { title: label });
      bar.style.flex = `${Math.max(ms, 0.01)} 1 0`;
      bar.style.background = `var(--${stage})`;
      return bar;
    }),
  );
}

async function acceptImage(at, blob, name) {
  if (task === SEARCH) return search.acceptImage(blob, name);
  try {
    // createImageBitmap applies the EXIF orientation.
    images[at] = { blob, name: name || "image", bitmap: await createImageBitmap(blob) };
  } catch {
    return fail("The browser cannot show this file as an image.");
  }
  $(at ? "filename2" : "filename").textContent = images[at].name;
  sendBoth();
}

for (const [at, id] of ["file", "file2"].entries()) {
  $(id).onchange = ({ target }) => target.files[0] && acceptImage(at, target.files[0], target.files[0].name);
}
$("model").onchange = showModel;
$("reduction").oninput = ({ target: { value } }) => {
  // Snap to a level nearby, otherwise to whole percents.
  const near = model().levels.find((level) => Math.abs(level.reduction - value) < 0.005);
  choose(near?.reduction ?? Math.round(value * 100) / 100);
};
$("text").oninput = () => sendIn(TYPING);
$("copybutton").onclick = async () => {
  await navigator.clipboard.writeText($("curl").textContent);
  $("copybutton").textContent = "Copied";
  setTimeout(() => ($("copybutton").textContent = "Copy"), COPIED);
};
addEventListener("paste", ({ clipboardData }) => {
  const [file] = clipboardData.files;
  // When the task takes two images, the second paste is the right one.
  if (file) acceptImage(TASKS[task].images === 2 && images[0] && !images[1] ? 1 : 0, file, file.name);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    const right = $("drop2").contains(event.target);
    $("drop").classList.toggle("over", kind === "dragover" && !right);
    $("drop2").classList.toggle("over", kind === "dragover" && right);
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file) acceptImage(right ? 1 : 0, file, file.name);
  });
}

start().catch((error) => fail(error.message));
