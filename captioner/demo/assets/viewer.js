// The attention viewer. Gradio gives `element`, `props`, `trigger` and `watch`; overlay.js precedes.
// All text is set as text, never as HTML: words and messages may hold anything.

const FADE = 220; // milliseconds from one word's map to the next
const BEAT = 950; // milliseconds that a word stays while playing
const DETAIL = 224; // pixels of the overlay's longer side; the browser smooths the rest

const find = (name) => element.querySelector("." + name);
const root = find("viewer");
const canvas = find("overlay");
const ramp = bytes(props.ramp);

let view = null; // the payload on show
let chosen = 0; // which of its sentences
let spreads = []; // its words' maps on the canvas, made when first needed
let hovered = null; // words by number; the first that is not null is on show
let focused = null;
let pinned = null;
let playing = null; // timer
let now = { weights: null, presence: 0 }; // what the canvas shows
let frame = 0; // pending animation frame

function make(tag, name, text = "") {
  const node = document.createElement(tag);
  node.className = name;
  node.textContent = text;
  if (tag === "button") node.type = "button";
  return node;
}

const percent = (share) => (share < 0.01 ? "under 1" : String(Math.round(100 * share))) + " %";
const sentence = () => view.sentences[chosen];

// ------------------------------------------------------------------------------- what is on show

function render() {
  stop();
  const next = props.value && typeof props.value === "object" ? props.value : null;
  const sameSentences = Boolean(next?.id && next.id === view?.id);
  view = next?.sentences ? next : null;
  root.dataset.state = next?.error ? "error" : view ? "ready" : next?.notice ? "loading" : "empty";
  find("message").textContent = next?.error || next?.notice || "Drop a photo, and read what it shows.";
  if (!view) return cancelAnimationFrame(frame); // no photo is left for a fade to end on
  root.dataset.style = view.style;
  if (sameSentences) {
    paintNow(); // only style or strength changed
    return renderStrip();
  }
  const photo = find("photo");
  if (photo.getAttribute("src") !== view.photo) photo.src = view.photo;
  find("frame").style.setProperty("--ratio", view.width / view.height);
  const scale = DETAIL / Math.max(view.width, view.height);
  canvas.width = Math.max(1, Math.round(view.width * scale));
  canvas.height = Math.max(1, Math.round(view.height * scale));
  now = { weights: null, presence: 0 };
  renderCandidates();
  choose(view.chosen, false);
}

function renderCandidates() {
  const best = view.sentences[0].score;
  const rows = view.sentences.map((each, index) => {
    const row = make("button", "candidate");
    row.setAttribute("role", "radio");
    row.dataset.index = index;
    row.dataset.origin = each.origin;
    const score = make("span", "score", each.score.toFixed(2).replace("-", "\u2212"));
    score.title = "Score: the logarithm of the sentence's probability, nearer to 0 is likelier";
    const share = make("span", "share");
    share.style.setProperty("--share", Math.min(1, Math.exp(each.score - best)));
    row.append(make("span", "dot"), make("span", "text", each.text));
    if (each.origin === "yours") row.append(make("span", "tag", "yours"));
    row.append(share, score);
    return row;
  });
  find("candidates").replaceChildren(...rows);
}

function choose(index, byPerson = true) {
  stop();
  chosen = index;
  spreads = [];
  hovered = focused = pinned = null;
  const { words, text } = sentence();
  find("photo").alt = text;
  const chips = words.map((word, number) => {
    const chip = make("button", "word", word.text);
    chip.dataset.index = number;
    chip.dataset.probability = word.probability;
    chip.tabIndex = number ? -1 : 0;
    chip.style.setProperty("--probability", word.probability);
    chip.classList.toggle("unknown", !word.known);
    chip.setAttribute("aria-label", describe(word));
    chip.setAttribute("aria-pressed", "false");
    return chip;
  });
  find("words").replaceChildren(...chips);
  for (const row of find("candidates").children) {
    const on = Number(row.dataset.index) === chosen;
    row.setAttribute("aria-checked", String(on));
    row.tabIndex = on ? 0 : -1;
  }
  show();
  renderStrip();
  find("live").textContent = text;
  if (byPerson) trigger("select", { index: chosen });
}

// All words at once, each with its own small overlay.
function renderStrip() {
  if (!view || find("strip").hidden) return;
  const { style, strength } = view;
  const panels = sentence().words.map((word, index) => {
    const panel = make("button", "panel");
    panel.dataset.index = index;
    panel.tabIndex = -1; // the words above do the same
    panel.classList.toggle("on", index === pinned);
    const picture = make("span", "picture");
    const photo = make("img", "small-photo");
    photo.src = view.photo;
    photo.alt = "";
    const small = make("canvas", "small-overlay");
    [small.width, small.height] = [canvas.width, canvas.height];
    paint(small, weightsOf(index), { style, strength, presence: 1, ramp });
    picture.append(photo, small);
    panel.append(picture, make("span", "name", word.text));
    return panel;
  });
  find("strip").style.setProperty("--ratio", view.width / view.height);
  find("strip").replaceChildren(...panels);
}

function describe(word) {
  const unknown = word.known ? "" : ", a word the model does not know";
  return word.text + ", " + percent(word.probability) + ", looked at: " + word.place + unknown;
}

// ---------------------------------------------------------------------------------- the overlay

