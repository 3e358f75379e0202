// The model: fetched from this folder, checked against its hash, run by LiteRT.js on the CPU.

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";

export class ModelError extends Error {}

/** Load what model.json names.
 * @returns {Promise<{about: object, verified: boolean, classify: (pixels: Uint8Array) => Promise<{scores: Float32Array,
 *   ms: number}>}>} `about` is model.json; `verified` is false where the browser has no hash function (plain http)
 * @throws {ModelError} one sentence that says what to do */
export async function load() {
  const about = await (await fetched("model.json")).json();
  const bytes = new Uint8Array(await (await fetched(about.file)).arrayBuffer());
  const verified = Boolean(globalThis.crypto?.subtle);
  if (verified && (await sha256(bytes)) !== about.sha256) {
    throw new ModelError(`${about.file} is not the file that model.json describes. Copy the whole folder again.`);
  }
  let model;
  try {
    await loadLiteRt("./litert/");
    model = await loadAndCompile(bytes, { accelerator: "wasm" });
  } catch (error) {
    throw new ModelError(`LiteRT.js can't load ${about.file} in this browser: ${error?.message ?? error}`);
  }
  const classify = (pixels) => invoked(model, about, pixels);
  await classify(new Uint8Array(about.inputs.height * about.inputs.width * 3)); // the first one is slower
  return { about, verified, classify };
}

async function fetched(name) {
  let response;
  try {
    response = await fetch(name, { cache: "no-cache" }); // a new model under the old name must not meet the old one
  } catch {
    throw new ModelError(`${name} can't be fetched. Is the web server still running?`);
  }
  if (!response.ok) throw new ModelError(`${name} is not there (${response.status}). Copy the whole folder again.`);
  return response;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function invoked(model, { inputs, input, output }, pixels) {
  const values = input.type === "float32" ? Float32Array.from(pixels) : pixels; // raw 0..255 either way
  const tensor = new Tensor(values, [1, inputs.height, inputs.width, 3]);
  try {
    const start = performance.now();
    const [result] = await model.run([tensor]);
    const raw = await result.data();
    const ms = performance.now() - start;
    result.delete();
    const { scale, zero_point: zero } = output;
    return { scores: scale ? Float32Array.from(raw, (value) => (value - zero) * scale) : Float32Array.from(raw), ms };
  } finally {
    tensor.delete();
  }
}
