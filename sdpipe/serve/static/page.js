// The page: sends settings as they were typed, and shows what comes back while it comes.
// Nothing from the server is inserted as HTML.

const $ = (id) => document.getElementById(id);

function make(tag, props = {}, ...children) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
}

let models = [];
let latest = null; // the drawing that was asked for last; it may have been refused
let run = null; // the drawing that is shown: {abort, images: [{seed, steps, url, settings}], total}
let chosen = 0; // which of its images
let at = 0; // which step
let follows = true; // whether the step shown is the latest
let dropped = null;

// ---- The form, from the field table

function fill(help, node) {
  help.split("`").forEach((text, k) => node.append(k % 2 ? make("code", {}, text) : text));
  return node;
}

function makeField(field) {
  const id = `field-${field.name}`;
  const words = field.name === "g" ? "guidance (g)" : field.name.replaceAll("_", " ");
  const label = make("label", { htmlFor: id, title: field.help.replaceAll("`", "") }, words);
  const error = make("p", { className: "error", id: `error-${field.name}` });
  error.setAttribute("role", "alert");
  const help = fill(field.help, make("p", { className: "help", id: `help-${field.name}` }));
  help.hidden = field.common;
  let input;
  if (field.kind === "choice") {
    input = make("select", {}, make("option", { value: "" }, field.unset || "–"));
    field.choices.forEach((choice) => input.append(make("option", { value: choice }, choice)));
  } else if (field.kind === "flag") {
    input = make("input", { type: "checkbox" });
  } else if (field.kind === "image") {
    input = make("input", { type: "file", accept: "image/png,image/jpeg,image/webp" });
  } else {
    input = make("input", { type: "text", autocomplete: "off", placeholder: field.common ? "" : field.unset.replaceAll("`", "") });
    if (field.kind !== "text") input.inputMode = field.kind === "whole" ? "numeric" : "decimal";
  }
  Object.assign(input, { id, name: field.name });
  input.setAttribute("aria-describedby", `${help.id} ${error.id}`);
  const wide = field.name === "negative_prompt" ? " wide" : "";
  const box = make("div", { className: `field${wide}${field.kind === "flag" ? " flag" : ""}` });
  box.append(...(field.kind === "flag" ? [input, label] : [label, input]), help, error);
  return box;
}

function makeForm(fields) {
  const panels = new Map();
  for (const field of fields) {
    if (field.common) { $("common").append(makeField(field)); continue; }
    if (!panels.has(field.panel)) {
      const box = make("div", { className: "fields" });
      $("rest").append(make("fieldset", {}, make("legend", {}, field.panel), box));
      panels.set(field.panel, box);
    }
    panels.get(field.panel).append(makeField(field));
  }
}

function showDefaults() {
  const { defaults } = models.find((model) => model.name === $("model").value);
  for (const input of inputs()) {
    const value = defaults[input.name] ?? { seed: "random", n: "1", negative_prompt: "" }[input.name];
    if (value === undefined) continue;
    if (input.tagName === "SELECT") input.options[0].textContent = `${value} (default)`;
    else input.placeholder = value;
  }
}

const inputs = () => [...$("form").querySelectorAll("[name]")];

async function readForm() {
  const settings = {};
  for (const input of inputs()) {
    if (input.type === "checkbox") { if (input.checked) settings[input.name] = "yes"; }
    else if (input.type === "file") { if (input.files[0]) settings[input.name] = await toBase64(input.files[0]); }
    else if (input.name === "prompt" || input.value.trim() !== "") settings[input.name] = input.value;
  }
  return settings;
}

function fillForm(settings) {
  for (const input of inputs()) {
    const value = settings[input.name];
    if (input.type === "file") continue;
    if (input.type === "checkbox") input.checked = value === "yes";
    else input.value = value ?? "";
    if (value !== undefined && $("rest").contains(input)) $("more").open = true;
  }
}

function toBase64(file) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => fail(reader.error);
    reader.readAsDataURL(file);
  });
}

// ---- Errors, beside the field that they are about

function clearErrors() {
  document.querySelectorAll(".error").forEach((node) => { node.textContent = ""; });
  document.querySelectorAll("[aria-invalid]").forEach((node) => node.removeAttribute("aria-invalid"));
}

