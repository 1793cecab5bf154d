// Words of a sentence, and small images with their maps. common.js and overlay.js precede.

const SPOKEN = 5000; // milliseconds after which the live region is cleared

let spoken = 0; // timer

const look = { light: bytes(props.light), heat: bytes(props.heat) };

const percent = (share) =>
  (share < 0.01 ? "under 1" : share > 0.99 ? "over 99" : String(Math.round(100 * share))) + " %";

// Tell those who use a screen reader.
function say(text) {
  find("live").textContent = text;
  clearTimeout(spoken);
  spoken = setTimeout(() => (find("live").textContent = ""), SPOKEN);
}

// Tell why the view is not what was asked for.
function showProblem(view) {
  find("problem").textContent = view?.problem ?? "";
  find("problem").hidden = !view?.problem;
}

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

// Give a canvas the shape of the image, and a longer side of so many pixels.
function fit(canvas, { width, height }, side) {
  const scale = side / Math.max(width, height);
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
}

function makeSmall(tag, view, side) {
  const small = make(tag, "small layers");
  const photo = make("img", "small-photo");
  photo.src = view.photo;
  photo.alt = "";
  const canvas = make("canvas", "small-overlay");
  fit(canvas, view, side);
  small.append(photo, canvas);
  return small;
}

function paintSmall(small, weights, half) {
  const canvas = small.lastChild;
  paint(canvas, weights, { style: "heatmap", strength: props.strength, presence: 1, look });
  stroke(canvas, contour(weights, canvas.width, canvas.height, half), 1);
}
