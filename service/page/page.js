// The page: one image, the exact answer beside a reduced one, and which patches became one token.

const $ = (id) => document.getElementById(id);
const MIN_WAIT = 120; // ms between two moves of the slider before anything is sent

let models = [];
let image = null; // {blob, bitmap, name}
let asked = 0; // of the answers only the last one counts
let timer = 0;

const model = () => models.find((one) => one.name === $("model").value);
const percent = (share, digits = 0) => `${(share * 100).toFixed(digits)} %`;

function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text, ...properties });
}

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

async function fetchJson(path, options) {
  const response = await fetch(path, options);
  const body = await response.json();
  if (!response.ok) throw new Error(body.detail ?? response.statusText);
  return body;
}

async function start() {
  const listed = await fetchJson("/v1/models");
  models = listed.models.filter((one) => one.task === "classify");
  for (const one of models) $("model").append(element("option", one.name));
  $("model").value = listed.default.classify;
  for (const side of ["exact", "reduced"]) $(side).append($("side").content.cloneNode(true));
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
  clearTimeout(timer);
  timer = setTimeout(ask, MIN_WAIT);
}

function describe(level) {
  const parts = [
    `${level.tokens_out} of ${level.tokens_in} tokens left`,
    `about ${level.expected_ms.toFixed(1)} ms here`,
  ];
  const exact = model().levels[0];
  if (level.quality) {
    const change = (level.quality.value - (exact.quality?.value ?? level.quality.value)) * 100;
    const kind = level.quality.metric === "top1" ? "right" : "as the exact network";
    parts.push(`${percent(level.quality.value, 1)} ${kind} (${change.toFixed(1)} points)`);
  }
  return parts.join(" · ");
}

async function ask() {
  if (!image) return;
  const turn = ++asked;
  $("sides").classList.add("waiting");
  try {
    const [exact, reduced] = await Promise.all([classify(0), classify($("reduction").value)]);
    if (turn !== asked) return;
    fail("");
    show($("exact"), exact);
    show($("reduced"), reduced);
    $("sides").hidden = $("copy").hidden = false;
    $("curl").textContent =
      `curl -F ${shell(`image=@${field(image.name)}`)} -F ${shell(`model=${field(model().name)}`)}` +
      ` -F reduction=${$("reduction").value}` +
      ` ${location.origin}/v1/classify`;
  } catch (error) {
    if (turn === asked) fail(error.message);
  } finally {
    if (turn === asked) $("sides").classList.remove("waiting");
  }
}

// A word of a POSIX shell.
function shell(text) {
  return /^[\w@=.,:/+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

// A value of curl's -F, in which some characters mean something.
function field(text) {
  return /^[\w.:/+-]+$/.test(text) ? text : `"${text.replace(/["\\]/g, "\\$&")}"`;
}

async function classify(reduction) {
  const form = new FormData();
  form.append("image", image.blob, image.name);
  form.append("model", model().name);
  form.append("reduction", reduction);
  form.append("include", "slots");
  return (await fetchJson("/v1/classify", { method: "POST", body: form })).results[0];
}

function show(side, result) {
  draw(side.querySelector("canvas"), result);
  side.querySelector(".predictions").replaceChildren(
    ...result.predictions.map((found) => {
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

// The part of the image that the network sees, in the image's pixels: as service/images.py cuts it.
function seen({ width, height }) {
  const [rows, columns] = model().input_size;
  const { resize, shorter_side: shorter } = model();
  if (resize === "stretch") return [0, 0, width, height];
  const scale = Math.min(width, height) / (shorter ?? Math.min(rows, columns));
  const [w, h] = [columns * scale, rows * scale];
  return [(width - w) / 2, (height - h) / 2, w, h];
}

// Each group of merged patches in its mean colour, with a line where one group meets another.
function draw(canvas, { slots, grid: [rows, columns], protected: kept }) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [across, down] = [canvas.width / columns, canvas.height / rows];
  context.imageSmoothingQuality = "high";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image.bitmap, ...seen(image.bitmap), 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const groups = new Map();
  const slot = (row, column) => slots[kept + row * columns + column];
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      const group = slot(Math.floor(y / down), Math.floor(x / across));
      const sums = groups.get(group) ?? groups.set(group, [0, 0, 0, 0]).get(group);
      const at = (y * canvas.width + x) * 4;
      for (let c = 0; c < 3; c++) sums[c] += pixels[at + c];
      sums[3]++;
    }
  }
  const alone = new Map();
  for (const one of slots.slice(kept)) alone.set(one, (alone.get(one) ?? 0) + 1);
  context.lineWidth = 1.5;
  context.strokeStyle = "#fffc";
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const group = slot(row, column);
      const [x, y] = [column * across, row * down];
      if (group < 0) {
        context.fillStyle = "#000c"; // dropped
        context.fillRect(x, y, across, down);
      } else if (alone.get(group) > 1) {
        const [r, g, b, n] = groups.get(group);
        context.fillStyle = `rgb(${r / n} ${g / n} ${b / n} / 80%)`;
        context.fillRect(x, y, across, down);
      }
      context.beginPath();
      if (column && slot(row, column - 1) !== group) context.rect(x, y, 0, down);
      if (row && slot(row - 1, column) !== group) context.rect(x, y, across, 0);
      context.stroke();
    }
  }
  const tokens = new Set(slots.slice(kept)).size;
  canvas.ariaLabel = `${rows} by ${columns} patches in ${tokens} groups`;
}

async function take(blob, name) {
  try {
    // Upright and in its full size, whatever its EXIF says.
    image = { blob, name: name || "image", bitmap: await createImageBitmap(blob) };
  } catch {
    return fail("The browser cannot show this file as an image.");
  }
  ask();
}

$("file").onchange = ({ target }) => target.files[0] && take(target.files[0], target.files[0].name);
$("model").onchange = showModel;
$("reduction").oninput = ({ target }) => choose(target.value);
$("copier").onclick = async () => {
  await navigator.clipboard.writeText($("curl").textContent);
  $("copier").textContent = "Copied";
};
addEventListener("paste", ({ clipboardData }) => {
  const [file] = clipboardData.files;
  if (file) take(file, file.name);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    const file = kind === "drop" && event.dataTransfer.files[0];
    if (file) take(file, file.name);
  });
}

start().catch((error) => fail(error.message));