function showError(error) {
  const input = inputs().find((one) => one.name === error.param);
  const place = input ? $(`error-${error.param}`) : $("error");
  place.textContent = error.message;
  if (!input) return;
  if ($("rest").contains(input)) $("more").open = true;
  input.setAttribute("aria-invalid", "true");
  input.focus();
}

async function failureOf(response) {
  try { return (await response.json()).error; }
  catch { return { message: `the server answered ${response.status}.` }; }
}

// ---- Drawing

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const data = lines.find((line) => line.startsWith("data: "));
      const name = lines.find((line) => line.startsWith("event: "));
      if (data) yield [name?.slice(7), JSON.parse(data.slice(6))];
    }
  }
}

async function draw() {
  latest?.abort.abort();
  clearErrors();
  const abort = new AbortController();
  const mine = { abort, images: [], total: 0, model: $("model").value };
  latest = mine;
  busy(true);
  try {
    const body = JSON.stringify({ settings: await readForm(), model: mine.model });
    const headers = { "Content-Type": "application/json" };
    const response = await fetch("page/draw", { method: "POST", headers, body, signal: abort.signal });
    if (!response.ok) { showError(await failureOf(response)); return; }
    run?.images.forEach((image) => URL.revokeObjectURL(image.url));
    run = mine;
    for await (const [name, data] of eventsOf(response)) take(name, data);
    if (mine.images.some((image) => !image.url) && !mine.failed) tell("The connection ended early.");
  } catch (error) {
    if (abort.signal.aborted && latest !== mine) return;
    if (abort.signal.aborted) tell(`Stopped after ${stepsDone()} of ${mine.total || "…"} steps.`);
    else showError({ message: `the server does not answer: ${error.message}.` });
  } finally {
    if (latest === mine) busy(false);
  }
}

const stepsDone = () => Math.max(0, ...(run?.images ?? []).map((image) => image.steps.length));
// What is worth hearing; the pace, which changes at every step, is only shown.
const tell = (text) => { $("status").textContent = text; $("pace").textContent = ""; };

function busy(is) {
  $("stop").hidden = !is;
  $("result").setAttribute("aria-busy", is);
  if (!is) $("progress").hidden = true;
}

function take(name, data) {
  if (name === "begun") begin(data.images);
  else if (name === "waiting" && data.position) tell(`Waiting: ${data.position} before this one.`);
  else if (name === "waiting") tell("Beginning …");
  else if (name === "step") takeStep(data);
  else if (name === "image") { takeImage(data); $("warnings").textContent = data.warnings.join(" "); }
  else if (name === "error") { run.failed = true; tell(""); showError(data.error); }
}

function begin(seeds) {
  run.images = seeds.map((seed) => ({ seed, steps: [] }));
  [chosen, at, follows] = [0, 0, true];
  $("result").hidden = false;
  $("hint").hidden = true;
  $("progress").hidden = false;
  $("progress").value = 0;
  $("large").removeAttribute("src");
  $("large").alt = "";
  ["film", "three", "grid"].forEach((id) => $(id).replaceChildren());
  ["step-note", "preview-note", "step-number", "warnings"].forEach((id) => { $(id).textContent = ""; });
  closeWords();
  $("actions").hidden = true;
  $("grid").hidden = seeds.length < 2;
  if (seeds.length > 1) seeds.forEach((seed, k) => $("grid").append(makeTile(seed, k)));
}

function makeTile(seed, k) {
  const image = make("img", { alt: "" });
  const tile = make("button", { type: "button", className: "tile", title: `Show image ${k + 1}` }, image);
  tile.setAttribute("aria-label", `Show image ${k + 1}, seed ${seed}`);
  tile.setAttribute("aria-pressed", k === 0);
  tile.addEventListener("click", () => choose(k));
  const link = make("a", { textContent: `seed ${seed}`, hidden: true });
  const vary = make("button", { type: "button", hidden: true }, "Variations");
  vary.setAttribute("aria-label", `Variations of image ${k + 1}`);
  vary.addEventListener("click", () => varyFrom(k));
  return make("figure", { className: "card" }, tile, make("figcaption", {}, link, vary));
}

