() => {
  const shown = (node) => node.closest(".block")?.offsetParent !== null;
  const all = (selector) => [...document.querySelectorAll(selector)];

  // --------------------------------------------------------------- files from anywhere on the page

  // Pass what is pasted or dropped anywhere to the input of the open tab.
  const give = (event, transfer) => {
    const files = [...(transfer?.files ?? [])];
    const input = all(":is(.image-input, #files) input[type=file]").find(shown);
    if (!files.length || !input) return;
    event.preventDefault();
    const list = new DataTransfer();
    const image = files.find((each) => each.type.startsWith("image/")) ?? files[0];
    for (const file of input.multiple ? files : [image]) list.items.add(file);
    input.files = list.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  document.addEventListener("paste", (event) => give(event, event.clipboardData));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!event.defaultPrevented) give(event, event.dataTransfer);
    event.preventDefault(); // else the browser leaves the page to show the file
  });

  // ----------------------------------------------------------------------- camera and clipboard

  const line = document.createElement("p");
  line.id = "line";
  line.setAttribute("role", "status");
  document.body.append(line);
  let clearing = 0;
  const tell = (text) => {
    line.textContent = text;
    clearTimeout(clearing);
    clearing = setTimeout(() => (line.textContent = ""), 8000);
  };

  // Say why there is no camera, or nothing to paste, before Gradio fails at it.
  const lacking = async (name) => {
    if (!isSecureContext) return `${name} works on https addresses only. Choose a file instead.`;
    if (name === "Pasting") {
      return navigator.clipboard?.read ? "" : "Press Ctrl and V to paste.";
    }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: true });
      for (const track of stream.getTracks()) track.stop();
      return "";
    } catch (error) {
      if (error.name === "NotAllowedError") return "The browser does not let this page use the camera.";
      return "There is no camera here. Choose a file instead.";
    }
  };
  const sources = { "Capture from camera": "The camera", "Paste from clipboard": "Pasting" };
  document.addEventListener(
    "click",
    async (event) => {
      const button = event.target.closest?.(".source-selection button");
      const name = sources[button?.getAttribute("aria-label")];
      if (!name || !event.isTrusted) return;
      event.stopPropagation();
      const reason = await lacking(name);
      if (reason) tell(reason);
      else button.click();
    },
    true,
  );

  // --------------------------------------------- the address: #compare, #caption/cat (an example)

  const tabs = () => all("#tabs [role=tab]");
  const example = (tile) => decodeURIComponent(tile.querySelector("img")?.src.split("/").pop().split(".")[0] ?? "");
  const tiles = () => all("#tabs .gallery-item").filter((tile) => tile.offsetParent !== null);
  const at = new Map(); // the example on show in each tab, if it is not the first
  let wanted = null; // the example to show as soon as its tile is there
  const record = (tab, name = at.get(tab) ?? "") => {
    at.set(tab, name);
    const hash = "#" + tab + (name && "/" + name);
    if (location.hash !== hash) history.pushState(null, "", hash);
  };
  const selected = () => tabs().find((tab) => tab.getAttribute("aria-selected") === "true");
  const decoded = (text) => {
    try {
      return decodeURIComponent(text);
    } catch {
      return ""; // half an escape: no address of ours
    }
  };
  const follow = () => {
    const [tab, name = ""] = decoded(location.hash.slice(1)).split("/");
    const button = tabs().find((each) => each.dataset.tabId === (tab || "caption"));
    if (button && button !== selected()) button.click();
    if (name !== (at.get(tab || "caption") ?? "")) wanted = name;
    at.set(tab || "caption", name);
    choose();
  };
  const opened = new Set();
  const choose = () => {
    const tab = selected()?.dataset.tabId;
    if (tab === "mechanisms" && !opened.has(tab)) {
      opened.add(tab); // it says nothing without a photo
      wanted ??= "";
    }
    if (wanted === null || !tiles().length) return;
    const tile = wanted ? tiles().find((each) => example(each) === wanted) : tiles()[0];
    if (!tile) return;
    wanted = null;
    tile.click();
  };
  document.addEventListener("click", (event) => {
    if (!event.isTrusted) return; // our own
    const tab = event.target.closest?.("#tabs [role=tab]");
    if (tab) record(tab.dataset.tabId);
    const tile = event.target.closest?.(".gallery-item");
    if (tile) record(selected().dataset.tabId, example(tile));
  });
  document.addEventListener("change", (event) => {
    if (event.target.matches("#tabs input[type=file]")) record(selected().dataset.tabId, "");
  });
  addEventListener("popstate", follow);

  // Arrow keys walk through the tabs.
  document.addEventListener("keydown", (event) => {
    const here = event.target.closest?.("#tabs [role=tab]");
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!here || !step) return;
    const list = tabs();
    const next = list[(list.indexOf(here) + step + list.length) % list.length];
    event.preventDefault();
    next.focus();
    record(next.dataset.tabId);
    follow();
  });

  // ------------------------------------------------------------------- what Gradio leaves undone

  const name = () => {
    for (const item of all(".gallery-item:not([aria-label])")) {
      if (example(item)) item.setAttribute("aria-label", "Example: " + example(item));
    }
    for (const button of all("button[aria-label='common.upload']")) {
      button.setAttribute("aria-label", "More files");
      button.title = "More files";
      if (!button.querySelector("button")) continue;
      button.setAttribute("role", "group"); // with one inside the other, the inner is the button
      button.tabIndex = -1;
    }
    for (const heading of all("button.label-wrap")) {
      const open = String(heading.classList.contains("open"));
      if (heading.getAttribute("aria-expanded") !== open) heading.setAttribute("aria-expanded", open);
    }
    // Mistakes: Python can give their fields a class only.
    for (const field of all(".block :is(textarea, input)")) {
      const wrong = String(field.closest(".block").classList.contains("wrong"));
      if ((field.getAttribute("aria-invalid") ?? "false") !== wrong) field.setAttribute("aria-invalid", wrong);
    }
  };
  const tidy = () => {
    name();
    choose();
  };
  const changes = { childList: true, subtree: true, attributeFilter: ["class"] };
  new MutationObserver(tidy).observe(document.body, changes);
  name();
  if (location.hash) follow();

  // An image that the browser cannot show is no icon of something broken.
  for (const event of ["load", "error"]) {
    const show = ({ target }) => {
      if (target.matches?.(".image-input img")) target.style.visibility = event === "error" ? "hidden" : "";
    };
    document.addEventListener(event, show, true);
  }

  // Gradio tells of a slider's new value when the pointer is released only.
  document.addEventListener("keyup", (event) => {
    const keys = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"];
    if (!event.target.matches?.("input[type=range]") || !keys.includes(event.key)) return;
    event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  });
}
