// The attention viewer. common.js, overlay.js and words.js precede, actions.js and others.js follow.

const FADE = 220; // milliseconds from one word's map to the next
const BEAT = 850; // milliseconds that a word stays while playing; a function word, half of it
const DETAIL = 224; // pixels of the overlay's longer side; the browser smooths the rest

const canvas = find("overlay");
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let view = null; // the payload on show
let chosen = 0; // which of its sentences
let spreads = []; // its words' maps on the canvas, made when first needed
let hovered = null; // words by number; the first of these four that is not null is on show
let focused = null;
let pinned = null;
let lit = null;
let playing = null; // timer
let now = { weights: null, level: 0, presence: 0 }; // what the canvas shows
let frame = 0; // pending animation frame
let offered = ""; // the place whose other words stand there (others.js)

const sentence = () => view.sentences[chosen];

// ------------------------------------------------------------------------------- what is on show

function render() {
  stop();
  const before = view && { id: view.id, shown: sentence().text + view.photo };
  view = receive((it) => it.sentences, "a photo", ", and read what it shows.");
  showProblem(view);
  if (!view) return cancelAnimationFrame(frame); // no photo is left for a fade to end on
  root.dataset.style = view.style;
  if (view.id === before?.id) {
    paintNow(); // only style or strength changed
    return renderStrip();
  }
  const photo = find("photo");
  if (photo.getAttribute("src") !== view.photo) photo.src = view.photo;
  find("frame").style.setProperty("--ratio", view.width / view.height);
  fit(canvas, view, DETAIL);
  now = { weights: null, level: 0, presence: 0 };
  renderCandidates();
  choose(view.chosen, false);
  // A new sentence plays once, unless nobody sees it or wants it to move.
  const seen = root.offsetParent !== null && !calm.matches;
  if (seen && sentence().text + view.photo !== before?.shown) play(false);
}

function renderCandidates() {
  const rows = view.sentences.map((each, index) => {
    const row = make("button", "candidate");
    row.setAttribute("role", "radio");
    row.dataset.index = index;
    row.dataset.origin = each.origin;
    const chance = make("span", "chance", each.chance);
    const share = make("span", "share");
    share.style.setProperty("--share", each.share);
    row.append(make("span", "dot"), make("span", "text", each.text));
    if (each.origin !== "model") row.append(make("span", "tag", each.origin));
    row.append(share, chance);
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
  lit = sentence().lit;
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
  say(text);
  if (byPerson) trigger("select", { index: chosen });
}

// All words at once, each with its own small overlay.
function renderStrip() {
  if (!view || find("strip").hidden) return;
  const panels = sentence().words.map((word, index) => {
    const panel = make("button", "panel");
    panel.dataset.index = index;
    panel.tabIndex = -1; // the words above do the same
    panel.classList.toggle("on", index === pinned);
    panel.classList.toggle("pale", word.pale);
    const small = makeSmall("span", view, DETAIL);
    paintSmall(small, weightsOf(index), word.half);
    panel.append(small, make("span", "name", word.text));
    return panel;
  });
  find("strip").style.setProperty("--ratio", view.width / view.height);
  find("strip").style.setProperty("--pale", props.pale);
  find("strip").replaceChildren(...panels);
}

function describe(word) {
  const unknown = word.known ? "" : ", a word the model does not know";
  return word.text + ", " + percent(word.probability) + ", looked at: " + word.place + unknown;
}

// ---------------------------------------------------------------------------------- the overlay

function show() {
  if (!view) return;
  const index = hovered ?? focused ?? pinned ?? lit;
  root.dataset.word = index ?? "";
  for (const chip of find("words").children) {
    chip.classList.toggle("on", Number(chip.dataset.index) === index);
    chip.setAttribute("aria-pressed", String(Number(chip.dataset.index) === pinned));
  }
  for (const panel of find("strip").children) {
    panel.classList.toggle("on", Number(panel.dataset.index) === pinned);
  }
  const word = index === null ? null : sentence().words[index];
  const instead = word?.others.length && playing === null ? "; or go on with" : "";
  find("reading").textContent = word
    ? percent(word.probability) + " sure of \u201c" + word.text + "\u201d" + instead
    : "";
  renderOthers(index);
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
  if (!weights) {
    root.dataset.fading = "false";
    return paintNow();
  }
  const level = index === null ? now.level : sentence().words[index].half;
  if (!from.weights || !from.presence) [from.weights, from.level] = [weights, level];
  const start = performance.now();
  root.dataset.fading = "true";
  const step = (time) => {
    const t = calm.matches ? 1 : Math.min(1, Math.max(0, (time - start) / FADE));
    const ease = t * t * (3 - 2 * t);
    now = {
      presence: from.presence + (presence - from.presence) * ease,
      level: from.level + (level - from.level) * ease,
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
  const [line, box] = [find("outline"), canvas.getBoundingClientRect()];
  line.width = Math.round(box.width * devicePixelRatio); // which clears it as well
  line.height = Math.round(box.height * devicePixelRatio);
  if (!now.weights) return canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
  paint(canvas, now.weights, { style, strength, presence: now.presence, look });
  if (now.presence) stroke(line, contour(now.weights, canvas.width, canvas.height, now.level), now.presence);
}

new ResizeObserver(() => view && paintNow()).observe(canvas); // the line is as sharp as the screen

// --------------------------------------------------------------------------------------- playing

function play(aloud) {
  const { words } = sentence();
  let index = -1;
  const next = () => {
    if (++index >= words.length) return stop();
    hovered = index;
    show();
    if (aloud) say(describe(words[index]));
    playing = setTimeout(next, words[index].pale ? BEAT / 2 : BEAT);
  };
  pinned = focused = null;
  next();
  markPlaying(playing !== null);
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
for (const area of [words, find("others")]) {
  area.addEventListener("focusout", (event) => {
    if (find("others").contains(event.relatedTarget)) return; // they belong to the word
    focused = null;
    show();
  });
}
words.addEventListener("click", (event) => {
  const index = number(event, "word");
  if (index === null) return;
  stop();
  pinned = pinned === index ? null : index;
  lit = null; // from now on the visitor decides
  show();
  if (pinned !== null) say(describe(sentence().words[index]));
});
words.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    stop();
    hovered = pinned = focused = lit = null;
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

// A press on the image puts out what stays lit.
frameNode.addEventListener("click", () => {
  stop();
  hovered = pinned = lit = null;
  show();
});

function leave() {
  if (playing !== null) return;
  hovered = null;
  show();
}

// Below the words, the one on show stays until the pointer has passed those that may replace it.
for (const area of [find("caption"), frameNode]) area.addEventListener("pointerleave", leave);
find("controls").addEventListener("pointerenter", leave);

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

find("play").addEventListener("click", () => (playing === null ? play(true) : stop()));
