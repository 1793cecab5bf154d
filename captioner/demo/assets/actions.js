// What can be done with a sentence: copied, saved. viewer.js precedes.

const QUIET = 1600; // milliseconds that "Copied" stays

// Clipboards need a secure address: on others, copy a selection as in the old days.
async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = make("textarea", "live", text);
  root.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

find("copy").addEventListener("click", async () => {
  const label = find("copy").querySelector(".label");
  try {
    await copyText(sentence().text);
    label.textContent = "Copied";
  } catch {
    label.textContent = "Not allowed";
  }
  say(label.textContent);
  setTimeout(() => (label.textContent = "Copy"), QUIET);
});

const kinds = find("kinds");
const items = [...kinds.children];

function openMenu(on) {
  if (on === !kinds.hidden) return;
  kinds.hidden = !on;
  find("save").setAttribute("aria-expanded", String(on));
  if (on) items[0].focus();
  else if (kinds.contains(document.activeElement)) find("save").focus();
}

find("save").addEventListener("click", () => openMenu(kinds.hidden));
find("save").addEventListener("keydown", (event) => {
  if (event.key !== "ArrowDown") return;
  event.preventDefault();
  openMenu(true);
});
kinds.addEventListener("keydown", (event) => {
  if (event.key === "Escape") openMenu(false);
  else rove(items, event, items.indexOf(event.target))?.focus();
});
kinds.addEventListener("mousedown", (event) => event.preventDefault()); // keeps the focus
kinds.addEventListener("focusout", (event) => {
  if (!find("menu").contains(event.relatedTarget)) openMenu(false);
});
kinds.addEventListener("click", (event) => {
  const kind = event.target.closest("[data-kind]")?.dataset.kind;
  if (!kind) return;
  find("save").focus();
  openMenu(false);
  trigger("save", { kind });
});
