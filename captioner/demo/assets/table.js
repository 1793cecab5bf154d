// The table of many images. common.js precedes.

const body = root.querySelector("tbody");

function makeRow(row) {
  const line = make("tr", row.error === undefined ? "done" : "failed");
  const picture = make("td", "picture");
  const image = make(row.thumbnail ? "img" : "div", row.thumbnail ? "" : "blank");
  if (row.thumbnail) {
    image.src = row.thumbnail;
    image.alt = "";
  }
  picture.append(image);
  const text = make("td", "text");
  text.append(make("p", "sentence", row.error ?? row.caption));
  for (const other of row.others ?? []) text.append(make("p", "other", other));
  text.append(make("p", "file", row.name));
  const cell = make("td", "chance", row.chance ?? "");
  cell.title = "How likely the model finds exactly this sentence";
  line.append(picture, text, cell);
  return line;
}

function render() {
  const value = receive((it) => it.rows, "photos or a zip", ", and each gets its sentence.");
  root.dataset.done = String(Boolean(value?.done));
  const rows = value?.rows ?? [];
  if (rows.length < body.children.length || (value?.done && rows.length === body.children.length)) {
    body.replaceChildren(); // another run
  }
  body.append(...rows.slice(body.children.length).map(makeRow));
  const failed = rows.filter((row) => row.error !== undefined).length;
  const total = Math.max(value?.total ?? 0, rows.length);
  find("track").setAttribute("aria-valuemax", total);
  find("track").setAttribute("aria-valuenow", rows.length);
  root.style.setProperty("--done", total ? rows.length / total : 0);
  const count = value?.done ? rows.length + (rows.length === 1 ? " photo" : " photos") : rows.length + " of " + total;
  find("count").textContent = count + (failed ? ", " + failed + " failed" : "");
}

watch("value", render);
render();
