// What the parts of the page share. Gradio gives `element`, `props`, `trigger` and `watch`.
// All text is set as text, never as HTML: words, names and messages may hold anything.

const root = element.querySelector("[data-state]");
const find = (name) => root.querySelector("." + name);

function make(tag, name, text = "") {
  const node = document.createElement(tag);
  node.className = name;
  node.textContent = text;
  if (tag === "button") node.type = "button";
  return node;
}

// Return what is to be shown, or null: then a message says why there is nothing, or invites to
// give what is `wanted`; `then` tells what happens next.
function receive(isReady, wanted, then) {
  const touch = matchMedia("(hover: none)").matches;
  const invitation = (touch ? `Choose ${wanted}` : `Drop or paste ${wanted} anywhere`) + then;
  const value = props.value && typeof props.value === "object" ? props.value : null;
  const ready = value && isReady(value);
  const other = value?.notice ? "loading" : "empty";
  root.dataset.state = value?.error ? "error" : ready ? "ready" : other;
  find("message").textContent = value?.error || value?.notice || invitation;
  return ready ? value : null;
}
