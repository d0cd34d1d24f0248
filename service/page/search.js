// The search of a gallery: by a text, by an image, or for more like one of its own.

import { curl } from "./curl.js";
import { $, element, fail, fetchJson, percent } from "./elements.js";

const TYPING = 400; // ms after the last key
const SLIDING = 150; // ms after the last move of the slider
// What the sample gallery is first searched for.
const EXAMPLES = { scenes: "a red star and a blue circle" };

let galleries = [];
let models = []; // of /v1/models
let sought = { by: "text" }; // or {by: "image", blob, name}, or {by: "id", id}
let asked = 0; // of the answers only the last one counts
let timer = 0;

const gallery = () => galleries.find((one) => one.name === $("gallery").value);
const able = (task) => models.filter((one) => one.tasks.some(({ name }) => name === task));

// Shows what can be searched, as it is now.
export async function open(listed) {
  models = listed.models;
  const chosen = $("gallery").value;
  galleries = (await fetchJson("/v1/galleries")).galleries;
  const complete = galleries.length > 0;
  $("none").hidden = complete;
  $("searching").hidden = !complete;
  if (!complete) return;
  $("gallery").replaceChildren(...galleries.map(({ name }) => element("option", name)));
  if (galleries.some(({ name }) => name === chosen)) $("gallery").value = chosen;
  $("again").disabled = !able("match").length;
  showGallery();
}

// What was dropped on the page, or pasted.
export function take(blob, name) {
  seek({ by: "image", blob, name: name || "image" });
}

function showGallery() {
  const { images, model, level, reduction, served, indexed } = gallery();
  $("holds").textContent = [
    `${images.toLocaleString()} images`,
    `vectors of ${model} at ${level} (${percent(reduction)} of the FLOPs removed)`,
    indexed ? `${indexed.toLocaleString()} in the index` : "searched exactly",
    ...(served ? [] : ["this model is not served: only more like an image can be found"]),
  ].join(" · ");
  $("query").disabled = $("file3").disabled = !served;
  const example = EXAMPLES[gallery().name];
  if (example && !$("query").value) $("query").value = example;
  const own = models.find(({ name }) => name === model);
  $("steps").replaceChildren(
    ...(own?.levels ?? []).map((one) => element("option", "", { value: one.reduction })),
  );
  $("share").value = reduction;
  if (sought.by === "id") sought = { by: "text" }; // of another gallery
  seek(sought);
}

function showShare() {
  $("again").closest("label").classList.toggle("off", sought.by !== "text");
  $("spend").hidden = sought.by !== "image" && !looksAgain();
  $("spender").textContent = sought.by === "image" ? "your image" : "the second look";
  const share = Number($("share").value);
  $("shared").textContent = percent(share);
  const own = models.find(({ name }) => name === gallery().model);
  const level = own?.levels.find((one) => Math.abs(one.reduction - share) < 0.005);
  const quality = level?.quality.embed;
  $("cost").textContent = level && sought.by === "image"
    ? [
        `${level.name}: ${level.tokens_out} of ${level.tokens_in} tokens of an image left`,
        ...(quality?.metric === "recall" ? [`recall@1 ${percent(quality.value, 1)}`] : []),
      ].join(" · ")
    : "";
}

function seek(what) {
  sought = what;
  $("like").hidden = what.by === "text";
  if (what.by !== "text") {
    $("liked").textContent = what.by === "id" ? `More like ${what.id}` : `Like ${what.name}`;
    URL.revokeObjectURL($("likeness").src); // of the one before, if it was a blob
    $("likeness").src = what.by === "id" ? what.thumbnail : URL.createObjectURL(what.blob);
  }
  showShare();
  searchIn(0);
}

// A second look needs a text.
const looksAgain = () => sought.by === "text" && $("again").checked;

function searchIn(wait) {
  clearTimeout(timer);
  timer = setTimeout(search, wait);
}

// The fields of a form, in order.
function fields() {
  const again = looksAgain();
  return [
    ...(sought.by === "text" ? [["text", $("query").value]] : []),
    ...(sought.by === "id" ? [["id", sought.id]] : []),
    ["top_k", $("most").value],
    ...(sought.by === "image" || again ? [["reduction", Number($("share").value)]] : []),
    ...(again ? [["rerank", $("candidates").value]] : []),
  ];
}

async function search() {
  const turn = ++asked;
  if (sought.by === "text" && !$("query").value.trim()) {
    $("found").replaceChildren();
    $("took").textContent = "";
    $("copy").hidden = true;
    return fail("");
  }
  $("found").classList.add("waiting");
  try {
    const path = `/v1/galleries/${gallery().name}/search`;
    const form = new FormData();
    if (sought.by === "image") form.append("image", sought.blob, sought.name);
    for (const [name, value] of fields()) form.append(name, value);
    const answer = await fetchJson(path, { method: "POST", body: form });
    if (turn !== asked) return;
    fail("");
    show(answer);
    const files = sought.by === "image" ? [{ name: "image", file: sought.name }] : [];
    $("curl").textContent = curl(path, files, fields());
    $("copy").hidden = false;
  } catch (error) {
    if (turn === asked) fail(error.message);
  } finally {
    if (turn === asked) $("found").classList.remove("waiting");
  }
}

function show({ results, reduction, rerank, timings_ms: times }) {
  $("found").replaceChildren(...results.map(hit));
  const spent = ({ level, flops_ratio: ratio, tokens_in: before, tokens_out: after }) =>
    `${level}, ${percent(ratio)} of the FLOPs, ${before} → ${after} tokens`;
  $("took").textContent = [
    results.length ? "" : "Nothing was found.",
    reduction ? `Your image: ${spent(reduction)}.` : "",
    rerank ? `${rerank.candidates} looked at again by ${rerank.model}: ${spent(rerank.reduction)}.` : "",
    Object.entries(times)
      .map(([stage, ms]) => `${stage} ${ms.toFixed(1)} ms`)
      .join(" · "),
  ]
    .filter(Boolean)
    .join(" ");
}

function hit({ id, score, similarity, match, metadata, width, height, thumbnail }) {
  const item = element("li", "");
  const picture = element("img", "", { src: thumbnail, alt: id, loading: "lazy" });
  picture.title = `${id}, ${width} × ${height} pixels`;
  const more = element("button", "More like this", { type: "button" });
  more.onclick = () => {
    seek({ by: "id", id, thumbnail });
    $("search").scrollIntoView({ behavior: "smooth" });
  };
  const scored =
    match === undefined
      ? `similarity ${score.toFixed(3)}`
      : `fits ${percent(match, 1)} · similarity ${similarity.toFixed(3)}`;
  const said = Object.entries(metadata).map(([name, value]) => {
    const shown = Array.isArray(value) ? value.join(", ") : value;
    return `${name}: ${typeof shown === "object" ? JSON.stringify(shown) : shown}`;
  });
  item.append(picture, element("b", scored), element("small", said.join(" · ")), more);
  return item;
}

$("gallery").onchange = showGallery;
$("query").oninput = () => {
  sought = { by: "text" };
  $("like").hidden = true;
  showShare();
  searchIn(TYPING);
};
$("file3").onchange = ({ target }) => target.files[0] && take(target.files[0], target.files[0].name);
$("share").oninput = () => {
  showShare();
  searchIn(SLIDING);
};
$("again").onchange = () => seek(sought);
for (const id of ["candidates", "most"]) $(id).onchange = () => searchIn(0);
$("unlike").onclick = () => seek({ by: "text" });