function show() {
  if (!view) return;
  const index = hovered ?? focused ?? pinned;
  root.dataset.word = index ?? "";
  for (const chip of find("words").children) {
    chip.classList.toggle("on", Number(chip.dataset.index) === index);
    chip.setAttribute("aria-pressed", String(Number(chip.dataset.index) === pinned));
  }
  for (const panel of find("strip").children) {
    panel.classList.toggle("on", Number(panel.dataset.index) === pinned);
  }
  const word = index === null ? null : sentence().words[index];
  find("reading").textContent = word ? percent(word.probability) + " sure of \u201c" + word.text + "\u201d" : "";
  fadeTo(index);
}

function weightsOf(index) {
  const { grid, words } = sentence();
  spreads[index] ??= spread(bytes(words[index].map), grid, canvas.width, canvas.height);
  return spreads[index];
}

function fadeTo(index) {
  cancelAnimationFrame(frame);
  const from = { ...now };
  const presence = index === null ? 0 : 1;
  const weights = index === null ? now.weights : weightsOf(index);
  if (!weights) return paintNow();
  if (!from.weights || !from.presence) from.weights = weights;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const start = performance.now();
  root.dataset.fading = "true";
  const step = (time) => {
    const t = calm ? 1 : Math.min(1, Math.max(0, (time - start) / FADE));
    const ease = t * t * (3 - 2 * t);
    now = {
      presence: from.presence + (presence - from.presence) * ease,
      weights: t === 1 ? weights : weights.map((w, i) => from.weights[i] + (w - from.weights[i]) * ease),
    };
    paintNow();
    if (t < 1) frame = requestAnimationFrame(step);
    else root.dataset.fading = "false";
  };
  frame = requestAnimationFrame(step);
}

function paintNow() {
  const { style, strength } = view;
  if (now.weights) paint(canvas, now.weights, { style, strength, presence: now.presence, ramp });
  else canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
}

// --------------------------------------------------------------------------------------- playing

function play() {
  const count = sentence().words.length;
  if (!count) return;
  let index = -1;
  const next = () => {
    if (++index >= count) return stop();
    hovered = index;
    show();
    find("live").textContent = describe(sentence().words[index]);
    playing = setTimeout(next, BEAT);
  };
  pinned = focused = null;
  next();
  markPlaying(true);
}

function stop() {
  if (playing === null) return;
  clearTimeout(playing);
  playing = hovered = null;
  markPlaying(false);
  show();
}

function markPlaying(on) {
  root.dataset.playing = String(on);
  find("play").setAttribute("aria-pressed", String(on));
  find("play").querySelector(".label").textContent = on ? "Stop" : "Play";
}

// ---------------------------------------------------------------------------------------- events

const number = (event, name) => {
  const node = event.target.closest("." + name);
  return node ? Number(node.dataset.index) : null;
};
const neighbour = (key, index, count) =>
  ({ ArrowRight: index + 1, ArrowDown: index + 1, ArrowLeft: index - 1, ArrowUp: index - 1 }[key] ??
  { Home: 0, End: count - 1 }[key]);

function rove(nodes, event, index) {
  const next = neighbour(event.key, index, nodes.length);
  if (next === undefined) return null;
  event.preventDefault();
  return nodes[(next + nodes.length) % nodes.length];
}

const words = find("words");
words.addEventListener("pointerover", (event) => {
  if (event.pointerType === "touch") return; // a tap pins instead
  const index = number(event, "word");
  if (index === null || index === hovered) return;
  stop();
  hovered = index;
  show();
});
words.addEventListener("focusin", (event) => {
  if (!event.target.matches(":focus-visible")) return; // a click focuses as well
  stop();
  hovered = null; // the last to move wins, mouse or keyboard
  focused = number(event, "word");
  for (const chip of words.children) chip.tabIndex = chip === event.target ? 0 : -1;
  show();
});
words.addEventListener("focusout", () => {
  focused = null;
  show();
});
words.addEventListener("click", (event) => {
  const index = number(event, "word");
  if (index === null) return;
  stop();
  pinned = pinned === index ? null : index;
  show();
  if (pinned !== null) find("live").textContent = describe(sentence().words[index]);
});
words.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hovered = pinned = focused = null;
    return show();
  }
  rove(words.children, event, number(event, "word"))?.focus();
});

// Pointing at a place in the image shows the word with the largest weight there.
const frameNode = find("frame");
frameNode.addEventListener("pointermove", (event) => {
  if (event.pointerType === "touch" || playing !== null || pinned !== null) return;
  const box = frameNode.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * canvas.width);
  const row = Math.floor(((event.clientY - box.top) / box.height) * canvas.height);
  let best = null;
  let most = 0.3; // below this, no word counts as looking there
  sentence().words.forEach((_, index) => {
    const weight = weightsOf(index)[row * canvas.width + column] ?? 0;
    if (weight > most) [best, most] = [index, weight];
  });
  if (best === hovered) return;
  hovered = best;
  show();
});

for (const area of [words, frameNode]) {
  area.addEventListener("pointerleave", () => {
    if (playing !== null) return;
    hovered = null;
    show();
  });
}

find("all").addEventListener("click", () => {
  const open = find("strip").hidden;
  find("strip").hidden = !open;
  find("all").setAttribute("aria-expanded", String(open));
  renderStrip();
});
find("strip").addEventListener("click", (event) => {
  const index = number(event, "panel");
  if (index !== null) words.children[index].click();
});

const candidates = find("candidates");
candidates.addEventListener("click", (event) => {
  const index = number(event, "candidate");
  if (index !== null && index !== chosen) choose(index);
});
candidates.addEventListener("keydown", (event) => {
  const row = rove(candidates.children, event, number(event, "candidate"));
  if (!row) return;
  choose(Number(row.dataset.index));
  row.focus();
});

find("play").addEventListener("click", () => (playing === null ? play() : stop()));

watch("value", render);
render();
