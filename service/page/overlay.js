// Draw merged tokens: patches of an image, words of a text.

const WIDTH = 448; // canvas pixels

// The part of an image that the network sees, in image pixels; the server crops the same way.
function crop({ width, height }, { input_size, resize, shorter_side: shorter }) {
  const [rows, columns] = input_size;
  if (resize !== "shorter") return [0, 0, width, height];
  const scale = Math.min(width, height) / (shorter ?? Math.min(rows, columns));
  const [w, h] = [columns * scale, rows * scale];
  return [(width - w) / 2, (height - h) / 2, w, h];
}

// Fill each group of merged patches with its mean colour, and outline the groups.
export function drawImage(bitmap, model, { slots, grid: [rows, columns], protected: kept }) {
  const canvas = document.createElement("canvas");
  canvas.width = WIDTH;
  canvas.height = Math.round((WIDTH * rows) / columns);
  canvas.role = "img";
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const [across, down] = [canvas.width / columns, canvas.height / rows];
  context.imageSmoothingQuality = "high";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, ...crop(bitmap, model), 0, 0, canvas.width, canvas.height);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const groups = new Map();
  const slot = (row, column) => slots[kept + row * columns + column];
  for (let y = 0; y < canvas.height; y++) {
    const row = Math.min(rows - 1, Math.floor(y / down));
    for (let x = 0; x < canvas.width; x++) {
      const group = slot(row, Math.min(columns - 1, Math.floor(x / across)));
      const sums = groups.get(group) ?? groups.set(group, [0, 0, 0, 0]).get(group);
      const at = (y * canvas.width + x) * 4;
      for (let c = 0; c < 3; c++) sums[c] += pixels[at + c];
      sums[3]++;
    }
  }
  const patchCounts = new Map();
  for (const group of slots.slice(kept)) {
    patchCounts.set(group, (patchCounts.get(group) ?? 0) + 1);
  }
  context.lineWidth = 1.5;
  context.strokeStyle = "#fffc";
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const group = slot(row, column);
      const [x, y] = [column * across, row * down];
      if (group < 0) {
        context.fillStyle = "#000c"; // dropped
        context.fillRect(x, y, across, down);
      } else if (patchCounts.get(group) > 1) {
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
  const tokens = new Set(slots.slice(kept).filter((group) => group >= 0)).size;
  canvas.ariaLabel = `${rows} by ${columns} patches in ${tokens} groups`;
  return canvas;
}

// Merged words share a colour; dropped words are struck out.
export function drawText(pieces, textSlots) {
  const members = Map.groupBy(pieces.keys(), (at) => textSlots[at]);
  const merged = [...members.keys()].filter((slot) => members.get(slot).length > 1);
  return pieces.map((piece, at) => {
    const slot = textSlots[at];
    const others = members.get(slot).filter((index) => index !== at);
    const tag = slot < 0 ? "del" : "span";
    const shown = Object.assign(document.createElement(tag), { textContent: piece });
    if (slot < 0) shown.title = "dropped";
    else if (others.length) {
      shown.title = `token ${slot}, merged with ${others.map((index) => pieces[index]).join(", ")}`;
      shown.style.setProperty("--hue", (merged.indexOf(slot) * 137) % 360);
      shown.className = "merged";
    } else shown.title = `token ${slot}`;
    return shown;
  });
}
