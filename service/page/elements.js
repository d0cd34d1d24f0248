// Functions that the modules of the page share.

export const $ = (id) => document.getElementById(id);
export const percent = (ratio, digits = 0) => `${(ratio * 100).toFixed(digits)} %`;
export const signed = (number) => (number < 0 ? "−" : "+") + Math.abs(number).toFixed(1);

export function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text, ...properties });
}

export function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
}

export async function fetchJson(path, options) {
  const response = await fetch(path, options);
  const body = await response.json();
  if (!response.ok) throw new Error(body.detail ?? response.statusText);
  return body;
}
