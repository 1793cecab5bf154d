// What else the model might have said: the likeliest words at the place on show, each of which
// continues the sentence from there. viewer.js precedes; the end of this file starts the viewer.

function renderOthers(index) {
  const word = index === null || playing !== null ? null : sentence().words[index];
  const key = word?.others.length ? [view.id, chosen, index].join() : "";
  if (key === offered) return; // else the focus would be lost
  offered = key;
  const buttons = key ? word.others.map(([text, probability]) => {
    const button = make("button", "other", text === "<end>" ? "end here" : text);
    button.append(make("span", "", percent(probability)));
    button.dataset.place = index;
    button.dataset.word = text;
    button.disabled = text === word.text;
    return button;
  }) : [];
  find("others").setAttribute("aria-label", key ? "Instead of " + word.text : "");
  find("others").replaceChildren(...buttons);
}

find("others").addEventListener("click", (event) => {
  const button = event.target.closest(".other");
  if (button) trigger("apply", { place: Number(button.dataset.place), word: button.dataset.word });
});

// All parts are there now.
watch("value", render);
render();
