// One sentence through several kinds of attention. Gradio gives `element`, `props` and `watch`;
// overlay.js precedes. All text is set as text, never as HTML.

const DETAIL = 160; // pixels of an overlay's longer side

const find = (name) => element.querySelector("." + name);
const root = find("mechanisms");
const look = { light: bytes(props.light), heat: bytes(props.heat) };

let view = null; // the payload on show
let hovered = null; // words by number; the first that is not null is on show
let pinned = null;

function make(tag, name, text = "") {
  const node = document.createElement(tag);
  node.className = name;
  node.textContent = text;
  return node;
}

const percent = (share) => (share < 0.01 ? "under 1" : String(Math.round(100 * share))) + " %";
const minus = (text) => text.replace("-", "\u2212");

function render() {
  const value = props.value && typeof props.value === "object" ? props.value : null;
  view = value?.kinds ? value : null;
  root.dataset.state = value?.error ? "error" : view ? "ready" : "empty";
  find("message").textContent =
    value?.error || "Give a photo, and see how five kinds of attention read the same sentence about it.";
  if (!view) return;
  hovered = null;
  pinned = view.kinds[0].lit;
  const chips = view.kinds[0].words.map((word, index) => {
    const chip = make("button", "word", word.text);
    chip.type = "button";
    chip.dataset.index = index;
    return chip;
  });
  find("words").replaceChildren(...chips);
  const scale = DETAIL / Math.max(view.width, view.height);
  const cards = view.kinds.map((kind) => {
    const card = make("figure", "kind");
    const picture = make("div", "picture");
    const photo = make("img", "photo");
    photo.src = view.photo;
    photo.alt = "";
    const canvas = make("canvas", "overlay");
    canvas.width = Math.max(1, Math.round(view.width * scale));
    canvas.height = Math.max(1, Math.round(view.height * scale));
    picture.append(photo, canvas);
    const caption = make("figcaption", "");
    const measured =
      "all: " + kind.correctness.toFixed(1) + " \u00d7 chance, " +
      minus((kind.pointing > 0 ? "+" : "") + kind.pointing.toFixed(0)) + " points";
    caption.append(
      make("h3", "title", kind.title), make("p", "formula", kind.formula),
      make("p", "word-says"), make("p", "measured", measured)
    );
    card.append(picture, caption);
    return card;
  });
  root.style.setProperty("--ratio", view.width / view.height);
  find("kinds").replaceChildren(...cards);
  show();
}

function show() {
  if (!view) return;
  const index = hovered ?? pinned ?? 0;
  root.dataset.word = index;
  for (const chip of find("words").children) {
    const number = Number(chip.dataset.index);
    chip.classList.toggle("on", number === index);
    chip.setAttribute("aria-pressed", String(number === pinned));
    chip.tabIndex = number === index ? 0 : -1;
  }
  view.kinds.forEach((kind, place) => {
    const word = kind.words[index];
    const card = find("kinds").children[place];
    const canvas = card.querySelector(".overlay");
    const weights = spread(bytes(word.map), kind.grid, canvas.width, canvas.height);
    paint(canvas, weights, { style: "heatmap", strength: props.strength, presence: 1, look });
    stroke(canvas, contour(weights, canvas.width, canvas.height, word.half), 1);
    const unknown = word.known ? percent(word.probability) + " sure of " : "does not know ";
    card.querySelector(".word-says").textContent = unknown + "\u201c" + word.text + "\u201d, looks " + where(word.place);
    card.querySelector(".photo").alt = kind.title + ": " + word.text + ", looked at: " + word.place;
  });
}

const where = (place) => (place === "everywhere" ? place : "at the " + place);

const words = find("words");
const number = (event) => {
  const chip = event.target.closest(".word");
  return chip ? Number(chip.dataset.index) : null;
};
words.addEventListener("pointerover", (event) => {
  if (event.pointerType === "touch") return; // a tap pins instead
  hovered = number(event) ?? hovered;
  show();
});
words.addEventListener("pointerleave", () => {
  hovered = null;
  show();
});
words.addEventListener("click", (event) => {
  pinned = number(event) ?? pinned;
  show();
});
words.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step || !view) return;
  event.preventDefault();
  const count = words.children.length;
  hovered = null;
  pinned = (Number(root.dataset.word) + step + count) % count;
  show();
  words.children[pinned].focus();
  find("live").textContent = view.kinds.map((kind) => kind.title + ": " + kind.words[pinned].place).join("; ");
});

watch("value", render);
render();
