// What a person sees: photos and the camera in, labels, scores and latency out.

import { nextFrame, open } from "./camera.js";
import { load } from "./classifier.js";
import { decoded, drawn, PhotoError } from "./photo.js";
import { prepare } from "./pixels.js";

const SHOWN = 5; // classes or labels per photo; all that are said, if these are more
const REMEMBERED = 30; // latencies that the camera's median is of
const UNVERIFIED = "not verified: that takes https or localhost";
const $ = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const number = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });

/** Make an element from the page's template of that name. */
function made(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

/** What is shown of a photo, a row each: the best classes or labels, best first; or the values of all targets.
 * `said` marks what the model says: the best class, the labels that reach their thresholds, the values. */
function rowsOf({ outputs: { task, names, thresholds } }, scores) {
  if (task === "regression") return names.map((name, i) => ({ name, text: number.format(scores[i]), said: true }));
  const rows = names.map((name, i) => ({
    name,
    score: scores[i],
    text: percent.format(scores[i]),
    said: task === "multi_label" && scores[i] >= Math.fround(thresholds[i]), // scores are float32
  }));
  rows.sort((a, b) => b.said - a.said || b.score - a.score);
  if (task !== "multi_label") rows[0].said = true;
  return rows.slice(0, Math.max(SHOWN, rows.filter((row) => row.said).length));
}

/** The same in one line. */
function lineOf(rows) {
  const said = rows.filter((row) => row.said).map(({ name, text }) => `${name}, ${text}`);
  return said.join("; ") || "no label";
}

function showRows(list, rows) {
  while (list.children.length < rows.length) list.append(made("score"));
  while (list.children.length > rows.length) list.lastElementChild.remove();
  rows.forEach(({ name, score, text, said }, i) => {
    const row = list.children[i];
    row.classList.toggle("said", said);
    row.querySelector(".name").textContent = name;
    row.querySelector(".value").textContent = text;
    row.querySelector(".bar").hidden = score === undefined; // a value is no share of anything
    row.querySelector(".bar").style.setProperty("--score", Math.min(1, Math.max(0, score ?? 0)));
  });
}

function showModel({ about, verified }) {
  document.title = about.name;
  document.body.classList.add(about.outputs.task);
  $("name").textContent = about.name;
  $("description").textContent = about.description;
  const facts = {
    Model: `${about.file}, ${(about.size_bytes / 1e6).toFixed(1)} MB`,
    Input: `${about.inputs.width} x ${about.inputs.height} pixels, ${about.input.type}, ${about.inputs.resize}`,
    Runtime: `${about.runtime}, WebAssembly on the CPU`,
    Hash: `sha256 ${about.sha256.slice(0, 12)}, ${verified ? "verified" : UNVERIFIED}`,
    Licence: about.licence,
  };
  for (const [name, value] of Object.entries(facts)) {
    if (!value) continue;
    const [term, text] = [document.createElement("dt"), document.createElement("dd")];
    [term.textContent, text.textContent] = [name, value];
    $("facts").append(term, text);
  }
}

async function showPhoto(classifier, file) {
  const card = made("card");
  card.querySelector("figcaption").textContent = file.name;
  $("photos").prepend(card);
  const picture = card.querySelector("img");
  try {
    const photo = await decoded(file);
    picture.src = URL.createObjectURL(file);
    picture.alt = file.name;
    const pixels = prepare(photo, classifier.about.inputs);
    photo.close();
    const { scores, ms } = await classifier.classify(pixels);
    const rows = rowsOf(classifier.about, scores);
    showRows(card.querySelector(".scores"), rows);
    card.querySelector(".latency").textContent = `${ms.toFixed(1)} ms for the model`;
    say(`${file.name}: ${lineOf(rows)}`);
  } catch (error) {
    const why = error instanceof PhotoError ? error.message : `the model can't be run on it: ${error.message}`;
    picture.remove();
    card.classList.add("failed");
    card.querySelector(".latency").textContent = why;
    say(`${file.name}: ${why}`);
  }
}

function takePhotos(classifier) {
  let queue = Promise.resolve();
  const take = (files) => {
    for (const file of files) queue = queue.then(() => showPhoto(classifier, file));
    $("clear").hidden = false;
  };
  $("files").addEventListener("change", () => {
    take([...$("files").files]);
    $("files").value = ""; // the same photo may be chosen again
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? $("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    if (event.dataTransfer.files.length) take([...event.dataTransfer.files]);
  });
  $("clear").addEventListener("click", () => {
    for (const picture of $("photos").querySelectorAll("img")) URL.revokeObjectURL(picture.src);
    $("photos").replaceChildren();
    $("clear").hidden = true;
    say("");
  });
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Run the model on one picture of the camera after the other until `running` says no. */
async function watch(classifier, video, running) {
  const latencies = [];
  let seen = null;
  let photo = null;
  while (running()) {
    await nextFrame(video);
    if (!running()) return;
    if (photo?.width !== video.videoWidth || photo.height !== video.videoHeight) { // a phone was turned
      photo = drawn(video, video.videoWidth, video.videoHeight);
    }
    const { scores, ms } = await classifier.classify(prepare(photo, classifier.about.inputs));
    latencies.push(ms);
    if (latencies.length > REMEMBERED) latencies.shift();
    const rows = rowsOf(classifier.about, scores);
    showRows($("live-scores"), rows);
    $("live-latency").textContent = `${median(latencies).toFixed(1)} ms for the model, median of ${latencies.length}`;
    const names = rows.filter((row) => row.said).map((row) => row.name);
    if (names.join() !== seen) say(`Camera: ${names.join(", ") || "no label"}`); // read aloud as it changes
    seen = names.join();
  }
}

function useCamera(classifier) {
  const button = $("camera");
  let stop = null;
  const end = () => {
    stop?.();
    stop = null;
    $("live").hidden = true;
    button.textContent = "Open camera";
  };
  button.addEventListener("click", async () => {
    if (stop) {
      end();
      say("Camera stopped.");
      return;
    }
    button.disabled = true;
    try {
      $("live").hidden = false;
      const close = (stop = await open($("video"), () => {
        end();
        say("The camera is gone.");
      }));
      button.textContent = "Stop camera";
      button.disabled = false;
      await watch(classifier, $("video"), () => stop === close);
    } catch (error) {
      end();
      say(error.message);
    } finally {
      button.disabled = false;
    }
  });
}

$("stuck").remove();
try {
  say("Loading the model ...");
  const classifier = await load();
  showModel(classifier);
  takePhotos(classifier);
  useCamera(classifier);
  $("choices").disabled = false;
  say("Ready.");
} catch (error) {
  document.body.classList.add("broken");
  say(error.message);
}
