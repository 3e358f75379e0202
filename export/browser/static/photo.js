// Bytes of a file -> rows of pixels as they are stored: no colour management, no turn, transparency laid on white.

export class PhotoError extends Error {}

const FORMATS = {
  "image/jpeg": /^\xff\xd8\xff/,
  "image/png": /^\x89PNG\r\n\x1a\n/,
  "image/gif": /^GIF8[79]a/,
  "image/bmp": /^BM/,
  "image/webp": /^RIFF[^]{4}WEBP/,
};
const ORIENTATION = 0x0112;
const SHORT = 3;

/** Decode a photo; its format is told by content, not by name.
 * @param {Blob} file
 * @returns what `prepare` of pixels.js takes, with close()
 * @throws {PhotoError} not one of the formats that training reads, or damaged */
export async function decoded(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  if (!bytes.length) throw new PhotoError("empty file (0 bytes)");
  const head = String.fromCharCode(...bytes.subarray(0, 12));
  const type = Object.keys(FORMATS).find((each) => FORMATS[each].test(head));
  if (!type) throw new PhotoError("not a photo that can be read (JPEG, PNG, BMP, GIF, WEBP)");
  const orientation = untagged(bytes, type);
  try {
    const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    const bitmap = await createImageBitmap(new Blob([bytes], { type }), options);
    return { ...drawn(bitmap, bitmap.width, bitmap.height), orientation, close: () => bitmap.close() };
  } catch {
    throw new PhotoError("damaged, or too large for this browser");
  }
}

/** Read anything that a canvas can draw, such as the picture of a camera. */
export function drawn(source, width, height) {
  let context;
  const block = (left, top, across, down) => {
    context ??= Object.assign(document.createElement("canvas"), { width: across, height: down }).getContext("2d", {
      willReadFrequently: true,
    });
    context.clearRect(0, 0, across, down);
    context.drawImage(source, -left, -top);
    return onWhite(context.getImageData(0, 0, across, down).data);
  };
  return { width, height, orientation: 1, block };
}

function onWhite(rgba) {
  for (let at = 3; at < rgba.length; at += 4) {
    const alpha = rgba[at];
    // A canvas keeps colour * alpha, rounded; multiplying again gives that number back, and white needs no more.
    if (alpha < 255) for (let c = at - 3; c < at; c++) rgba[c] = Math.round((rgba[c] * alpha) / 255) + 255 - alpha;
  }
  return rgba;
}

/** Take the EXIF orientation 1..8 out of a photo, so that every browser decodes it as it is stored: training turns
 * after resizing, which rounds otherwise. Damaged metadata counts as upright. */
function untagged(bytes, type) {
  const view = new DataView(bytes.buffer);
  try {
    const tiff = { "image/jpeg": inJpeg, "image/png": inPng, "image/webp": inWebp }[type]?.(view);
    if (!tiff) return 1;
    const little = view.getUint16(tiff) === 0x4949;
    const directory = tiff + view.getUint32(tiff + 4, little);
    for (let entry = directory + 2, left = view.getUint16(directory, little); left; left--, entry += 12) {
      if (view.getUint16(entry, little) !== ORIENTATION || view.getUint16(entry + 2, little) !== SHORT) continue;
      const found = view.getUint16(entry + 8, little);
      view.setUint16(entry + 8, 1, little);
      return found >= 1 && found <= 8 ? found : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // ran over the end
  }
  return 1;
}

function says(view, at, text) {
  return [...text].every((letter, i) => view.getUint8(at + i) === letter.charCodeAt(0));
}

function inJpeg(view) {
  for (let at = 2; view.getUint8(at) === 0xff && view.getUint8(at + 1) !== 0xda; at += 2 + view.getUint16(at + 2)) {
    if (view.getUint8(at + 1) === 0xe1 && says(view, at + 4, "Exif\0\0")) return at + 10;
  }
}

function inPng(view) {
  for (let at = 8; !says(view, at + 4, "IEND"); at += 12 + view.getUint32(at)) {
    if (says(view, at + 4, "eXIf")) return at + 8;
  }
}

function inWebp(view) {
  for (let at = 12; ; at += 8 + view.getUint32(at + 4, true) + (view.getUint8(at + 4) & 1)) {
    if (says(view, at, "EXIF")) return at + (says(view, at + 8, "Exif\0\0") ? 14 : 8);
  }
}
