// Scores images one after the other, and shows each result at the thresholds of the sliders. What files and runs
// contain is untrusted: it becomes text, never markup.

const MAX_IMAGES = 200;
const LOG_SCALE_RATIO = 30; // a range from above 0 that spans more than this factor gets a logarithmic slider
const SHOWN_SIDE = 480; // pixels: smaller images are drawn enlarged by a whole number
const STEPS = 1000; // of a slider
const WIDE = 900; // pixels: the settings lie beside the results, as in app.css
const CAMERA_ERRORS = {
  NotAllowedError: "The browser may not use the camera: allow it in the browser's settings of this page.",
  NotFoundError: "There is no camera.",
  NotReadableError: "Another program uses the camera.",
};

const find = id => document.getElementById(id);
const part = (node, name) => node.querySelector(`.${name}`);
const clone = id => find(id).content.firstElementChild.cloneNode(true);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const digits = x => Number(x.toPrecision(4)).toString();
const percent = x => `${Number(x.toPrecision(3))} %`;
const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

const app = await (await fetch("runs")).json();
const palette = bytes(app.palette);
const items = [];
let queue = Promise.resolve();
let pictures = 0;

function say(text) {
  find("message").textContent = text;
  find("message").hidden = !text;
}

// --- runs and their thresholds ---

function makeRun(facts, index) {
  const node = clone("run");
  const run = { ...facts, index, node, condition: "", limits: null, pixelLimits: null };
  node.open = innerWidth >= WIDE;
  part(node, "title").textContent = `${run.model} on ${run.dataset}`;
  part(node, "about").textContent = `${run.name}, by ${run.score}`;
  part(node, "condition-row").hidden = !run.conditions.length;
  part(node, "condition").append(...run.conditions.map(name => new Option(name)));
  part(node, "condition").onchange = event => {
    run.condition = event.target.value;
    items.forEach(item => enqueue(item, run));
  };
  part(node, "threshold-slider").oninput = e => setThreshold(run, "chosen", toValue(run.limits, e.target.value));
  part(node, "pixel-slider").oninput = e => setThreshold(run, "pixelChosen", toValue(run.pixelLimits, e.target.value));
  part(node, "threshold").onchange = e => setThreshold(run, "chosen", e.target.valueAsNumber);
  part(node, "pixel").onchange = e => setThreshold(run, "pixelChosen", e.target.valueAsNumber);
  part(node, "reset").onclick = () => {
    [run.chosen, run.pixelChosen] = [run.threshold, run.pixel_threshold];
    update(run);
  };
  [run.chosen, run.pixelChosen] = [run.threshold, run.pixel_threshold];
  find("runs").append(node);
  return run;
}

function setThreshold(run, field, value) {
  if (Number.isFinite(value)) run[field] = value;
  update(run);
}

const isLog = ([low, high]) => low > 0 && high / low > LOG_SCALE_RATIO;

function toValue(limits, position) {
  const [low, high] = limits;
  const share = position / STEPS;
  return isLog(limits) ? low * (high / low) ** share : low + share * (high - low);
}

function toPosition(limits, value) {
  const [low, high] = limits;
  const share = isLog(limits) ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  return Math.round(STEPS * Math.min(1, Math.max(0, share || 0)));
}

// The range of a slider: some values with space around them, and the chosen value; not below 0 if no value is.
function limitsOf(values, chosen) {
  const [lowest, highest] = [Math.min(...values), Math.max(...values)];
  const space = 0.1 * (highest - lowest) || 0.1 * Math.abs(highest) || 1;
  const low = lowest >= 0 ? Math.max(lowest - space, 0.9 * lowest) : lowest - space;
  return [Math.min(low, chosen), Math.max(highest + space, chosen)];
}

const resultsOf = run => items.map(item => item.results[run.index]).filter(result => result.answer);

// --- drawing ---

// Shows a run at its thresholds, and its results; many calls before the next frame are one.
function update(run) {
  run.frame ??= requestAnimationFrame(() => {
    run.frame = null;
    showRun(run);
    resultsOf(run).forEach(showResult);
  });
}

