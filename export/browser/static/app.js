// What a person sees: photos and the camera in, labels, scores and latency out.

import { nextFrame, open } from "./camera.js";
import { load } from "./classifier.js";
import { decoded, drawn, PhotoError } from "./photo.js";
import { prepare } from "./pixels.js";

const SHOWN = 5; // labels per photo
const REMEMBERED = 30; // latencies that the camera's median is of
const UNVERIFIED = "not verified: that takes https or localhost";
const $ = (id) => document.getElementById(id);
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });

/** Make an element from the page's template of that name. */
function made(template) {
  return $(template).content.firstElementChild.cloneNode(true);
}

function say(text) {
  if ($("status").textContent !== text) $("status").textContent = text;
}

/** The best labels with their scores, best first. */
function best({ output_names: names }, scores) {
  const ranked = names.map((name, i) => ({ name, score: scores[i] })).sort((a, b) => b.score - a.score);
  return ranked.slice(0, SHOWN);
}

function showScores(list, ranked) {
  while (list.children.length < ranked.length) list.append(made("score"));
  ranked.forEach(({ name, score }, i) => {
    const row = list.children[i];
    row.querySelector(".name").textContent = name;
    row.querySelector(".value").textContent = percent.format(score);
    row.querySelector(".bar").style.setProperty("--score", Math.min(1, Math.max(0, score)));
  });
}

function showModel({ about, verified }) {
  document.title = about.name;
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
    const ranked = best(classifier.about, scores);
    showScores(card.querySelector(".scores"), ranked);
    card.querySelector(".latency").textContent = `${ms.toFixed(1)} ms to classify`;
    say(`${file.name}: ${ranked[0].name}, ${percent.format(ranked[0].score)}`);
  } catch (error) {
    const why = error instanceof PhotoError ? error.message : `can't be classified: ${error.message}`;
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

/** Classify one picture of the camera after the other until `running` says no. */
async function watch(classifier, video, running) {
  const latencies = [];
  let seen = "";
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
    const ranked = best(classifier.about, scores);
    showScores($("live-scores"), ranked);
    $("live-latency").textContent = `${median(latencies).toFixed(1)} ms to classify, median of ${latencies.length}`;
    if (ranked[0].name !== seen) say(`Camera: ${(seen = ranked[0].name)}`); // read aloud as it changes
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
