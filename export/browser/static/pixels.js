// A photo -> the pixels that the model takes, by the very rule of training: Pillow's BILINEAR in whole numbers, one
// pass along the rows and one along the columns, each rounded to 8 bits; the turn of the camera comes last.

const BITS = 22; // of a weight's fraction, as in Pillow
const STRIP = 1 << 20; // pixels read at once: a phone's canvas ends at 16 million, its photos don't

/** Fit a photo into the model's frame.
 * @param {{width: number, height: number, orientation: number,
 *   block: (left: number, top: number, width: number, height: number) => Uint8ClampedArray}} photo as it is stored;
 *   `block` gives opaque RGBA, the first one asked for is the largest; `orientation` is EXIF's, 1..8
 * @param {{height: number, width: number, resize: "stretch" | "crop" | "pad"}} inputs what the model takes
 * @returns {Uint8Array} RGB 0..255, height * width * 3 */
export function prepare(photo, inputs) {
  const frame = photo.orientation > 4 ? [inputs.height, inputs.width] : [inputs.width, inputs.height];
  const { box, size } = placed([photo.width, photo.height], frame, inputs.resize);
  const turned = turn(resized(photo, box, size), size, photo.orientation);
  return padded(turned.pixels, turned.size, [inputs.width, inputs.height]);
}

/** Say which box (left, top, right, bottom) of a photo becomes which size; sizes are [width, height]. */
export function placed([width, height], frame, rule) {
  const wide = width * frame[1] >= height * frame[0];
  const whole = [0, 0, width, height];
  if (rule === "stretch") return { box: whole, size: frame };
  if (rule === "pad") {
    const size = wide
      ? [frame[0], Math.max(1, roundedRatio(height * frame[0], width))]
      : [Math.max(1, roundedRatio(width * frame[1], height)), frame[1]];
    return { box: whole, size };
  }
  if (rule !== "crop") throw new Error(`unknown resize rule ${rule}`);
  const innerWidth = wide ? (height * frame[0]) / frame[1] : width;
  const innerHeight = wide ? height : (width * frame[1]) / frame[0];
  const left = Math.max(0, (width - innerWidth) / 2);
  const top = Math.max(0, (height - innerHeight) / 2);
  return { box: [left, top, Math.min(left + innerWidth, width), Math.min(top + innerHeight, height)], size: frame };
}

function roundedRatio(a, b) {
  return Math.floor((2 * a + b) / (2 * b));
}

/** Weights of one axis: output i is the sum of `counts[i]` inputs from `starts[i]` on, times weights[i * taps ...]. */
function filter(length, from, to, outputs) {
  from = Math.fround(from); // Pillow takes boxes in single precision
  const scale = Math.fround(Math.fround(to) - from) / outputs;
  const reach = Math.max(scale, 1); // the triangle is widened when shrinking
  const taps = Math.ceil(reach) * 2 + 1;
  const [starts, counts] = [new Int32Array(outputs), new Int32Array(outputs)];
  const weights = new Int32Array(outputs * taps);
  const row = new Float64Array(taps);
  for (let i = 0; i < outputs; i++) {
    const centre = from + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const count = Math.min(length, Math.trunc(centre + reach + 0.5)) - first;
    let sum = 0;
    for (let k = 0; k < count; k++) {
      row[k] = Math.max(0, 1 - Math.abs((k + first - centre + 0.5) * (1 / reach)));
      sum += row[k];
    }
    for (let k = 0; k < count; k++) weights[i * taps + k] = Math.trunc(0.5 + (row[k] / sum) * (1 << BITS));
    starts[i] = first;
    counts[i] = count;
  }
  return { starts, counts, weights, taps };
}

function resized(photo, [left, top, right, bottom], [width, height]) {
  const across = filter(photo.width, left, right, width);
  const down = filter(photo.height, top, bottom, height);
  const pixels = new Uint8ClampedArray(height * width * 3);
  const less = photo.height - height;
  if (less > 0 && less > (photo.width - width) * 2) { // then Pillow 13 takes the columns first
    const low = new Uint8ClampedArray(height * photo.width * 3);
    const step = Math.max(1, Math.floor(STRIP / photo.height));
    for (let x = 0; x < photo.width; x += step) {
      const count = Math.min(step, photo.width - x);
      const block = photo.block(x, 0, count, photo.height);
      pass(block, 4, count * 4, count, down, low.subarray(x * 3), 3, photo.width * 3);
    }
    pass(low, photo.width * 3, 3, height, across, pixels, width * 3, 3);
    return pixels;
  }
  const narrow = new Uint8ClampedArray(photo.height * width * 3);
  const step = Math.max(1, Math.floor(STRIP / photo.width));
  for (let y = 0; y < photo.height; y += step) {
    const count = Math.min(step, photo.height - y);
    const block = photo.block(0, y, photo.width, count);
    pass(block, photo.width * 4, 4, count, across, narrow.subarray(y * width * 3), width * 3, 3);
  }
  pass(narrow, 3, width * 3, width, down, pixels, 3, width * 3);
  return pixels;
}

/** Resize many lines of pixels; `line` and `step` are the distances from one to the next, in numbers. */
function pass(from, line, step, lines, { starts, counts, weights, taps }, to, toLine, toStep) {
  const half = 1 << (BITS - 1);
  for (let n = 0; n < lines; n++) {
    for (let i = 0; i < starts.length; i++) {
      let [red, green, blue] = [half, half, half];
      let at = n * line + starts[i] * step;
      for (let k = i * taps, last = k + counts[i]; k < last; k++, at += step) {
        red += from[at] * weights[k];
        green += from[at + 1] * weights[k];
        blue += from[at + 2] * weights[k];
      }
      const out = n * toLine + i * toStep;
      to[out] = red >> BITS;
      to[out + 1] = green >> BITS;
      to[out + 2] = blue >> BITS;
    }
  }
}

function turn(pixels, [width, height], orientation) {
  if (orientation === 1) return { pixels, size: [width, height] };
  const swapped = orientation > 4;
  const [across, down] = swapped ? [height, width] : [width, height];
  const [mirrored, flipped] = [[2, 3, 7, 8].includes(orientation), [3, 4, 6, 7].includes(orientation)];
  const turned = new Uint8ClampedArray(pixels.length);
  for (let y = 0, to = 0; y < down; y++) {
    for (let x = 0; x < across; x++) {
      const column = swapped ? y : x;
      const row = swapped ? x : y;
      const from = ((flipped ? height - 1 - row : row) * width + (mirrored ? width - 1 - column : column)) * 3;
      for (let channel = 0; channel < 3; channel++) turned[to++] = pixels[from + channel];
    }
  }
  return { pixels: turned, size: [across, down] };
}

function padded(pixels, [width, height], frame) {
  const whole = new Uint8Array(frame[0] * frame[1] * 3);
  const [left, top] = [Math.floor((frame[0] - width) / 2), Math.floor((frame[1] - height) / 2)];
  for (let y = 0; y < height; y++) {
    whole.set(pixels.subarray(y * width * 3, (y + 1) * width * 3), ((top + y) * frame[0] + left) * 3);
  }
  return whole;
}