function showRun(run) {
  const { node, calibration, chosen, pixelChosen } = run;
  const results = resultsOf(run);
  const scores = results.map(result => result.answer.score);
  run.limits = limitsOf([...calibration, ...scores, run.threshold], chosen);
  const highest = results.map(result => result.answer.highest);
  run.pixelLimits = limitsOf([0, run.color_limit, run.pixel_threshold, ...highest], pixelChosen);
  part(node, "threshold-slider").value = toPosition(run.limits, chosen);
  part(node, "pixel-slider").value = toPosition(run.pixelLimits, pixelChosen);
  part(node, "threshold").value = Number(chosen.toPrecision(6));
  part(node, "pixel").value = Number(pixelChosen.toPrecision(6));
  const ticks = (values, from, to) => values.map(x => `M${toPosition(run.limits, x)} ${from}V${to}`).join("");
  part(node, "calibration").setAttribute("d", ticks(calibration, 12, 20));
  part(node, "scored").setAttribute("d", ticks(scores, 0, 9));
  part(node, "rule").textContent = promise(run);
  part(node, "pixel-rule").textContent =
    pixelChosen === run.pixel_threshold ? run.pixel_promise : "Manual threshold: it promises nothing.";
  const anomalous = results.filter(result => isAnomalous(result)).length;
  part(node, "count").textContent = results.length ? `${anomalous} of ${results.length} anomalous` : "";
}

function promise(run) {
  if (run.chosen === run.threshold) return run.promise || "The threshold was set by hand, which promises nothing.";
  const reached = run.calibration.filter(score => score >= run.chosen).length;
  const images = count(run.calibration.length, "calibration image");
  return `Manual threshold: it promises nothing. ${reached} of ${images} reach it.`;
}

const isAnomalous = ({ answer, run }) => answer.score >= run.chosen;

function markedShare({ answer, run }) {
  return answer.values.reduce((sum, error) => sum + (error >= run.pixelChosen), 0) / answer.values.length;
}

function showResult(result) {
  const { node, run, answer } = result;
  const manual = run.chosen !== run.threshold;
  const decision = isAnomalous(result) ? "anomalous" : "normal";
  node.classList.toggle("anomalous", isAnomalous(result));
  part(node, "badge").textContent = decision;
  part(node, "manual").textContent = manual ? "by a manual threshold" : "";
  part(node, "score").textContent = digits(answer.score);
  part(node, "limit").textContent = digits(run.chosen) + (manual ? " (manual)" : "");
  part(node, "percentile").textContent =
    `above ${percent(answer.percentile)} of ${count(run.calibration.length, "calibration image")}`;
  part(node, "marked").textContent = `${percent(100 * markedShare(result))} of the map`;
  part(node, "promise").textContent = promise(run);
  part(node, "dark").hidden = !answer.dark;
  if (result.drawnAt !== run.pixelChosen) drawOverlay(result);
  result.drawnAt = run.pixelChosen;
}

// The image, the colored error map over it, and the outline of the pixels that reach the threshold.
function drawOverlay({ node, run, answer }) {
  const canvas = node.querySelector("canvas");
  const context = drawImage(canvas, answer.image);
  const [left, top, right, bottom] = answer.box;
  const { width, height } = answer.map;
  context.imageSmoothingEnabled = true;
  context.scale(canvas.width, canvas.height);
  context.translate(left, top);
  context.scale(right - left, bottom - top);
  context.drawImage(answer.colors, 0, 0, 1, 1);
  const path = new Path2D();
  const isInside = (x, y) => x >= 0 && y >= 0 && x < width && y < height;
  const isMarked = (x, y) => isInside(x, y) && answer.values[y * width + x] >= run.pixelChosen;
  const line = (x, y, x2, y2) => {
    path.moveTo(x / width, y / height);
    path.lineTo(x2 / width, y2 / height);
  };
  for (let y = 0; y <= height; y++) {
    for (let x = 0; x <= width; x++) {
      if (isMarked(x, y) !== isMarked(x - 1, y)) line(x, y, x, y + 1);
      if (isMarked(x, y) !== isMarked(x, y - 1)) line(x, y, x + 1, y);
    }
  }
  const outline = new Path2D();
  outline.addPath(path, context.getTransform());
  context.resetTransform();
  context.lineCap = "square";
  const unit = Math.max(1, canvas.width / (canvas.clientWidth || canvas.width)); // a pixel of the screen
  for (const [color, width] of [["#000", 4], ["#4dd2ff", 2]]) {
    Object.assign(context, { strokeStyle: color, lineWidth: width * unit });
    context.stroke(outline);
  }
  canvas.ariaLabel = `error map of ${run.model}, and the outline of the marked pixels`;
}

