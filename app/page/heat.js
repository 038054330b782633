// Draws the relevance of patches over an image: colours as in the picture of POST /explain.

const COLOURS = [[13, 8, 135], [156, 23, 158], [237, 121, 83], [253, 202, 38], [240, 249, 33]];
const LEAST_OPACITY = 0.3;
const LONGEST_SIDE = 768;

/** Draw an explanation on a canvas that lies over the whole image; what the model has not seen is dark. */
export function drawHeat(canvas, explanation, outside) {
  const { image, grid, relevance } = explanation;
  const scale = Math.min(1, LONGEST_SIDE / Math.max(image.width, image.height));
  canvas.width = Math.max(1, Math.round(image.width * scale));
  canvas.height = Math.max(1, Math.round(image.height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = outside;
  context.fillRect(0, 0, canvas.width, canvas.height);
  const [left, top, right, bottom] = [grid.left, grid.top, grid.right, grid.bottom].map((edge) => edge * scale);
  context.clearRect(left, top, right - left, bottom - top);
  context.imageSmoothingEnabled = false; // interpolated below, in the same way at the edges as inside
  context.drawImage(patches(relevance, Math.max(1, Math.floor(512 / relevance.length))), left, top, right - left, bottom - top);
}

function patches(relevance, detail) {
  const canvas = document.createElement("canvas");
  const [rows, columns] = [relevance.length, relevance[0].length];
  canvas.width = columns * detail;
  canvas.height = rows * detail;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  const all = relevance.flat();
  const least = Math.min(...all);
  const range = Math.max(...all) - least || 1;
  for (let y = 0, at = 0; y < canvas.height; y += 1) {
    for (let x = 0; x < canvas.width; x += 1, at += 4) {
      const share = (between(relevance, (y + 0.5) / detail - 0.5, (x + 0.5) / detail - 0.5) - least) / range;
      pixels.data.set(TABLE[Math.round(255 * share)], at);
    }
  }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Relevance between the centres of four patches. */
function between(relevance, y, x) {
  const [row, down] = position(y, relevance.length);
  const [column, along] = position(x, relevance[0].length);
  const [above, below] = [relevance[row], relevance[Math.min(row + 1, relevance.length - 1)]];
  const next = Math.min(column + 1, above.length - 1);
  const mix = (first, second, share) => first * (1 - share) + second * share;
  return mix(mix(above[column], above[next], along), mix(below[column], below[next], along), down);
}

function position(at, count) {
  const inside = Math.min(Math.max(at, 0), count - 1);
  return [Math.floor(inside), inside - Math.floor(inside)];
}

function colour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (COLOURS.length - 1);
  const below = Math.min(Math.floor(at), COLOURS.length - 2);
  return COLOURS[below].map((value, channel) => value + (COLOURS[below + 1][channel] - value) * (at - below));
}

/** Colour and opacity for 256 shares. */
const TABLE = Array.from({ length: 256 }, (_, index) => {
  const share = index / 255;
  return [...colour(share), 255 * (LEAST_OPACITY + (1 - LEAST_OPACITY) * share)];
});
