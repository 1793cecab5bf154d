() => {
  // Pass an image that is pasted or dropped anywhere on the page to the image input.
  const give = (event, transfer) => {
    const file = [...(transfer?.files ?? [])].find((each) => each.type.startsWith("image/"));
    const inputs = document.querySelectorAll(":is(#photo, #compare-photo) input[type=file]");
    const input = [...inputs].find((each) => each.closest(".block").offsetParent !== null);
    if (!file || !input) return;
    event.preventDefault();
    const list = new DataTransfer();
    list.items.add(file);
    input.files = list.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  // Name what Gradio leaves without a label for screen readers, such as its examples.
  const name = () => {
    for (const item of document.querySelectorAll(".gallery-item:not([aria-label])")) {
      const file = item.querySelector("img")?.src.split("/").pop() ?? "";
      if (file) item.setAttribute("aria-label", "Example: " + decodeURIComponent(file.split(".")[0]));
    }
    // Gradio shows this untranslated.
    for (const button of document.querySelectorAll("button[aria-label='common.upload']")) {
      button.setAttribute("aria-label", "More files");
      button.title = "More files";
    }
  };
  // Mark the fields of mistakes, which Python can give a class only.
  const mark = () => {
    for (const field of document.querySelectorAll(".block :is(textarea, input)")) {
      const wrong = String(field.closest(".block").classList.contains("wrong"));
      if ((field.getAttribute("aria-invalid") ?? "false") !== wrong) field.setAttribute("aria-invalid", wrong);
    }
  };
  const tidy = () => [name(), mark()];
  new MutationObserver(tidy).observe(document.body, {
    childList: true,
    subtree: true,
    attributeFilter: ["class"],
  });
  tidy();

  // Gradio tells of a slider's new value when the pointer is released only.
  document.addEventListener("keyup", (event) => {
    const keys = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"];
    if (!event.target.matches?.("input[type=range]") || !keys.includes(event.key)) return;
    event.target.dispatchEvent(new PointerEvent("pointerup", { bubbles: true }));
  });

  document.addEventListener("paste", (event) => give(event, event.clipboardData));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!event.defaultPrevented) give(event, event.dataTransfer);
    event.preventDefault(); // else the browser leaves the page to show the file
  });
}
