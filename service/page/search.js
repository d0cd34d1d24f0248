// Gallery search: by text, by an image, or by an image of the gallery.

import { curl } from "./curl.js";
import { $, element, fail, fetchJson, percent } from "./elements.js";

const TYPING = 400; // ms after the last key press before a request is sent
const SLIDING = 150; // ms after the last slider move before a request is sent
// First query of the sample gallery.
const EXAMPLES = { scenes: "a red star and a blue circle" };

let galleries = [];
let models = []; // as /v1/models lists them
let query = { by: "text" }; // or {by: "image", blob, name}, or {by: "id", id}
let latestTurn = 0; // answers to older requests are ignored
let timer = 0;

const gallery = () => galleries.find((entry) => entry.name === $("gallery").value);
const modelsFor = (task) => models.filter((entry) => entry.tasks.some(({ name }) => name === task));

// Show the galleries as they are now.
export async function open(catalog) {
  models = catalog.models;
  const chosen = $("gallery").value;
  galleries = (await fetchJson("/v1/galleries")).galleries;
  const any = galleries.length > 0;
  $("nogallery").hidden = any;
  $("searchform").hidden = !any;
  if (!any) return;
  $("gallery").replaceChildren(...galleries.map(({ name }) => element("option", name)));
  if (galleries.some(({ name }) => name === chosen)) $("gallery").value = chosen;
  $("rerank").disabled = !modelsFor("match").length;
  showGallery();
}

// Search by an image that was chosen, dropped or pasted.
export function acceptImage(blob, name) {
  searchFor({ by: "image", blob, name: name || "image" });
}

function showGallery() {
  const { images, model, level, reduction, served, indexed } = gallery();
  $("galleryinfo").textContent = [
    `${images.toLocaleString()} images`,
    `embedded by ${model} at level ${level} (${percent(reduction)} of the FLOPs removed)`,
    indexed ? `${indexed.toLocaleString()} indexed` : "exact search",
    ...(served ? [] : ['its model is not served: only "More like this" works']),
  ].join(" · ");
  $("query").disabled = $("file3").disabled = !served;
  const example = EXAMPLES[gallery().name];
  if (example && !$("query").value) $("query").value = example;
  const embedder = models.find(({ name }) => name === model);
  $("searchlevels").replaceChildren(
    ...(embedder?.levels ?? []).map((level) => element("option", "", { value: level.reduction })),
  );
  $("searchreduction").value = reduction;
  if (query.by === "id") query = { by: "text" }; // the id belongs to another gallery
  searchFor(query);
}

function showReduction() {
  $("rerank").closest("label").classList.toggle("disabled", query.by !== "text");
  $("cost").hidden = query.by !== "image" && !reranks();
  $("costlabel").textContent = query.by === "image" ? "the query image" : "reranking";
  const target = Number($("searchreduction").value);
  $("searchamount").textContent = percent(target);
  const embedder = models.find(({ name }) => name === gallery().model);
  const level = embedder?.levels.find((entry) => Math.abs(entry.reduction - target) < 0.005);
  const quality = level?.quality.embed;
  $("costinfo").textContent = level && query.by === "image"
    ? [
        `${level.name}: ${level.tokens_out} of ${level.tokens_in} image tokens left`,
        ...(quality?.metric === "recall" ? [`recall@1 ${percent(quality.value, 1)}`] : []),
      ].join(" · ")
    : "";
}

function searchFor(request) {
  query = request;
  $("queryimage").hidden = request.by === "text";
  if (request.by !== "text") {
    $("queryname").textContent = request.by === "id" ? `More like ${request.id}` : `Similar to ${request.name}`;
    URL.revokeObjectURL($("querythumb").src); // releases the previous blob
    $("querythumb").src = request.by === "id" ? request.thumbnail : URL.createObjectURL(request.blob);
  }
  showReduction();
  searchIn(0);
}

// Reranking needs a text.
const reranks = () => query.by === "text" && $("rerank").checked;

function searchIn(wait) {
  clearTimeout(timer);
  timer = setTimeout(search, wait);
}

// The form fields, in order.
function fields() {
  const again = reranks();
  return [
    ...(query.by === "text" ? [["text", $("query").value]] : []),
    ...(query.by === "id" ? [["id", query.id]] : []),
    ["top_k", $("topk").value],
    ...(query.by === "image" || again ? [["reduction", Number($("searchreduction").value)]] : []),
    ...(again ? [["rerank", $("candidates").value]] : []),
  ];
}

async function search() {
  const turn = ++latestTurn;
  if (query.by === "text" && !$("query").value.trim()) {
    $("results").replaceChildren();
    $("searchinfo").textContent = "";
    $("command").hidden = true;
    return fail("");
  }
  $("results").classList.add("waiting");
  try {
    const path = `/v1/galleries/${gallery().name}/search`;
    const form = new FormData();
    if (query.by === "image") form.append("image", query.blob, query.name);
    for (const [name, value] of fields()) form.append(name, value);
    const answer = await fetchJson(path, { method: "POST", body: form });
    if (turn !== latestTurn) return;
    fail("");
    show(answer);
    const files = query.by === "image" ? [{ name: "image", file: query.name }] : [];
    $("curl").textContent = curl(path, files, fields());
    $("command").hidden = false;
  } catch (error) {
    if (turn === latestTurn) fail(error.message);
  } finally {
    if (turn === latestTurn) $("results").classList.remove("waiting");
  }
}

function show({ results, reduction, rerank, timings_ms: times }) {
  $("results").replaceChildren(...results.map(hit));
  const spent = ({ level, flops_ratio: ratio, tokens_in: before, tokens_out: after }) =>
    `${level}, ${percent(ratio)} of the FLOPs, ${before} → ${after} tokens`;
  $("searchinfo").textContent = [
    results.length ? "" : "No images match.",
    reduction ? `Query image: ${spent(reduction)}.` : "",
    rerank ? `${rerank.candidates} reranked by ${rerank.model}: ${spent(rerank.reduction)}.` : "",
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
    searchFor({ by: "id", id, thumbnail });
    $("search").scrollIntoView({ behavior: "smooth" });
  };
  const scored =
    match === undefined
      ? `similarity ${score.toFixed(3)}`
      : `match ${percent(match, 1)} · similarity ${similarity.toFixed(3)}`;
  const lines = Object.entries(metadata).map(([name, value]) => {
    const text = Array.isArray(value) ? value.join(", ") : value;
    return `${name}: ${typeof text === "object" ? JSON.stringify(text) : text}`;
  });
  item.append(picture, element("b", scored), element("small", lines.join(" · ")), more);
  return item;
}

$("gallery").onchange = showGallery;
$("query").oninput = () => {
  query = { by: "text" };
  $("queryimage").hidden = true;
  showReduction();
  searchIn(TYPING);
};
$("file3").onchange = ({ target }) => target.files[0] && acceptImage(target.files[0], target.files[0].name);
$("searchreduction").oninput = () => {
  showReduction();
  searchIn(SLIDING);
};
$("rerank").onchange = () => searchFor(query);
for (const id of ["candidates", "topk"]) $(id).onchange = () => searchIn(0);
$("usetext").onclick = () => searchFor({ by: "text" });