function takeStep(step) {
  const image = run.images[step.image];
  while (image.steps.length && image.steps.at(-1).index >= step.index) image.steps.pop(); // began anew in halves
  image.steps.push(step);
  run.total = step.total;
  if (run.images.length > 1) $("grid").children[step.image].querySelector("img").src = step.exact ?? step.x0;
  if (step.image !== chosen) {
    if (run.images[chosen].steps.length === 0 || (follows && isDone(chosen) && !run.touched)) choose(step.image);
    return;
  }
  while ($("film").children.length >= image.steps.length) $("film").lastChild.remove();
  addFrame(step);
  if (follows) showStep(image.steps.length - 1);
  $("large").src = step.exact ?? step.x0;
  $("progress").value = (step.index + 1) / step.total;
  const left = step.seconds_left;
  if ($("status").textContent !== "Drawing") tell("Drawing");
  $("pace").textContent = `step ${step.index + 1} of ${step.total}${left > 1 ? `, about ${Math.round(left)} s left` : ""}`;
}

const isDone = (k) => Boolean(run.images[k].url);

function takeImage(data) {
  const image = run.images[data.image];
  const bytes = Uint8Array.from(atob(data.b64), (letter) => letter.charCodeAt(0));
  image.url = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
  Object.assign(image, { settings: data.settings, seed: data.seed, variation: data.variation_seed });
  if (run.images.length > 1) {
    const card = $("grid").children[data.image];
    card.querySelector("img").src = image.url;
    card.querySelectorAll("a, figcaption button").forEach((node) => { node.hidden = false; });
    card.querySelector("a").href = linkTo(image);
    const of = image.variation === null ? `seed ${image.seed}` : `variation ${image.variation}`;
    card.querySelector("a").textContent = of;
  }
  if (data.image === chosen) showImage();
  if (run.images.every((one) => one.url)) {
    tell(run.images.length > 1 ? `Done: ${run.images.length} images.` : `Done. Seed ${image.seed}.`);
  }
}

function linkTo(image) {
  const query = new URLSearchParams(image.settings);
  if (models.length > 1) query.set("model", run.model);
  return `?${query}`;
}

function showImage() {
  const image = run.images[chosen];
  $("actions").hidden = !image.url;
  if (!image.url) {
    const step = image.steps.at(-1);
    if (step) $("large").src = step.exact ?? step.x0;
    return;
  }
  $("large").src = image.url;
  $("large").alt = image.settings.prompt;
  $("save").href = image.url;
  $("save").download = `${image.settings.prompt.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}-${image.seed}.png`;
  $("link").href = linkTo(image);
}

function choose(k) {
  chosen = k;
  [...$("grid").querySelectorAll(".tile")].forEach((tile, i) => tile.setAttribute("aria-pressed", i === k));
  closeWords();
  $("film").replaceChildren();
  run.images[k].steps.forEach(addFrame);
  showImage();
  if (run.images[k].steps.length) showStep(follows ? run.images[k].steps.length - 1 : Math.min(at, run.images[k].steps.length - 1));
}

function varyFrom(k) {
  const image = run.images[k];
  const { variation_seed: last, ...settings } = image.settings;
  fillForm({
    ...settings,
    variation_strength: settings.variation_strength ?? "0.2",
    ...(last ? { variation_seed: String(BigInt(last) + 1n) } : {}),
    n: Math.max(4, run.images.length).toString(),
  });
  draw();
}

// ---- The steps

const write = (sigma) => (sigma >= 10 ? sigma.toFixed(1) : sigma >= 0.1 ? sigma.toFixed(2) : sigma.toFixed(3));

function addFrame(step) {
  const frame = make("div", { className: "frame" },
    make("img", { src: step.x_t, alt: "" }), make("img", { src: step.exact ?? step.x0, alt: "" }),
    make("span", {}, write(step.sigma)));
  frame.dataset.place = $("film").children.length; // a slow connection may miss steps
  $("film").append(frame);
  document.querySelector(".film-box").style.setProperty("--count", step.total);
  $("scrubber").max = step.total - 1;
}

