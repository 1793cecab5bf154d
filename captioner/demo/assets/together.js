// Two viewers side by side: the word on show in one is shown in the other, if it is there.

const pair = ["viewer-a", "viewer-b"];

const partner = (node) => {
  const own = node.closest?.("#viewer-a, #viewer-b");
  return own && document.querySelector(`#${pair[1 - pair.indexOf(own.id)]} .words`);
};

// Find the same occurrence of the same word, or its first.
const counterpart = (chip, words) => {
  const same = (node) => node.textContent === chip.textContent;
  const before = [...chip.parentElement.children].filter(same).indexOf(chip);
  const there = [...words.children].filter(same);
  return there[before] ?? there[0];
};

const leave = (words) => words.dispatchEvent(new PointerEvent("pointerleave"));

const follow = (event) => {
  if (!event.isTrusted) return; // our own
  const chip = event.target.closest?.(".word");
  const words = chip && partner(chip);
  if (!words) return;
  const other = counterpart(chip, words);
  if (other) other.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, pointerType: "mouse" }));
  else leave(words);
};

const part = (event) => {
  if (!event.isTrusted || !event.target.closest?.(".word")) return;
  if (event.relatedTarget?.closest?.(".word")) return; // to the next one
  const words = partner(event.target);
  if (words) leave(words);
};

for (const name of ["pointerover", "focusin"]) document.addEventListener(name, follow);
for (const name of ["pointerout", "focusout"]) document.addEventListener(name, part);
