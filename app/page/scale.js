// Scales large photographs down before they are sent, so far only that the service still scales them down itself.

const LARGE_BYTES = 1_000_000;
const FEWEST_INPUTS = 4;
const SHORTEST_SIDE = 1024;
const QUALITY = 0.95;
const SCALED = new Set(["image/jpeg", "image/png"]); // browsers turn other formats upright in ways of their own
const LARGEST_CANVAS = 16_000_000; // pixels; some browsers draw nothing on a larger one

/**
 * Give the file to send: the file itself, or a smaller JPEG of the photograph.
 *
 * The shorter side keeps at least four times the pixels of the model's input, so that the details which the model sees come
 * from the service's own resampling. Colours are not converted, as the service does not convert them.
 */
export async function toSend(file, inputSide) {
  if (file.size <= LARGE_BYTES || !SCALED.has(file.type)) return file;
  const shortest = Math.max(SHORTEST_SIDE, FEWEST_INPUTS * inputSide);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    return file; // the service knows formats that this browser does not
  }
  const blob = await scaled(bitmap, shortest / Math.min(bitmap.width, bitmap.height));
  bitmap.close();
  return blob !== null && blob.size < file.size ? new File([blob], file.name, { type: "image/jpeg" }) : file;
}

async function scaled(bitmap, scale) {
  if (scale >= 1 || (bitmap.width * bitmap.height) / 4 > LARGEST_CANVAS) return null;
  const canvas = draw(bitmap, Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", QUALITY); });
}

/** Halve until less than a half is left, because browsers read few of the pixels when they scale further at once. */
function draw(bitmap, width, height) {
  let source = bitmap;
  while (source.width > 2 * width) source = drawn(source, Math.ceil(source.width / 2), Math.ceil(source.height / 2));
  return drawn(source, width, height);
}

function drawn(source, width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // as the service, which puts transparent images on white
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0, width, height);
  return canvas;
}
