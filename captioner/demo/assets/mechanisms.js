// One sentence through several kinds of attention. common.js, overlay.js and words.js precede.

const DETAIL = 160; // pixels of an overlay's longer side

let view = null; // the payload on show
let hovered = null; // words by number; the first that is not null is on show
let pinned = null;

const minus = (text) => text.replace("-", "\u2212");

function render() {
  const then = ", and see how five kinds of attention read the same sentence about it.";
  view = receive((it) => it.kinds, "a photo", then);
  showProblem(view);
  if (!view) return;
  hovered = null;
  pinned = view.kinds[0].lit;
  const chips = view.kinds[0].words.map((word, index) => {
    const chip = make("button", "word", word.text);
    chip.dataset.index = index;
    return chip;
  });
  find("words").replaceChildren(...chips);
  const cards = view.kinds.map((kind) => {
    const card = make("figure", "kind");
    const caption = make("figcaption", "");
    const measured =
      "overall: " + kind.correctness.toFixed(1) + " \u00d7 chance, " +
      minus((kind.pointing > 0 ? "+" : "") + kind.pointing.toFixed(0)) + " percentage points";
    caption.append(
      make("h3", "title", kind.title), make("p", "formula", kind.formula),
      make("p", "word-says"), make("p", "measured", measured)
    );
    card.append(makeSmall("div", view, DETAIL), caption);
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
    const here = Number(chip.dataset.index);
    chip.classList.toggle("on", here === index);
    chip.setAttribute("aria-pressed", String(here === pinned));
    chip.tabIndex = here === index ? 0 : -1;
  }
  view.kinds.forEach((kind, place) => {
    const word = kind.words[index];
    const card = find("kinds").children[place];
    const { width, height } = card.querySelector("canvas");
    paintSmall(card.firstChild, spread(bytes(word.map), kind.grid, width, height), word.half);
    const says = word.known ? percent(word.probability) + " sure of " : "does not know ";
    card.querySelector(".word-says").textContent =
      says + "\u201c" + word.text + "\u201d, looks " + where(word.place);
    card.querySelector("img").alt = kind.title + ": " + word.text + ", looked at: " + word.place;
  });
}

const where = (place) => (place === "everywhere" ? place : "at the " + place);

const words = find("words");
words.addEventListener("pointerover", (event) => {
  if (event.pointerType === "touch") return; // a tap pins instead
  hovered = number(event, "word") ?? hovered;
  show();
});
words.addEventListener("pointerleave", () => {
  hovered = null;
  show();
});
words.addEventListener("click", (event) => {
  pinned = number(event, "word") ?? pinned;
  show();
});
words.addEventListener("keydown", (event) => {
  const chip = rove(words.children, event, number(event, "word"));
  if (!chip) return;
  hovered = null;
  pinned = Number(chip.dataset.index);
  show();
  chip.focus();
  say(view.kinds.map((kind) => kind.title + ": " + kind.words[pinned].place).join("; "));
});

watch("value", render);
render();