function showStep(index) {
  const step = run?.images[chosen]?.steps[index];
  if (!step) return;
  at = index;
  $("scrubber").value = index;
  $("scrubber").setAttribute("aria-valuetext", `step ${step.index + 1}, sigma ${write(step.sigma)}`);
  $("step-number").textContent = `${step.index + 1} of ${step.total}`;
  [...$("film").children].forEach((frame, k) => frame.classList.toggle("here", k === index));
  const [box, here] = [$("film-scroll"), $("film").children[index]];
  if (here && (here.offsetLeft < box.scrollLeft + box.offsetLeft || here.offsetLeft + here.offsetWidth > box.offsetLeft + box.scrollLeft + box.clientWidth)) {
    box.scrollLeft = here.offsetLeft - box.offsetLeft - box.clientWidth / 2;
  }
  const show = (src, name, symbol) => make("figure", {}, make("img", { src, alt: `${name}, step ${step.index + 1}` }),
    make("figcaption", {}, make("b", {}, name), symbol));
  const shown = step.uncond
    ? [show(step.uncond, "without the prompt", "uncond"), show(step.cond, "with the prompt", "cond"),
      show(step.x0, "guided", `uncond + ${+step.g.toFixed(2)} · (cond − uncond)`)]
    : [show(step.x0, step.only === "uncond" ? "without the prompt" : "with the prompt", "the only prediction")];
  $("three").replaceChildren(...shown);
  const guided = step.uncond
    ? `${step.angle.toFixed(1)}° between the predictions without and with the prompt.`
    : step.only ? `One prediction: g is ${step.g} at this step, so nothing is guided.` : "";
  $("step-note").textContent = `σ ${write(step.sigma)}, timestep ${Math.round(step.timestep)}. ${guided}`;
  const exact = step.exact ? ` At this step x₀ in the row is decoded exactly; the map is off by ${step.off.toFixed(0)}.` : "";
  $("preview-note").textContent = "Previews are a linear map of the latents to colours, off by " +
    `${step.preview_error.toFixed(0)} of 255 (root mean square, on images held out).${exact}`;
}

function scrub(index) {
  const last = run.images[chosen].steps.length - 1;
  follows = index >= last;
  run.touched = true;
  showStep(Math.min(index, last));
}

// ---- Where the words act

function closeWords() {
  $("overlay").hidden = true;
  $("word-list").hidden = true;
  $("word-note").textContent = "";
  document.querySelector(".large").classList.remove("mapped");
}