function drawImage(canvas, image) {
  const scale = Math.max(1, Math.round(SHOWN_SIDE / Math.max(image.width, image.height)));
  [canvas.width, canvas.height] = [scale * image.width, scale * image.height];
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return context;
}

// The error map in colors; the higher the error, the more opaque.
function colored({ width, height }, values, limit) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pixels = new ImageData(width, height);
  values.forEach((error, i) => {
    const level = Math.max(0, Math.min(255, Math.floor((256 * error) / limit)));
    pixels.data.set([...palette.subarray(3 * level, 3 * level + 3), Math.round(app.max_opacity * level)], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// --- images ---

function add(files) {
  const room = MAX_IMAGES - items.length;
  say(files.length > room ? `The page shows ${MAX_IMAGES} images at most. For more, use bigan-jax predict.` : "");
  for (const file of [...files].slice(0, room)) {
    const node = clone("item");
    const item = { file, node };
    item.results = runs.map(run => makeResult(item, run));
    part(node, "name").textContent = file.name;
    part(node, "remove").setAttribute("aria-label", `remove ${file.name}`);
    part(node, "remove").onclick = () => remove(item);
    items.push(item);
    find("items").append(node);
    runs.forEach(run => enqueue(item, run));
  }
  showStatus();
}

function makeResult(item, run) {
  const result = { run, node: clone("result"), answer: null, reason: "" };
  part(result.node, "title").textContent = `${run.model} on ${run.dataset}`;
  part(result.node, "title").hidden = runs.length === 1;
  part(result.node, "overlay").onclick = () => downloadOverlay(item, result);
  part(item.node, "parts").append(result.node);
  return result;
}

function remove(item) {
  items.splice(items.indexOf(item), 1);
  item.node.remove();
  runs.forEach(update);
  showStatus();
}

function enqueue(item, run) {
  const result = item.results[run.index];
  Object.assign(result, { answer: null, reason: "", drawnAt: null });
  showState(result, "waits for its turn");
  queue = queue
    .then(() => items.includes(item) && score(item, result))
    .catch(error => say(`The page failed: ${error}`));
}

async function score(item, result) {
  const { run } = result;
  const started = Date.now();
  const work = run.search_steps ? `search of the latent code in ${run.search_steps} steps` : "scoring";
  const show = () => showState(result, `${work}, ${Math.round((Date.now() - started) / 1000)} s`);
  const clock = setInterval(show, 1000);
  show();
  const condition = run.condition;
  const answer = await request(item.file, run);
  clearInterval(clock);
  if (condition !== run.condition) return; // another condition was chosen, and this image waits again
  result.reason = answer.reason ?? "";
  if (!answer.reason) {
    const values = new Float32Array(bytes(answer.map.values).buffer);
    const image = Object.assign(new Image(), { src: answer.image });
    await image.decode();
    const highest = values.reduce((a, b) => Math.max(a, b));
    const colors = colored(answer.map, values, run.color_limit);
    result.answer = { ...answer, condition, values, image, highest, colors };
    const input = item.node.querySelector(".input canvas");
    drawImage(input, image);
    input.ariaLabel = item.file.name;
  }
  showState(result);
  update(run);
  showStatus();
}

async function request(file, run) {
  if (file.size > app.max_bytes) {
    return { reason: `larger than ${app.max_bytes / 2 ** 20} MiB: save it as JPEG, or scale it down` };
  }
  try {
    const query = new URLSearchParams({ name: file.name, condition: run.condition });
    const response = await fetch(`score/${run.index}?${query}`, { method: "POST", body: file });
    return await response.json();
  } catch {
    return { reason: "no answer: check whether the app still runs in its terminal, and whether the file still exists" };
  }
}

function showState({ node, answer, reason }, progress = "") {
  node.classList.toggle("failed", Boolean(reason));
  part(node, "waiting").hidden = !progress;
  part(node, "progress").textContent = progress;
  part(node, "reason").hidden = !reason;
  part(node, "reason").textContent = reason && `Not scored: ${reason.replace(/\.$/, "")}.`;
  part(node, "answer").hidden = !answer;
  if (!answer) node.querySelector("canvas").width = 0;
}

function showStatus() {
  const results = items.flatMap(item => item.results);
  const done = results.filter(result => result.answer).length;
  const failed = results.filter(result => result.reason).length;
  const all = runs.length > 1 ? count(results.length, "result") : count(items.length, "image");
  const text = `${done} of ${all} scored${failed ? `, ${failed} refused` : ""}.`;
  find("status").textContent = items.length ? text : "No images yet.";
  find("downloads").hidden = !done;
}

// --- downloads ---

function rows() {
  return items.flatMap(item => item.results.map(result => {
    const { run, answer, reason } = result;
    const row = { image: item.file.name, run: run.name, score: "", percentile: "", threshold: run.chosen };
    row.threshold_rule = run.chosen === run.threshold ? "of the run" : "manual";
    Object.assign(row, { decision: "", pixel_threshold: run.pixelChosen, marked_fraction: "", condition: "", reason });
    if (!answer) return row;
    const { score, percentile, condition } = answer;
    const decision = isAnomalous(result) ? "anomalous" : "normal";
    return { ...row, score, percentile, decision, marked_fraction: markedShare(result), condition };
  }));
}

// Text that a spreadsheet would run as a formula gets an apostrophe before it.
function csvCell(value) {
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function download(name, blob) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

function downloadCsv() {
  const table = rows();
  const lines = [Object.keys(table[0]), ...table.map(Object.values)].map(row => row.map(csvCell).join(","));
  download("scores.csv", new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv" }));
}

function downloadJson() {
  download("scores.json", new Blob([JSON.stringify(rows(), null, 2)], { type: "application/json" }));
}

function downloadOverlays() {
  for (const item of items) item.results.filter(r => r.answer).forEach(result => downloadOverlay(item, result));
}

function downloadOverlay(item, { run, node }) {
  const name = runs.length > 1 ? `${item.file.name}.${run.index + 1}-${run.model}.png` : `${item.file.name}.png`;
  node.querySelector("canvas").toBlob(blob => download(name, blob));
}

// --- camera ---

async function openCamera() {
  say("");
  if (!navigator.mediaDevices?.getUserMedia) {
    say("This browser offers no camera to this page: open it at 127.0.0.1 or localhost, or choose a file.");
    return;
  }
  try {
    const wanted = { facingMode: "environment", width: { ideal: 1920 } };
    find("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: wanted });
    find("camera").showModal();
  } catch (error) {
    say(CAMERA_ERRORS[error.name] ?? `The camera cannot be used: ${error.message}`);
  }
}

function takePicture() {
  const video = find("video");
  const size = { width: video.videoWidth, height: video.videoHeight };
  const canvas = Object.assign(document.createElement("canvas"), size);
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob(blob => blob && add([new File([blob], `camera-${++pictures}.png`)]));
}

// --- the page ---

const runs = app.runs.map(makeRun);
runs.forEach(showRun);
find("items").classList.toggle("one", runs.length === 1);
find("files").onchange = event => {
  add(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
};
find("csv").onclick = downloadCsv;
find("json").onclick = downloadJson;
find("overlays").onclick = downloadOverlays;
find("clear").onclick = () => [...items].forEach(remove);
find("open-camera").onclick = openCamera;
find("take").onclick = takePicture;
find("close-camera").onclick = () => find("camera").close();
find("camera").onclose = () => find("video").srcObject?.getTracks().forEach(track => track.stop());
addEventListener("dragover", event => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", event => event.relatedTarget || document.body.classList.remove("dragging"));
addEventListener("drop", event => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  add(event.dataTransfer.files);
});
addEventListener("resize", () => {
  items.flatMap(item => item.results).forEach(result => { result.drawnAt = null; }); // lines keep their width
  runs.forEach(update);
});
document.body.dataset.ready = "true"; // for tests
