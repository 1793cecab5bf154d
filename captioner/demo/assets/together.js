// Two viewers side by side: words that only one sentence has are marked, and the word on show in one
// is shown in the other, if it is there.

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

const leave = (words) => words.closest(".caption").dispatchEvent(new PointerEvent("pointerleave"));

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

// What is pinned in one is pinned in the other.
document.addEventListener("click", (event) => {
  const chip = event.isTrusted && event.target.closest?.(".word");
  const words = chip && partner(chip);
  const other = words && counterpart(chip, words);
  if (other && other.getAttribute("aria-pressed") !== chip.getAttribute("aria-pressed")) other.click();
});

// Return which of the words a are no part of a longest common subsequence with b.
function differing(a, b) {
  const longest = Array.from({ length: a.length + 1 }, () => new Array(b.length + 1).fill(0));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const differ = a.map(() => true);
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) [differ[i], i, j] = [false, i + 1, j + 1];
    else if (longest[i + 1][j] >= longest[i][j + 1]) i++;
    else j++;
  }
  return differ;
}

function mark() {
  const sides = pair.map((id) => [...document.querySelectorAll(`#${id} .words .word`)]);
  const texts = sides.map((chips) => chips.map((chip) => chip.textContent));
  const both = texts.every((words) => words.length);
  sides.forEach((chips, side) => {
    const differ = differing(texts[side], texts[1 - side]);
    chips.forEach((chip, index) => chip.classList.toggle("differs", both && differ[index]));
  });
}

// The viewers are made when their tab is first shown, after this.
new MutationObserver(mark).observe(document.body, { childList: true, subtree: true });
mark();