async function askWords() {
  const image = run.images[chosen];
  $("words").disabled = true;
  $("word-note").textContent = "Drawing it again to see where the words act …";
  try {
    const body = JSON.stringify({ settings: image.settings, model: run.model });
    const response = await fetch("page/attention", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    if (image !== run.images[chosen]) return;
    if (!response.ok) { $("word-note").textContent = (await failureOf(response)).message; return; }
    showWords(await response.json());
  } finally { $("words").disabled = false; }
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

function showWords(maps) {
  const parts = [...maps.words, ...(maps.padding.map.length ? [{ text: "padding", ...maps.padding }] : [])];
  const alone = make("input", { type: "checkbox", id: "among" });
  let pressed = null;
  const most = (list) => Math.max(1e-6, ...list.flatMap((part) => part.map));
  const paint = () => {
    buttons.forEach((button, k) => button.setAttribute("aria-pressed", parts[k] === pressed));
    $("overlay").hidden = !pressed;
    document.querySelector(".large").classList.toggle("mapped", Boolean(pressed));
    if (pressed) paintMap(maps, pressed.map, most(alone.checked ? maps.words : parts));
  };
  const buttons = parts.map((part) => {
    const button = make("button", { type: "button", className: "button" }, part.text, make("small", {}, percent(part.share)));
    button.addEventListener("click", () => { pressed = pressed === part ? null : part; paint(); });
    return button;
  });
  alone.addEventListener("change", paint);
  $("word-list").replaceChildren(...buttons, make("label", {}, alone, "Compare the words among themselves"));
  $("word-list").hidden = false;
  const words = maps.words.reduce((sum, word) => sum + word.share, 0);
  const shares = `Of all attention the words have ${percent(words)}, the padding behind them ` +
    `${percent(maps.padding.share)}, and the marks around them the rest. All maps are on one scale. `;
  $("word-note").textContent = shares + (maps.padding.share > words
    ? "This model keeps more of the meaning in the padding than in the words, so the maps say little about words." : "");
  pressed = maps.words.reduce((best, word) => (word.share > best.share ? word : best), maps.words[0]);
  paint();
  buttons[parts.indexOf(pressed)].focus();
}

function paintMap({ width, height }, values, most) {
  const canvas = Object.assign($("overlay"), { width, height });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  values.forEach((value, k) => pixels.data.set([255, 92, 20, 230 * Math.min(1, value / most)], 4 * k));
  context.putImageData(pixels, 0, 0);
}

// ---- An image that was dropped

async function openImage(file) {
  if (!file) return;
  clearErrors();
  dropped = { file };
  if ($("original").src) URL.revokeObjectURL($("original").src);
  $("original").src = URL.createObjectURL(file);
  $("dropped").hidden = false;
  $("hint").hidden = true;
  $("again-figure").hidden = true;
  $("rows").replaceChildren();
  $("verdict").textContent = "";
  $("replay").hidden = $("use").hidden = true;
  $("dropped").scrollIntoView({ block: "start" });
  const response = await fetch("page/read", { method: "POST", body: file });
  if (!response.ok) { $("dropped-error").textContent = (await failureOf(response)).message; return; }
  const told = await response.json();
  dropped.told = told;
  told.rows.forEach(([name, value]) => $("rows").append(make("dt", {}, name), make("dd", {}, value)));
  $("replay").hidden = told.model === null;
  $("use").hidden = !told.settings.prompt;
  if (told.refusal) $("dropped-error").textContent = `It cannot be drawn again here: ${told.refusal}`;
  (told.model === null ? $("use") : $("replay")).focus({ preventScroll: true });
}

async function drawAgain() {
  const { file } = dropped;
  $("replay").disabled = true;
  $("dropped-error").textContent = "";
  $("verdict").className = "verdict";
  $("verdict").textContent = "Drawing it again …";
  try {
    const response = await fetch("page/replay", { method: "POST", body: file });
    if (dropped.file !== file) return;
    if (!response.ok) {
      $("verdict").textContent = "";
      $("dropped-error").textContent = (await failureOf(response)).message;
      return;
    }
    const found = await response.json();
    $("again").src = `data:image/png;base64,${found.b64}`;
    $("again-figure").hidden = false;
    $("verdict").className = `verdict ${found.verdict}`;
    $("verdict").textContent = [found.text, ...found.notes].join("\n");
  } finally { $("replay").disabled = false; }
}

// ---- What a person does

$("form").addEventListener("submit", (event) => { event.preventDefault(); draw(); });
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); draw(); }
});
$("stop").addEventListener("click", () => { latest.abort.abort(); $("draw").focus(); });
$("words").addEventListener("click", askWords);
$("vary").addEventListener("click", () => varyFrom(chosen));
$("scrubber").addEventListener("input", (event) => scrub(+event.target.value));
for (const kind of ["pointermove", "pointerdown"]) {
  $("film").addEventListener(kind, (event) => {
    const frame = event.target.closest(".frame");
    if (frame) scrub(+frame.dataset.place);
  });
}
$("file").addEventListener("change", (event) => { openImage(event.target.files[0]); event.target.value = ""; });
$("replay").addEventListener("click", drawAgain);
$("use").addEventListener("click", () => { fillForm(dropped.told.settings); $("prompt").focus(); });
$("model").addEventListener("change", showDefaults);

const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  document.body.classList.remove("dropping");
  openImage(event.dataTransfer.files[0]);
});

async function start() {
  const response = await fetch("page/settings");
  if (response.status === 503) { // the model is being loaded
    $("error").textContent = "The model is being loaded …";
    setTimeout(start, 1000);
    return;
  }
  if (!response.ok) { showError(await failureOf(response)); return; }
  $("error").textContent = "";
  const found = await response.json();
  models = found.models;
  makeForm(found.fields);
  models.forEach(({ name }) => $("model").append(make("option", { value: name }, name)));
  $("model-field").hidden = models.length < 2;
  const query = Object.fromEntries(new URLSearchParams(location.search));
  if (models.some(({ name }) => name === query.model)) $("model").value = query.model;
  fillForm(query);
  showDefaults();
  $("prompt").placeholder = models[0].name === "emoji" ? "red apple" : "a lighthouse at dusk, oil on canvas";
  document.body.dataset.ready = "yes";
}

start();
